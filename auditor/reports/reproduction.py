"""The smallest part of a conviction that convicts alone, for the accused to run: which requests and tokens.

The worker adds it to every verdict of `inconsistent`. The requests are the strongest, as many as it takes
until they convict by themselves under the same profile and alpha. They are picked for being strong: they show
*that* and *how* the log contradicts the declared system; the error rate is that of the whole audit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from auditor.errors import AuditError
from auditor.preparation import prepare
from auditor.replay import Reference
from auditor.verdict import TraceVerdict, Verdict, judge

SCHEMA = "auditor.reproduction/v1"
MOST_MISSES = 200
"""Tokens of one request that are listed; all are counted."""


def reproduction(verdict: Verdict, reference: Reference, alpha: float) -> dict[str, Any] | None:
    """What the accused provider needs to see the conviction itself; None where there is none.

    Args:
        verdict: of a group, with its traces.
        alpha: of the audit, at which the part is judged alone.
    """
    if verdict.outcome != "inconsistent":
        return None
    chosen, alone = _smallest(verdict, alpha)
    return {
        "schema": SCHEMA,
        "alpha": alpha,
        "provider_recipe": verdict.recipe,
        "profile": None if verdict.profile is None else verdict.profile.id,
        "model": {"digest": reference.model.digest, "recipe": reference.recipe},
        "verdict_alone": alone.outcome,
        "log_e_alone": alone.log_e,
        "requests": [_request(trace, reference) for trace in chosen],
    }


def _smallest(verdict: Verdict, alpha: float) -> tuple[Sequence[TraceVerdict], Verdict]:
    ranked = sorted(verdict.traces, key=lambda trace: (-trace.log_e, trace.scored.trace.id))
    count = 1
    while True:
        chosen = ranked[:count]
        alone = judge([trace.scored for trace in chosen], verdict.profile, alpha=alpha)
        if alone.outcome == "inconsistent" or count >= len(ranked):
            return chosen, alone
        count *= 2


def _request(verdict: TraceVerdict, reference: Reference) -> dict[str, Any]:
    trace, scores = verdict.scored.trace, verdict.scored.scores
    expected = _expected(verdict, reference)
    claimed = trace.output_token_ids or ()
    misses = () if scores is None else scores.misses
    return {
        "id": trace.id,
        "where": trace.where,
        "raw_digest": trace.raw_digest,
        "seed": None if trace.seed is None else str(trace.seed),
        "noise": trace.noise,
        "tokens": len(claimed),
        "log_e": verdict.log_e if math.isfinite(verdict.log_e) else None,
        "mismatches": len(misses),
        "misses": [
            {
                "position": position,
                "claimed": claimed[position],
                "expected": expected.get(position),
                "margin": margin,
                "slack": slack if math.isfinite(slack) else None,
            }
            for position, margin, slack in misses[:MOST_MISSES]
        ],
    }


def _expected(verdict: TraceVerdict, reference: Reference) -> Mapping[int, int]:
    """The token that the reference returns at each position, from one more replay."""
    try:
        request = prepare(verdict.scored.trace, reference)
    except AuditError:
        return {}
    (rows,) = reference.runner.score([request])
    return {position: int(winner) for position, winner in enumerate(rows.winner)}
