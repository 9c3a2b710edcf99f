"""Do sampled tokens follow the logged seed, at least the model's distribution, or neither?

Speculation that is lossless, another noise scheme, or a seed that was not the logged one change which tokens
are drawn but not how likely each was; another model, prompt or precision changes both. After a conviction
this says which it looks like, so that lossless speculation is never taken for another model. It moves no
verdict: the e-value stands, and what is said here is a diagnosis on the log's own tokens.

1. The distribution: `seed_free.py`, and the tokens outside the request's filters.
2. If that does not refute it: draws that have nothing to do with the logged seed match a replay with
   probability p(token). If the log matches no more often than their sum, it is such draws.
3. If it matches more often, and the engine's coins are known: are the tokens that did not match those that
   `standard` speculation may return (`reference/speculation/`)?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from auditor.errors import NoiseUnknownError
from auditor.preparation import is_speculated, prepare
from auditor.reference.request import Request
from auditor.reference.speculation import Speculated, find_rule
from auditor.replay import Reference, Scored
from auditor.seed_free import reduce_law, seed_free_evidence
from auditor.verdict import Verdict

Found = Literal["synchronised", "distribution-lossless", "neither"]

_LOOK_TOKENS = 6_000
_SURELY = 4.0  # standard deviations by which matches must exceed those of unrelated draws
_ADMITTED = 0.95  # share of unexpected tokens; the rest is numeric noise


@dataclass(frozen=True, slots=True)
class Synchrony:
    """What the sampled tokens of a group look like.

    Attributes:
        tokens: on how many the answer rests.
        match, unrelated: share of them that match the replay, and that draws unrelated to the logged seed
            would be expected to; None where no seed was replayed.
        unexpected, admitted: how many did not match, and how many of those `standard` speculation may return;
            None where that was not asked.
    """

    found: Found
    tokens: int
    match: float | None = None
    unrelated: float | None = None
    unexpected: int | None = None
    admitted: int | None = None


def synchrony_of(verdict: Verdict, reference: Reference) -> Synchrony | None:
    """Classify a judged group; None where nothing was sampled, or nothing could be tested."""
    scored = [trace.scored for trace in verdict.traces]
    usable = [s for s in scored if s.scores is not None and s.mode != "greedy"]
    convicted = verdict.outcome == "inconsistent"
    if usable and not convicted:
        return Synchrony("synchronised", sum(s.scores.evidence for s in usable if s.scores))
    if not usable:
        unseeded = sum(s.seed_free.used for s in scored if s.seed_free is not None)
        return Synchrony("neither" if convicted else "distribution-lossless", unseeded) if unseeded else None
    return _look(usable, verdict, reference)


def _look(usable: Sequence[Scored], verdict: Verdict, reference: Reference) -> Synchrony | None:
    chosen = _first_tokens([s for s in usable if not s.trace.sampling.ruled])
    requests = [replace(prepare(s.trace, reference), speculated=None) for s in chosen]
    if not requests or verdict.profile is None:
        return None
    laws = list(reference.runner.laws(requests))
    p = np.exp(np.concatenate([law.log_probability for law in laws]))
    matched = sum(s.scores.matched for s in chosen if s.scores)
    free = seed_free_evidence([reduce_law(law) for law in laws], verdict.profile.calibration)
    outside = max((e.log_e for e in verdict.evidence if e.name == "outside-support"), default=0.0)
    against = max(np.logaddexp(free.log_e_surprise, free.log_e_rank) - math.log(2.0), outside)
    answer = Synchrony("neither", len(p), matched / len(p), float(p.mean()))
    if against >= -math.log(verdict.alpha):
        return answer
    if any(is_speculated(s.trace) for s in chosen):
        return None  # how often unrelated draws would be admissible is not worked out
    if matched - p.sum() <= _SURELY * math.sqrt(float((p * (1.0 - p)).sum())):
        return replace(answer, found="distribution-lossless")
    counts = _admitted(chosen, requests, reference)
    if counts is None:
        return answer
    unexpected, admitted = counts
    found: Found = "distribution-lossless" if admitted >= _ADMITTED * unexpected else "neither"
    return replace(answer, found=found, unexpected=unexpected, admitted=admitted)


def _first_tokens(scored: Sequence[Scored]) -> list[Scored]:
    chosen: list[Scored] = []
    tokens = 0
    for s in scored:
        if tokens >= _LOOK_TOKENS:
            break
        chosen.append(s)
        tokens += s.scores.tokens if s.scores else 0
    return chosen


def _admitted(
    chosen: Sequence[Scored], requests: Sequence[Request], reference: Reference
) -> tuple[int, int] | None:
    """Tokens that plain sampling does not return, and how many of them speculation may; None if unknown."""
    try:
        rules = [
            find_rule("standard", r.scheme, s.trace.engine.version)
            for r, s in zip(requests, chosen, strict=True)
        ]
    except NoiseUnknownError:
        return None
    speculated = [
        replace(r, speculated=Speculated(rule, None)) for r, rule in zip(requests, rules, strict=True)
    ]
    unexpected = admitted = 0
    for s, rows in zip(chosen, reference.runner.score(speculated), strict=True):
        misses = np.array([t for t, _, _ in s.scores.misses], np.int64) if s.scores else np.zeros(0, np.int64)
        unexpected += len(misses)
        admitted += int(rows.matched[misses].sum())
    return unexpected, admitted
