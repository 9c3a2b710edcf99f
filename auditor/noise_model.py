"""The honest null: how numeric noise turns slack into mismatches, whatever the traffic.

An honest provider's logits differ from the reference's by rounding. A token whose *slack* is d (the least
logit movement that makes another token win, `reference/head.py`) then mismatches with a probability that
falls with d on the scale of that noise. Margins of honest traffic depend on prompts and sampling
parameters; the noise scale does not, so the null is stated given the slacks and carries over from one
traffic to another.

Model of one token, given slack d and parameters (s, pi):

    P(mismatch) = (1 - pi) / (1 + exp(d / s)) + pi

s is the noise scale in logits (logistic tail: heavier than normal); pi is the rate of gross misses that
rounding cannot explain. A miss by noise mostly lands on the nearest alternative (margin = slack); a gross
miss lands anywhere. Requests differ in their noise, so s carries a log-normal random effect for each
request: evidence adds up by request, not by token.

Slacks and margins are counted in log-spaced bins, which makes a request a handful of counts and every
likelihood a table look-up over a grid of (s, pi).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BINS_PER_DECADE = 6
_LOWEST = -6  # a slack below a millionth of a logit is a tie
_DECADES = 8
BINS = BINS_PER_DECADE * _DECADES + 1
"""Bin 0 holds everything below 1e-6 logits; the last one everything above 10**(2 - 1/6), infinity too."""

SCALES: F64 = 10.0 ** np.linspace(-6.0, 1.0, 71)
"""Grid of noise scales s, ten a decade."""
SCALE_STEP = float(np.log(SCALES[1] / SCALES[0]))
GROSS_RATES: F64 = np.array([1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1])
"""Grid of gross-miss rates pi."""

_REQUEST_SPREAD = 0.3  # standard deviation of ln s between requests
_SHIFTS = np.arange(-2, 3)
_NEAREST_SHARE = 0.85  # of misses by small noise; honest recorded engines show 0.90 to 1.00
_CROWDING = 0.7  # how fast other alternatives come into reach as s grows, per logit
GROSS_FROM = 0.1  # logits; gross misses spread evenly over the log-spaced bins from here on


def bin_of(values: F64) -> I64:
    """Bin index of each slack or margin (logits, >= 0, may be infinite)."""
    with np.errstate(divide="ignore"):
        place = np.floor((np.log10(values) - _LOWEST) * BINS_PER_DECADE) + 1
    return np.asarray(np.clip(place, 0, BINS - 1), dtype=np.int64)


def bin_centres() -> F64:
    """Representative logits of each bin (bin 0: zero)."""
    exponent = _LOWEST + (np.arange(BINS) - 0.5) / BINS_PER_DECADE
    centres = 10.0**exponent
    centres[0] = 0.0
    return np.asarray(centres, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """One request, reduced: how many tokens, and what happened at which slack.

    Attributes:
        tokens: output tokens scored.
        matched: {slack bin: matches}.
        missed: {(slack bin, margin bin): mismatches}.
    """

    tokens: int
    matched: dict[int, int]
    missed: dict[tuple[int, int], int]

    @property
    def mismatches(self) -> int:
        """Tokens that the reference would not have returned."""
        return sum(self.missed.values())


def count_request(slack: F64, margin: F64, matched: Bools) -> RequestCounts:
    """Reduce one request's positions (arrays [n]) to counts."""
    slack_bin, margin_bin = bin_of(slack), bin_of(margin)
    ids, counts = np.unique(slack_bin[matched], return_counts=True)
    missed: dict[tuple[int, int], int] = {}
    for d, m in zip(slack_bin[~matched].tolist(), margin_bin[~matched].tolist(), strict=True):
        # Bins are compared upwards; rounding may put a margin a hair below its slack.
        missed[(d, max(d, m))] = missed.get((d, max(d, m)), 0) + 1
    matches = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    return RequestCounts(tokens=len(slack), matched=matches, missed=missed)


@cache
def _tables() -> tuple[F64, F64]:
    """Log-likelihoods: of a match [slack bin, S, PI], and of a miss [slack bin, margin bin, S, PI]."""
    centre = bin_centres()
    with np.errstate(over="ignore"):
        flip = 1.0 / (1.0 + np.exp(centre[:, None] / SCALES))  # [B, S]
    miss = (1 - GROSS_RATES) * flip[:, :, None] + GROSS_RATES
    log_match = np.log1p(-miss)
    nearest = _NEAREST_SHARE / (1.0 + _CROWDING * SCALES)
    width = np.maximum(centre, centre[1])
    with np.errstate(under="ignore"):
        density = width[:, None] * np.exp(-np.minimum(centre[:, None] / SCALES, 690.0))  # [M, S]
    log_miss = np.full((BINS, BINS, len(SCALES), len(GROSS_RATES)), -np.inf)
    gross_bins = centre >= GROSS_FROM
    for d in range(BINS):
        above = np.where(np.arange(BINS)[:, None] > d, density, 0.0)
        total = above.sum(axis=0)
        spread = np.divide(above, total, out=np.zeros_like(above), where=total > 0)
        spread[d] = np.where(total > 0, 0.0, 1.0)
        by_noise = flip[d] * (1 - nearest) * spread
        by_noise[d] += flip[d] * nearest
        gross = (gross_bins & (np.arange(BINS) >= d)).astype(np.float64)
        gross = gross / gross.sum() if gross.any() else np.eye(BINS)[d]
        mixed = (1 - GROSS_RATES) * by_noise[:, :, None] + GROSS_RATES * gross[:, None, None]
        with np.errstate(divide="ignore"):
            log_miss[d] = np.log(mixed)
    return log_match, np.maximum(log_miss, -745.0)


def request_log_likelihood(request: RequestCounts) -> F64:
    """Log-likelihood of one request over the grid, [S, PI], its random effect integrated out."""
    log_match, log_miss = _tables()
    total = np.zeros((len(SCALES), len(GROSS_RATES)))
    for d, count in request.matched.items():
        total += count * log_match[d]
    for (d, m), count in request.missed.items():
        total += count * log_miss[d, m]
    weights = np.exp(-0.5 * (_SHIFTS * SCALE_STEP / _REQUEST_SPREAD) ** 2)
    weights /= weights.sum()
    index = np.clip(np.arange(len(SCALES))[None, :] + _SHIFTS[:, None], 0, len(SCALES) - 1)
    shifted = total[index]  # [shift, S, PI]
    top = shifted.max(axis=0)
    return np.asarray(top + np.log((weights[:, None, None] * np.exp(shifted - top)).sum(axis=0)))


def log_likelihoods(requests: Iterable[RequestCounts]) -> F64:
    """One grid for each request, [R, S, PI]."""
    grids = [request_log_likelihood(r) for r in requests]
    return np.stack(grids) if grids else np.zeros((0, len(SCALES), len(GROSS_RATES)))


@dataclass(frozen=True, slots=True)
class Slips:
    """One request beside a guess at every token, which may have been returned in place of the honest one.

    Attributes:
        resisted: tokens that match although the guess was another.
        taken: {(slack bin, margin bin): mismatches that are the guess}.
    """

    counts: RequestCounts
    resisted: int
    taken: dict[tuple[int, int], int]

    @classmethod
    def to_runner_up(cls, counts: RequestCounts) -> Slips:
        """The guess is always the second best token: whose margin is the slack."""
        taken = {(d, m): count for (d, m), count in counts.missed.items() if d == m}
        return cls(counts, sum(counts.matched.values()), taken)

    @classmethod
    def of(
        cls, slack: F64, margin: F64, matched: npt.NDArray[np.bool_], guess: npt.NDArray[np.bool_]
    ) -> Slips:
        """From a request's positions, arrays [n]; `guess`: whether the returned token is the guess."""
        slips = guess & ~matched
        taken = count_request(slack[slips], margin[slips], matched[slips]).missed
        return cls(count_request(slack, margin, matched), int((matched & ~guess).sum()), taken)


def slip_log_likelihoods(requests: Iterable[Slips], rates: F64) -> F64:
    """Log-likelihood of requests together if, beside noise, the guess is returned now and then.

    Args:
        rates: at which it is, whatever its distance, [K].

    Returns:
        [S, PI, K].
    """
    log_match, log_miss = _tables()
    stays, slips = np.log1p(-rates), np.log(rates)
    total = np.zeros((len(SCALES), len(GROSS_RATES), len(rates)))
    for request in requests:
        total += request.resisted * stays
        for d, count in request.counts.matched.items():
            total += count * log_match[d][..., None]
        for (d, m), count in request.counts.missed.items():
            taken = request.taken.get((d, m), 0)
            by_noise = log_miss[d, m][..., None] + stays
            total += (count - taken) * by_noise + taken * np.logaddexp(by_noise, slips)
    return total
