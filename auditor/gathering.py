"""Tests of a group of traces, and their fusion into one e-value. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import logsumexp

from auditor.evidence import STOP_PRIOR, margin_log_e, outside_log_e
from auditor.noise_model import F64, request_log_likelihood
from auditor.profile import Profile
from auditor.rank_evidence import rank_log_e
from auditor.replay import Scored
from auditor.seed_free import seed_free_evidence
from auditor.text_only import is_text_only

STOP_DECISIONS = "stop-decisions"
"""Name of the test of how outputs end (`stop_decisions.py`); its unit is traces, not tokens."""

_STOP_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Evidence:
    """One test. `statistic` is in the unit that `name` implies; `log_e` is the log of its e-value."""

    name: str
    statistic: float
    log_e: float


@dataclass
class Tally:
    """Running sums over requests that were scored: all that the tests need but the likelihood grid.

    Attributes:
        clipped_margins: summed margins, winsorised at the profile's clip, logits.
        ends: requests whose end contradicts them.
        distances: kind of activation fingerprint -> one distance for each request that has one.
    """

    requests: int = 0
    tokens: int = 0
    clipped_margins: float = 0.0
    outside: int = 0
    filtered: int = 0
    ends: int = 0
    distances: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, usable: Iterable[Scored], profile: Profile) -> Tally:
        """Of requests that were scored."""
        tally = cls()
        for scored in usable:
            tally.add(scored, profile)
        return tally

    def add(self, scored: Scored, profile: Profile) -> None:
        """Count one more request that was scored."""
        self.requests += 1
        self.ends += bool(scored.findings)
        for f in scored.fingerprints:
            self.distances.setdefault(f.kind, []).append(f.distance)
        if (scores := scored.scores) is not None:
            self.tokens += scores.evidence
            self.clipped_margins += scores.mean_margin(profile.clip) * scores.evidence
            self.outside += scores.outside
            self.filtered += scores.filtered


def gather_evidence(tally: Tally, profile: Profile, audited: F64) -> tuple[Evidence, ...]:
    """Every test of requests that were scored (at least one); fuse with `fused_log_e`.

    Args:
        audited: their log-likelihood grid, summed.
    """
    mean_margin = tally.clipped_margins / max(1, tally.tokens)
    found = [Evidence("token-difr", mean_margin, float(margin_log_e(profile.calibration, audited)))]
    if tally.filtered and profile.filtered:
        log_e = outside_log_e(profile.outside, profile.filtered, tally.outside, tally.filtered)
        found.append(Evidence("outside-support", tally.outside / tally.filtered, log_e))
    honest_requests = len(profile.honest)
    log_e = outside_log_e(profile.contradicted, honest_requests, tally.ends, tally.requests, STOP_PRIOR)
    found.append(Evidence(STOP_DECISIONS, tally.ends / tally.requests, log_e))
    for kind, honest in profile.fingerprints.items():
        distances = tally.distances.get(kind)
        if distances:
            log_e = rank_log_e(np.array(honest), np.array(distances))
            found.append(Evidence(kind, float(np.mean(distances)), log_e))
    return tuple(found)


def fused_log_e(evidence: Sequence[Evidence]) -> float:
    """Log of the weighted mean of e-values, itself an e-value: the weights do not look at the outcome.

    Ends of outputs get a twentieth, since they rarely say anything; the other tests share the rest equally.
    """
    if not evidence:
        return 0.0
    return float(fused_log_es([e.name for e in evidence], np.array([[e.log_e] for e in evidence]))[0])


def fused_log_es(names: Sequence[str], log_es: F64) -> F64:
    """`fused_log_e` of several logs that had the same tests, [tests, logs] -> [logs]."""
    others = len(names) - sum(name == STOP_DECISIONS for name in names)
    share = 1.0 - _STOP_WEIGHT * (len(names) - others)
    weights = np.array([_STOP_WEIGHT if name == STOP_DECISIONS else share / others for name in names])
    return np.asarray(logsumexp(log_es, axis=0, b=weights[:, None]))


def evidence_curve(scored: Sequence[Scored], profile: Profile, *, every: int = 1) -> F64:
    """Log e-value of the fused tests after each request, [R]: what looking early would have seen.

    Args:
        scored: requests that were scored, in the order in which they were seen.
        every: look after so many requests only, and after the last one.
    """
    tally, audited = Tally(), np.zeros(())
    curve = []
    usable = [s for s in scored if s.counts is not None]
    for number, s in enumerate(usable, 1):
        if s.counts is not None:
            tally.add(s, profile)
            audited = audited + request_log_likelihood(s.counts)
        if number % every == 0 or number == len(usable):
            curve.append(fused_log_e(gather_evidence(tally, profile, audited)))
    return np.array(curve)


def text_evidence(scored: Sequence[Scored], profile: Profile) -> tuple[tuple[Evidence, ...], tuple[str, ...]]:
    """What outputs without token ids show if they were sampled as the tokenizer splits them; never fused."""
    texts = [s.seed_free for s in scored if s.seed_free is not None and is_text_only(s.trace)]
    if not texts:
        return (), ()
    found = seed_free_evidence(texts, profile.calibration)
    either = float(np.logaddexp(found.log_e_surprise, found.log_e_rank) - math.log(2.0))
    said = (
        f"{len(texts)} traces hold text only: with the ids that the tokenizer makes of it, surprise and "
        f"rank of {found.used:,} tokens have an e-value of {math.exp(min(either, 690.0)):.2g}; "
        "those ids are assumed, so it accuses nobody"
    )
    shown = (
        Evidence("text-surprise", found.excess, found.log_e_surprise),
        Evidence("text-rank", found.distance, found.log_e_rank),
    )
    return shown, (said,)
