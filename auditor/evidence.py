"""E-values: how many times likelier the audited log is under cheating than under any honest explanation.

An e-value has expectation at most 1 when the provider is honest, so `e >= 1/alpha` happens with
probability at most alpha (Markov), and 1/e is a p-value. Both tests here are *universal inference*
(Wasserman, Ramdas, Balakrishnan, PNAS 2020) on calibration and audit together: the numerator averages
over cheating providers, the denominator takes the best honest explanation of both samples at once. That
is how the size of the calibration enters: a small profile leaves honest explanations open, which caps the
e-value of subtle evidence while gross evidence still convicts. The numerator's prior of honest noise is
learned from an eighth of the calibration, which then is no part of the likelihoods: against a prior that has
to allow for every scale this saves about three nats, half a miss, at the price of that eighth.

The honest set is wider than "same noise as calibrated": it allows the audited noise scale one grid step
(a factor 1.26) more, since honest kernels and batch shapes differ a little among themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import betaln, logsumexp, xlogy

from auditor.noise_model import F64, GROSS_RATES, I64, SCALES, RequestCounts, log_likelihoods

TOLERATED_STEPS = 1
"""Grid steps (ten a decade) by which an honest provider's noise scale may exceed the calibrated one."""

_WORSE_STEPS = (3, 5, 8, 11, 15, 20, 26, 33)  # cheating: noise scale times 2, 3.2, ... 2000
_WORSE_RATES = (5, 6, 7, 8, 9, 10)  # cheating: gross misses at 0.1 % ... 30 %
_NEGLIGIBLE = 40.0  # nats
ANY_HONEST_SCALE = 0.55
ANY_HONEST_RATE = 3e-3
"""What any numeric recipe may do to logits and tokens, where its own noise is not known."""
Rates = tuple[tuple[float, float], tuple[float, float]]
OUTSIDE_PRIOR: Rates = ((0.5, 150.0), (1.0, 60.0))
"""Beta priors of an honest and of a cheating provider's rate of tokens outside the filters: below 1 in 100,
and about 1 in 60. Rates that they did not expect cost evidence, never validity."""
STOP_PRIOR: Rates = ((0.5, 0.5), (0.5, 0.5))
"""The same of requests that end against their own parameters: rare or all of them."""


_PRIOR_EVERY = 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """Honest requests, as the tests use them.

    Attributes:
        prior: log-weights [S, PI] of honest (s, pi), of unit mass, learned from every eighth request.
        grid: summed log-likelihood [S, PI] of the others.
    """

    prior: F64
    grid: F64

    @classmethod
    def of(cls, requests: Iterable[RequestCounts]) -> Calibration:
        """From a profile's honest requests."""
        return cls.of_grids(log_likelihoods(requests))

    @classmethod
    def of_grids(cls, grids: F64) -> Calibration:
        """From each request's log-likelihoods, [R, S, PI]."""
        early = np.arange(len(grids)) % _PRIOR_EVERY == 0
        return cls._of_sums(grids[early].sum(axis=0), grids[~early].sum(axis=0))

    @classmethod
    def _of_sums(cls, early: F64, others: F64) -> Calibration:
        prior = log_prior() + early
        return cls(np.asarray(prior - logsumexp(prior)), np.asarray(others))

    @classmethod
    def leaving_one_out(cls, grids: F64) -> Iterator[Calibration]:
        """For each request, `of_grids` of the others: two running sums, for calibrations are long."""
        total = grids.sum(axis=0)
        # What sets the prior: of the requests before the one left out every eighth, of those behind it,
        # which move up by a place, the next of each.
        before, behind = np.zeros_like(total), grids[1::_PRIOR_EVERY].sum(axis=0)
        for i, own in enumerate(grids):
            if i % _PRIOR_EVERY == 1:
                behind = behind - own
            early = before + behind
            yield cls._of_sums(early, total - own - early)
            if i % _PRIOR_EVERY == 0:
                before = before + own

    @property
    def posterior(self) -> F64:
        """Log-weights of honest (s, pi) given every request, of unit mass."""
        weights = self.prior + self.grid
        return np.asarray(weights - logsumexp(weights))


def log_prior() -> F64:
    """Prior of honest (s, pi) before any request, [S, PI]: flat in ln s, rare gross misses favoured."""
    rates = 1.0 / (1.0 + np.arange(len(GROSS_RATES))) ** 2
    prior = np.ones(len(SCALES))[:, None] * (rates / rates.sum())[None, :]
    return np.asarray(np.log(prior / prior.sum()))


def _shift_scale(grid: F64, steps: int) -> F64:
    """`grid` [..., S, PI] read at a noise scale `steps` grid steps up (the last scale repeats)."""
    index = np.minimum(np.arange(len(SCALES)) + steps, len(SCALES) - 1)
    return np.asarray(grid[..., index, :])


def margin_log_e(calibration: Calibration, audited: F64) -> F64:
    """Log e-value of the audited margins and slacks.

    Args:
        audited: log-likelihood grids [..., S, PI] of audited logs (each summed over its requests).

    Returns:
        float64 [...].
    """
    tolerated = _shift_scale(audited, TOLERATED_STEPS)
    honest = np.maximum.accumulate(np.maximum.accumulate(tolerated, axis=-2), axis=-1)
    denominator = (calibration.grid + honest).max(axis=(-2, -1))
    prior = calibration.prior + calibration.grid
    # The numerator may leave out scales that the calibration rules out; that only lowers it.
    rows = np.flatnonzero(prior.max(axis=1) > prior.max() - _NEGLIGIBLE)
    numerator = logsumexp(prior[rows] + _alternative(audited, rows), axis=(-2, -1))
    return np.asarray(numerator - denominator)


def uncalibrated_log_e(audited: F64) -> F64:
    """Log e-value of the audited margins where nobody calibrated the provider's recipe.

    Honest is then any noise that a numeric recipe was ever seen to make, with room above it: a scale up to
    `ANY_HONEST_SCALE` and a gross-miss rate up to `ANY_HONEST_RATE`. Bfloat16 engines have 0.02 logits, an
    fp8 cache 0.12, int4 weights 0.36; another seed or another model has more. It takes for granted that the
    engine's noise is replayed right, which a calibration would have shown: reason to look, not to accuse.

    Args:
        audited: log-likelihood grids [..., S, PI] of audited logs.

    Returns:
        float64 [...].
    """
    honest = (SCALES <= ANY_HONEST_SCALE)[:, None] & (GROSS_RATES <= ANY_HONEST_RATE)
    best = np.where(honest, audited, -np.inf).max(axis=(-2, -1))
    cheating = logsumexp(audited[..., ~honest], axis=-1) - np.log((~honest).sum())
    return np.asarray(cheating - best)


def _alternative(audited: F64, rows: I64) -> F64:
    """Log-likelihood of the audited log averaged over cheating providers, for each honest (s, pi).

    Its shape is [..., rows, PI].
    """
    more_misses = np.full_like(audited, -np.inf)  # sum over gross-miss rates above pi, at each scale
    for rate in range(len(GROSS_RATES) - 2, -1, -1):
        more_misses[..., rate] = more_misses[..., rate + 1]
        if rate + 1 in _WORSE_RATES:
            more_misses[..., rate] = np.logaddexp(more_misses[..., rate], audited[..., rate + 1])
    total = more_misses[..., rows, :]
    for steps in _WORSE_STEPS:
        index = np.minimum(rows + steps, len(SCALES) - 1)
        noisier = np.logaddexp(audited[..., index, :], more_misses[..., index, :])
        total = np.logaddexp(total, noisier)
    count = (1 + len(_WORSE_STEPS)) * (1 + len(_WORSE_RATES)) - 1
    return np.asarray(total - np.log(count))


def outside_log_e(
    calibration_outside: int,
    calibration_filtered: int,
    outside: int,
    filtered: int,
    priors: Rates = OUTSIDE_PRIOR,
) -> float:
    """Log e-value of tokens outside the request's filters, beyond what rounding at the edge explains.

    A two-sample binomial test by universal inference: Beta-mixed rates above, the best common rate below.
    Without filtered tokens on one side it says nothing (0).
    """
    if not calibration_filtered or not filtered:
        return 0.0
    (c, d), (a, b) = priors
    honest = betaln(c + calibration_outside, d + calibration_filtered - calibration_outside) - betaln(c, d)
    cheating = betaln(a + outside, b + filtered - outside) - betaln(a, b)
    both, n = calibration_outside + outside, calibration_filtered + filtered
    pooled = both / n
    if outside * calibration_filtered <= calibration_outside * filtered:
        return min(0.0, float(honest + cheating))  # fewer than calibrated: nothing to accuse
    return float(honest + cheating - xlogy(both, pooled) - xlogy(n - both, 1 - pooled))


def smallest_alpha(calibration: Calibration, factor_steps: int) -> float:
    """The smallest false-alarm rate at which noise `factor_steps` grid steps above honest can ever convict.

    However long the audited log, "the calibrated scale was really that large" stays an honest
    explanation whose likelihood the calibration alone decides.
    """
    excuse = _shift_scale(calibration.grid, factor_steps - TOLERATED_STEPS)
    best = np.unravel_index(calibration.grid.argmax(), calibration.grid.shape)
    support = logsumexp(calibration.prior + calibration.grid) - float(excuse[best])
    return float(np.exp(min(0.0, -support)))
