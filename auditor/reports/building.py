"""`build_report`: rows in, `auditor.report/v1` out. Pure: no clock, no database, no locale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from auditor.reports.canonical import canonical, decimal, digest, log10_text, log_of, significant
from auditor.reports.commitments import commitment_of
from auditor.reports.controls import Facts, findings
from auditor.reports.grading import RULES, Grade, grade, worst
from auditor.reports.period import Period
from auditor.reports.policy import Policy
from auditor.reports.progress import changes, history
from auditor.reports.rows import AuditRow, Sample, Scope, TraceTally
from auditor.reports.standings import NOTHING, Background, dispute_json, standing_json
from auditor.reports.texts import texts
from auditor.service.clock import to_text

SCHEMA = "auditor.report/v1"
UNNAMED = "unnamed"
"""Audits whose submitter named no provider are reported under this name."""

_SEVERITY = ("consistent", "inconclusive", "inconsistent")
_LEAST_STRONG = 0.9  # share of requests of grade A


@dataclass(frozen=True, slots=True)
class Report:
    """A report; `body` is `report.json`, byte for byte."""

    document: Mapping[str, Any]

    @property
    def body(self) -> bytes:
        """The bytes that are signed."""
        return canonical(self.document)

    @property
    def digest(self) -> str:
        """`sha256:...` of the bytes."""
        return digest(self.body)


def build_report(
    scope: Scope,
    audits: Iterable[tuple[AuditRow, TraceTally]],
    policy: Policy,
    *,
    salt: bytes,
    previous: tuple[str, Mapping[str, Any]] | None = None,
    background: Background = NOTHING,
) -> Report:
    """Put a period's audits together.

    Args:
        scope: tenant, provider and period.
        audits: in any order; the report sorts them.
        salt: the tenant's, 32 bytes; decides commitments and is not in the report.
        previous: digest and content of the report that came before, if any.
        background: standings of the providers, and disputes.
    """
    by_provider: dict[str, list[tuple[AuditRow, TraceTally]]] = {}
    for audit, tally in sorted(audits, key=lambda pair: (pair[0].submitted, pair[0].id)):
        by_provider.setdefault(audit.provider or UNNAMED, []).append((audit, tally))
    if scope.provider:
        by_provider.setdefault(scope.provider, [])
    periods = [Period(name, by_provider[name], policy, background) for name in sorted(by_provider)]
    grades = [_grade(period) for period in periods]
    providers = [_provider(period, found) for period, found in zip(periods, grades, strict=True)]
    letter = worst([found.letter for found in grades])
    limiting = next((found.limited_by for found in grades if found.letter == letter), None)
    document = {
        "schema": SCHEMA,
        "id": scope.report_id,
        "tenant": scope.tenant_id,
        "tool": {"name": "verifiable-inference-auditor", "version": version("verifiable-inference-auditor")},
        "period": {"start": to_text(scope.start), "end": to_text(scope.end)},
        "scope": {"provider": scope.provider or None, "providers": [p["name"] for p in providers]},
        "policy": _policy(policy),
        "grade": _grade_json(letter, None if limiting is None else limiting.id, grades),
        "verdict": max((p["verdict"] for p in providers), key=_SEVERITY.index, default="inconclusive"),
        "totals": _totals(periods),
        "providers": providers,
        "disputes": [dispute_json(one) for one in background.disputes],
        "exceptions": [one for period in periods for one in _exceptions(period, salt)],
        "keys": {"profiles_signed_by": sorted({k for p in periods for k in _signers(p)})},
        **texts(),
    }
    document["changes"] = changes(document, previous)
    document["history"] = history(previous)
    return Report(document)


def _policy(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.name,
        "version": policy.version,
        "approved_by": policy.approved_by or None,
        "digest": policy.digest,
        "alpha": significant(policy.alpha),
        "minimum_power": significant(policy.minimum_power),
        "must_detect": sorted(policy.must_detect),
        "evidence": sorted(policy.evidence),
        "signed_profiles": policy.signed_profiles,
        "largest_fraction": significant(policy.largest_fraction),
        "budget_tokens": policy.budget_tokens,
    }


def _grade_json(letter: str, limited_by: str | None, grades: Sequence[Grade]) -> dict[str, Any]:
    return {
        "letter": letter,
        "limited_by": limited_by,
        "applying": sorted({rule.id for found in grades for rule in found.applying}),
        "rules": [asdict(rule) for rule in RULES],
    }


def _grade(period: Period) -> Grade:
    requests = sum(tally.requests for _, tally in period.judged)
    strong = sum(tally.grades["A"] for _, tally in period.judged)
    weak = sum(tally.grades["C"] + tally.unscored for _, tally in period.judged)
    population = sum(sample.population_requests for sample in period.samples())
    allowed = period.policy.largest_fraction
    unmet = period.met is None or (period.met > 1 and period.met > allowed * population)
    required = [period.power[c] for c in period.policy.must_detect if c in period.power]
    fractions = [f.smallest_fraction(period.policy.minimum_power) for f in required if f.power is not None]
    unseen = unmet or any(fraction is None or fraction > allowed for fraction in fractions)
    ended_badly = any(audit.state != "done" for audit, _ in period.audits)
    applying = {
        "G1": period.verdict == "inconsistent",
        "G2": not period.judged,
        "G3": bool(period.judged and period.short),
        "G4": bool(period.judged) and period.verdict == "inconclusive",
        "G5": ended_badly,
        "G6": bool(period.judged) and unseen,
        "G7": bool(period.judged) and not _vouched(period),
        "G8": bool(weak or any((a.verdict or {}).get("errors") for a, _ in period.judged)),
        "G9": bool(period.judged) and strong < _LEAST_STRONG * requests,
    }
    return grade([rule for rule, holds in applying.items() if holds])


def _provider(period: Period, found: Grade) -> dict[str, Any]:
    return {
        "name": period.provider,
        "verdict": period.verdict,
        "reasons": list(period.reasons) if period.verdict == "inconclusive" else [],
        "grade": found.letter,
        "limited_by": None if found.limited_by is None else found.limited_by.id,
        "applying": [rule.id for rule in found.applying],
        "log10_e": log10_text(period.log_e),
        "standing": standing_json(period.standing),
        "sampling": _sampling(period),
        "requests": _requests(period),
        "systems": _systems(period),
        "causes": [{"cause": cause, "weight": decimal(weight, 3)} for cause, weight in period.causes],
        "detectable": _detectable(period),
        "controls": _controls(period),
        "audits": [
            _audit(audit, tally, overturned=audit.id in period.background.overturned)
            for audit, tally in period.audits
        ],
    }


def _sampling(period: Period) -> dict[str, Any]:
    samples = period.samples()
    population = sum(sample.population_requests for sample in samples)
    met = period.met
    return {
        "population_requests": population,
        "sampled_requests": sum(sample.sampled_requests for sample in samples),
        "methods": sorted({sample.method for sample in samples}),
        "confidence": significant(period.policy.minimum_power),
        "least_requests_met": met,
        "least_fraction_met": None if met is None or not population else decimal(met / population, 6),
    }


def _requests(period: Period) -> dict[str, Any]:
    tallies = [tally for _, tally in period.judged]
    return {
        "audited": sum(tally.requests for tally in tallies),
        "tokens": sum(tally.tokens for tally in tallies),
        "unscored": sum(tally.unscored for tally in tallies),
        "contradicted": sum(tally.contradicted for tally in tallies),
        "committed": sum(tally.committed for tally in tallies),
        "grades": {letter: sum(tally.grades[letter] for tally in tallies) for letter in "ABC"},
        "convicted_alone": sum(tally.outcomes["inconsistent"] for tally in tallies),
    }


def _profiles(period: Period) -> list[Mapping[str, Any] | None]:
    return [group.get("profile") for _, group in period.groups()]


def _signers(period: Period) -> set[str]:
    return {key for profile in _profiles(period) if profile for key in profile.get("signed_by", ())}


def _vouched(period: Period) -> bool:
    profiles = _profiles(period)
    return bool(profiles) and all(profile and profile.get("signed_by") for profile in profiles)


def _systems(period: Period) -> dict[str, Any]:
    named = [audit.verdict["model"] for audit, _ in period.judged if audit.verdict]
    models = {(model["digest"], model["recipe"]) for model in named}
    profiles = {p["id"]: p for p in _profiles(period) if p}
    return {
        "models": [{"digest": model, "reference_recipe": recipe} for model, recipe in sorted(models)],
        "provider_recipes": sorted({str(group["provider_recipe"]) for _, group in period.groups()}),
        "profiles": [
            {
                "id": name,
                "honest_tokens": profiles[name]["honest_tokens"],
                "signed_by": sorted(profiles[name].get("signed_by", ())),
            }
            for name in sorted(profiles)
        ],
    }


def _detectable(period: Period) -> list[dict[str, Any]]:
    minimum = period.policy.minimum_power
    rows = []
    for cause, found in period.power.items():
        fraction = found.smallest_fraction(minimum)
        rows.append(
            {
                "cause": cause,
                "required": cause in period.policy.must_detect,
                "power": None if found.power is None else decimal(found.power, 2),
                "audit": found.audit_id,
                "smallest_fraction": None if fraction is None else significant(fraction),
                "points": [{"fraction": significant(f), "power": decimal(p, 2)} for f, p in found.points],
            }
        )
    return rows


def _controls(period: Period) -> list[dict[str, Any]]:
    facts = Facts(
        verdict=period.verdict,
        causes=period.causes,
        power={cause: found.power for cause, found in period.power.items()},
        required=period.policy.must_detect,
        minimum_power=period.policy.minimum_power,
        refuted=period.refuted,
        doubts=period.doubts,
        bills=_bills_tested(period),
        padded=_padded(period),
        calibrated=bool(period.judged) and all(_profiles(period)),
        vouched=_vouched(period),
        signed_profiles=period.policy.signed_profiles,
    )
    return [
        {
            "id": found.control.id,
            "title": found.control.title,
            "question": found.control.question,
            "status": found.status,
            "reason": found.reason,
        }
        for found in findings(facts)
    ]


def _bills_tested(period: Period) -> bool:
    said = None if period.standing is None else period.standing.bills
    against_texts = "token-count" in period.evidence_names or any(t.committed for _, t in period.judged)
    return against_texts or (said is not None and bool(said["shown"]))


def _padded(period: Period) -> str:
    said = None if period.standing is None else period.standing.bills
    if said is None or not said["accuse"]:
        return ""
    return (
        f"{said['beyond']} of {said['responses']} responses since period {said['since']} bill more than "
        f"{said['allowed']} tokens beyond their ids and texts; the first {said['first']} do not explain it"
    )


def _audit(audit: AuditRow, tally: TraceTally, *, overturned: bool) -> dict[str, Any]:
    sample = audit.sample
    return {
        "id": audit.id,
        "state": audit.state,
        "error": audit.error_code,
        "submitted": to_text(audit.submitted),
        "judged": None if audit.judged is None else to_text(audit.judged),
        "log": audit.log_digest,
        "alpha": significant(audit.verdict_alpha),
        "verdict": audit.outcome,
        "overturned": overturned,
        "verdict_digest": audit.verdict_digest,
        "log10_e": None if audit.verdict is None else log10_text(audit.log_e),
        "requests": tally.requests,
        "tokens": tally.tokens,
        "sample": None if sample is None else _sample_json(sample),
    }


def _sample_json(sample: Sample) -> dict[str, Any]:
    return {
        "population_requests": sample.population_requests,
        "sampled_requests": sample.sampled_requests,
        "method": sample.method,
        "seed": sample.seed or None,
    }


def _exceptions(period: Period, salt: bytes) -> Iterable[dict[str, Any]]:
    for audit, tally in period.judged:
        for number, trace in tally.exceptions():
            evidence_id = f"{audit.id}/{number}"
            digests = trace.get("digests") or {}
            yield {
                "evidence": evidence_id,
                "audit": audit.id,
                "provider": period.provider,
                "request": str(trace.get("id")),
                "where": str(trace.get("where", "")),
                "grade": str(trace.get("grade")),
                "log10_e": log10_text(log_of(float(trace.get("e_value") or 0.0))),
                "tokens": trace.get("tokens"),
                "match_rate": _decimal_or_none(trace.get("match_rate")),
                "mean_margin": _decimal_or_none(trace.get("mean_margin"), 6),
                "outside_support": trace.get("outside_support"),
                "spans": [list(span) for span in trace.get("spans", ())],
                "contradictions": list(trace.get("contradictions", ())),
                "commitments": {
                    name: commitment_of(salt, evidence_id, name, digests[name]) for name in sorted(digests)
                },
            }


def _decimal_or_none(value: float | None, places: int = 4) -> str | None:
    return None if value is None else decimal(value, places)


def _totals(periods: Sequence[Period]) -> dict[str, Any]:
    judged = [pair for period in periods for pair in period.judged]
    samples = [sample for period in periods for sample in period.samples()]
    return {
        "providers": len(periods),
        "audits": sum(len(period.audits) for period in periods),
        "judged": len(judged),
        "unfinished": sum(period.unfinished for period in periods),
        "population_requests": sum(sample.population_requests for sample in samples),
        "sampled_requests": sum(sample.sampled_requests for sample in samples),
        "audited_requests": sum(tally.requests for _, tally in judged),
        "audited_tokens": sum(tally.tokens for _, tally in judged),
        "convicted_alone": sum(tally.outcomes["inconsistent"] for _, tally in judged),
    }
