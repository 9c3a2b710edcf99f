"""`auditor.result/v1`: a `Result` as JSON, as JUnit XML, and in words."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree as ET

from auditor.errors import AuditError
from auditor.hidden_tokens.revealed import Revealed
from auditor.synchrony import Synchrony
from auditor.trace import Trace
from auditor.verdict import TraceVerdict, Verdict
from auditor.verification import Result

SCHEMA = "auditor.result/v1"

_LARGEST = 1e300  # JSON has no infinity; an e-value beyond this is printed as this


def e_value(log_e: float) -> float:
    """The e-value of its logarithm, kept finite."""
    return min(math.exp(min(log_e, 690.0)), _LARGEST)


def p_value(log_e: float) -> float:
    """1/e, at most 1."""
    return math.exp(max(-690.0, min(0.0, -log_e)))


def result_to_json(result: Result) -> dict[str, Any]:
    """The result as one JSON object; with several groups the top level shows the most suspicious one."""
    lead = max(result.verdicts, key=lambda v: v.log_e, default=None)
    return {
        "schema": SCHEMA,
        "verdict": result.outcome,
        "alpha": result.alpha,
        "e_value": e_value(result.log_e),
        "p_value": p_value(result.log_e),
        "tokens": {
            "audited": result.tokens,
            "matched": result.matched,
            "outside_support": result.outside,
            "forbidden": result.forbidden,
            "forced": result.forced,
        },
        "evidence": _evidence(lead),
        "diagnosis": [
            {"cause": cause, "weight": weight} for cause, weight in (lead.diagnosis if lead else ())
        ],
        "detectable": _detectable(lead),
        "reasons": [reason for v in result.verdicts for reason in v.reasons],
        "groups": [_group(v, s) for v, s in zip(result.verdicts, result.synchrony, strict=True)],
        "traces": [_trace(t) for v in result.verdicts for t in v.traces],
        "errors": [error_to_json(e) for e in result.errors],
        "selection": None
        if result.selection is None
        else {name: getattr(result.selection, name) for name in type(result.selection).__slots__},
        "model": {"digest": result.reference.model.digest, "recipe": result.reference.recipe},
        "shared_prefixes": _shared_prefixes(result),
        "profile": _profile(lead),
        "seconds": round(result.seconds, 3),
        "tokens_per_second": round(result.tokens / result.seconds, 1) if result.seconds > 0 else None,
    }


def error_to_json(error: AuditError) -> dict[str, str]:
    """One bad line."""
    return {"code": error.code, "where": error.where, "message": error.message, "fix": error.fix}


def _shared_prefixes(result: Result) -> dict[str, int]:
    """Prompt tokens looked up by this reference so far, and those whose keys and values were there."""
    prefixes = result.reference.runner.prefixes
    return {"prompt_tokens": prefixes.asked, "reused_tokens": prefixes.found}


def _evidence(verdict: Verdict | None) -> list[dict[str, Any]]:
    return [
        {"name": e.name, "statistic": e.statistic, "p_value": p_value(e.log_e), "e_value": e_value(e.log_e)}
        for e in (verdict.evidence if verdict else ())
    ]


def _detectable(verdict: Verdict | None) -> list[dict[str, Any]] | None:
    if verdict is None or verdict.detectable is None:
        return None
    return [{"cause": d.cause, "power": d.power, "required": d.required} for d in verdict.detectable]


def _profile(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None or verdict.profile is None:
        return None
    p = verdict.profile
    return {
        "id": p.id,
        "honest_tokens": p.honest_tokens,
        "smallest_alpha": dict(p.smallest_alpha),
        "signed_by": list(p.signed_by),
    }


def _group(verdict: Verdict, synchrony: Synchrony | None) -> dict[str, Any]:
    return {
        "provider_recipe": verdict.recipe,
        "verdict": verdict.outcome,
        "alpha": verdict.alpha,
        "e_value": e_value(verdict.log_e),
        "p_value": p_value(verdict.log_e),
        "traces": len(verdict.traces),
        "evidence": _evidence(verdict),
        "detectable": _detectable(verdict),
        "diagnosis": [{"cause": cause, "weight": weight} for cause, weight in verdict.diagnosis],
        "synchrony": None
        if synchrony is None
        else {name: getattr(synchrony, name) for name in Synchrony.__slots__},
        "reasons": list(verdict.reasons),
        "profile": _profile(verdict),
    }


def _trace(verdict: TraceVerdict) -> dict[str, Any]:
    scored = verdict.scored
    scores = scored.scores
    notes = list(scored.notes)
    if scored.problem is not None:
        notes.append(f"{scored.problem.message} [{scored.problem.code}]")
    if scored.fingerprint_problem is not None:
        notes.append(f"{scored.fingerprint_problem.message} [{scored.fingerprint_problem.code}]")
    if scored.trace.asserted:
        notes.append(f"asserted, not logged: {', '.join(scored.trace.asserted)}")
    return {
        "id": scored.trace.id,
        "where": scored.trace.where,
        "grade": scored.trace.grade,
        "verdict": verdict.outcome,
        "e_value": e_value(verdict.log_e),
        "tokens": scores.tokens if scores else None,
        "match_rate": scores.match_rate if scores and scores.evidence else None,
        "forced": scores.forced if scores else None,
        "unmodelled": scores.unmodelled if scores else None,
        "mean_margin": verdict.mean_margin,
        "outside_support": scores.outside if scores else None,
        "mean_rank": None if scores is None or math.isnan(scores.mean_rank) else scores.mean_rank,
        "mean_log_probability": scores.mean_log_probability if scores else None,
        "fingerprints": [{name: getattr(f, name) for name in type(f).__slots__} for f in scored.fingerprints],
        "spans": [list(span) for span in verdict.spans],
        "contradictions": list(scored.contradictions),
        "commitment": _commitment(scored.trace),
        "notes": notes,
    }


def _commitment(trace: Trace) -> dict[str, Any] | None:
    """What was found about hidden tokens, None for a trace that has none."""
    if not isinstance(trace.commitment, Revealed):
        return None
    found = trace.commitment
    head = None if found.committed is None else found.committed.head
    return {
        "hidden": None if head is None else head.hidden,
        "seen": 0 if found.opened is None else found.opened.exposure.seen,
        "replayed": 0 if found.opened is None else len(found.opened.prefix),
        "canonical_excess": None if found.opened is None else found.opened.excess,
        "timed": None if found.committed is None else found.committed.timed,
        "most_by_clock": None if found.clock is None else found.clock.most_hidden,
        "refuted": found.refuted is not None,
        "problem": None if found.problem is None else error_to_json(found.problem),
    }


def result_to_junit(result: Result) -> str:
    """JUnit XML for continuous integration: one case for each group and each bad line.

    `inconsistent` is a failure, `inconclusive` and a bad line are errors: neither turns a build green.
    """
    suite = ET.Element("testsuite", name="audit verify", time=f"{result.seconds:.3f}")
    for verdict in result.verdicts:
        case = ET.SubElement(suite, "testcase", classname="audit", name=str(verdict.recipe))
        text = (
            f"e-value {e_value(verdict.log_e):.3g} at alpha {verdict.alpha:g}; {'; '.join(verdict.reasons)}"
        )
        if verdict.outcome == "inconsistent":
            ET.SubElement(case, "failure", message="inconsistent").text = text
        elif verdict.outcome == "inconclusive":
            ET.SubElement(case, "error", message="inconclusive").text = text
    for error in result.errors:
        case = ET.SubElement(suite, "testcase", classname="audit.input", name=error.where or error.code)
        ET.SubElement(case, "error", message=error.code).text = str(error)
    cases = list(suite)
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(c.find("failure") is not None for c in cases)))
    suite.set("errors", str(sum(c.find("error") is not None for c in cases)))
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
