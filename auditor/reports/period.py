"""A provider's period: its audits' evidence put together under the policy. Pure.

The mean of e-values is an e-value whatever their dependence (Vovk and Wang, Annals of Statistics 49, 2021),
so an honest provider's period reaches 1/alpha with probability at most alpha, however many audits it had.
One audit of m convicts the period by itself where its e-value reaches m/alpha; power is read at that bar.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from auditor.reports.coverage import least_met
from auditor.reports.policy import Policy
from auditor.reports.rows import DONE, UNFINISHED, AuditRow, Sample, TraceTally
from auditor.reports.standings import NOTHING, Background, ProviderStanding

LEAST_CONSISTENT = 0.9
"""Share of the audited tokens that must lie in consistent audits."""

_DRAWN_ALIKE = ("all", "uniform/v1")


@dataclass(frozen=True)
class Power:
    """What the best audit of a period could have shown of one cause, at the period's bar.

    Attributes:
        power: against cheating on every request; None where the traffic cannot show it.
        points: (fraction of requests cheated on, power), rising.
    """

    cause: str
    power: float | None
    audit_id: str
    points: tuple[tuple[float, float], ...]

    def smallest_fraction(self, minimum: float) -> float | None:
        """The smallest fraction looked at from which on the power is at least this."""
        found = None
        for fraction, power in reversed(self.points):
            if power < minimum:
                break
            found = fraction
        return found


@dataclass(frozen=True)
class Period:
    """One provider's audits of the period, in order of submission."""

    provider: str
    audits: Sequence[tuple[AuditRow, TraceTally]]
    policy: Policy
    background: Background = NOTHING

    @cached_property
    def judged(self) -> list[tuple[AuditRow, TraceTally]]:
        """Those with a verdict that no dispute has overturned."""
        return [
            (audit, tally)
            for audit, tally in self.audits
            if audit.state == DONE and audit.id not in self.background.overturned
        ]

    @property
    def standing(self) -> ProviderStanding | None:
        """Of the provider over all its scheduled periods; None where no schedule audits it."""
        return self.background.standings.get(self.provider)

    @cached_property
    def log_e(self) -> float:
        """Natural log of the mean e-value; 0 where nothing was judged."""
        logs = [audit.log_e for audit, _ in self.judged]
        if not logs:
            return 0.0
        top = max(logs)
        return top + math.log(math.fsum(math.exp(value - top) for value in logs) / len(logs))

    @cached_property
    def refuted(self) -> int:
        """Audits that the provider's own signatures contradict."""
        return sum(audit.refuted for audit, _ in self.judged)

    @cached_property
    def verdict(self) -> str:
        """The period in a word."""
        if self.refuted or self._convicts:
            return "inconsistent"
        return "inconclusive" if self.reasons else "consistent"

    @property
    def _convicts(self) -> bool:
        # Where a schedule looks again and again the standing decides: alpha is of all periods together.
        if self.standing is not None:
            return self.standing.verdict == "inconsistent"
        return bool(self.judged) and self.log_e >= -math.log(self.policy.alpha)

    @cached_property
    def reasons(self) -> list[str]:
        """Why the period could not be called consistent."""
        if not self.judged:
            return ["no audit was judged in the period"]
        said: list[str] = []
        if self.standing is not None and self.standing.verdict == "inconclusive":
            said += self.standing.reasons
        gone = sum(audit.id in self.background.overturned for audit, _ in self.audits)
        if gone:
            said.append(f"{gone} audit(s) were overturned by a dispute")
        failed = [a for a, _ in self.audits if a.state not in (DONE, UNFINISHED)]
        if failed:
            said.append(f"{len(failed)} audit(s) ended without a verdict")
        alone = sum(audit.outcome == "inconsistent" for audit, _ in self.judged)
        if alone:
            said.append(f"{alone} audit(s) convict by themselves, the period's evidence as a whole does not")
        total = sum(tally.tokens for _, tally in self.judged)
        good = sum(tally.tokens for audit, tally in self.judged if audit.outcome == "consistent")
        if good < LEAST_CONSISTENT * total or not good:
            said.append(f"{good:,} of {total:,} audited tokens lie in audits that were consistent")
        if self.short:
            said.append(f"would not have been shown: {', '.join(self.short)}")
        missing = [name for name in self.policy.evidence if name not in self.evidence_names]
        if missing:
            said.append(f"the policy asks for evidence that no audit has: {', '.join(missing)}")
        return said

    @cached_property
    def doubts(self) -> list[str]:
        """What of the handed-in evidence could not be judged."""
        failed = sum(audit.state not in (DONE, UNFINISHED) for audit, _ in self.audits)
        unread = sum(len(audit.verdict.get("errors", ())) for audit, _ in self.judged if audit.verdict)
        counts = {
            "audit(s) ended without a verdict": failed,
            "audit(s) were unfinished at the end of the period": self.unfinished,
            "line(s) could not be read": unread,
            "request(s) could not be scored": sum(tally.unscored for _, tally in self.judged),
        }
        return [f"{count:,} {what}" for what, count in counts.items() if count]

    @property
    def unfinished(self) -> int:
        """Audits without an end at the end of the period."""
        return sum(audit.state == UNFINISHED for audit, _ in self.audits)

    def groups(self) -> Iterator[tuple[AuditRow, Mapping[str, Any]]]:
        """Every group of every verdict."""
        for audit, _ in self.judged:
            for group in (audit.verdict or {}).get("groups", ()):
                yield audit, group

    @cached_property
    def evidence_names(self) -> set[str]:
        """Kinds of evidence that the verdicts rest on."""
        return {str(found["name"]) for _, group in self.groups() for found in group.get("evidence", ())}

    @cached_property
    def causes(self) -> list[tuple[str, float]]:
        """(cause, weight) by falling weight: the standing's, else over the convicted groups, each alike."""
        if self.verdict == "inconsistent" and self.standing is not None and self.standing.causes:
            return list(self.standing.causes)
        convicted = [group for _, group in self.groups() if group["verdict"] == "inconsistent"]
        weights: dict[str, float] = {}
        for group in convicted:
            for named in group.get("diagnosis", ()):
                weights[named["cause"]] = weights.get(named["cause"], 0.0) + named["weight"] / len(convicted)
        return sorted(weights.items(), key=lambda item: (-item[1], item[0]))

    @cached_property
    def power(self) -> dict[str, Power]:
        """The best audit's power against each cause that any verdict measured, by cause."""
        best: dict[str, Power] = {}
        for audit, group in self.groups():
            for found in self._measured(audit, group):
                kept = best.get(found.cause)
                if kept is None or _rank(found) > _rank(kept):
                    best[found.cause] = found
        return dict(sorted(best.items()))

    def _measured(self, audit: AuditRow, group: Mapping[str, Any]) -> Iterator[Power]:
        raised = len(self.judged) * float(group["alpha"]) / self.policy.alpha
        fractions = group.get("fractions") or {}
        column = next((n for n, f in enumerate(fractions.get("factors", ())) if f >= raised - 1e-9), None)
        points = {found["cause"]: found["points"] for found in fractions.get("causes", ())}
        for found in group.get("detectable") or ():
            curve: tuple[tuple[float, float], ...] = ()
            if column is not None and found["cause"] in points:
                curve = tuple((float(f), float(powers[column])) for f, powers in points[found["cause"]])
            power = found["power"]
            if power is not None and raised > 1.0 + 1e-9:
                power = curve[-1][1] if curve and curve[-1][0] == 1.0 else 0.0
            yield Power(found["cause"], power, audit.id, curve)

    @cached_property
    def short(self) -> list[str]:
        """Causes of the policy that the period would not have shown; those that traffic cannot show aside."""
        missing = [cause for cause in self.policy.must_detect if cause not in self.power]
        shown = [self.power[cause] for cause in self.policy.must_detect if cause in self.power]
        if all(found.power is None for found in shown):
            return sorted(self.policy.must_detect)
        low = [f.cause for f in shown if f.power is not None and f.power < self.policy.minimum_power]
        return sorted({*missing, *low})

    def samples(self) -> list[Sample]:
        """How the requests of each judged audit were picked; whole logs where nothing else is known."""
        return [_sample(audit, tally) for audit, tally in self.judged]

    @cached_property
    def met(self) -> int | None:
        """Fewest cheated requests of which the samples hold one with the policy's power.

        None where requests were not drawn alike: no such bound holds then.
        """
        samples = self.samples()
        if not samples or any(sample.method not in _DRAWN_ALIKE for sample in samples):
            return None
        # Cheated requests may all lie in the audit that is sampled worst.
        bounds = [
            least_met(s.population_requests, s.sampled_requests, self.policy.minimum_power) for s in samples
        ]
        return None if None in bounds else max(bound for bound in bounds if bound is not None)


def _rank(found: Power) -> tuple[float, float, str]:
    whole = -1.0 if found.power is None else found.power
    return whole, math.fsum(power for _, power in found.points), found.audit_id


def _sample(audit: AuditRow, tally: TraceTally) -> Sample:
    if audit.sample is not None:
        return audit.sample
    selection = (audit.verdict or {}).get("selection")
    if selection is not None:
        picked = int(selection["at_random"]) + int(selection["by_weight"])
        return Sample(int(selection["population_traces"]), picked, selection["rule"], selection["seed"])
    return Sample(tally.requests, tally.requests, "all")
