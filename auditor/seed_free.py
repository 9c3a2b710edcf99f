"""Evidence from token ids without a replayable seed: is the text as surprising as its model makes it? Pure.

Two questions about each token, given its prefix:

* *surprise*: is -log p(token) what the entropy of its row lets expect? Rivals are the same distribution
  sharpened or flattened (`row_law.TILTS`), which is what a wrong temperature does, and roughly what noise
  from quantization, another prompt or another model does to likelihoods.
* *rank*: is the probability integral transform uniform? u = (mass above the token) + V p(token), tokens in
  falling probability, V uniform (compare the rank-based uniformity test, Zhu et al., arXiv 2506.06975).
  Rivals are densities b u^(b-1) and b (1-u)^(b-1). V is integrated out: a rival rates the token by the mass
  it gives the token's whole interval, so nothing is drawn at random here.

**Guarantee.** A rival q earns q(token) / p(token) on each token, capped at `CAP`; each factor has
expectation at most 1 if the provider draws from p. An honest provider does not: its logits carry rounding
noise of scale s, and a share pi of its tokens may be grossly off (`noise_model.py`). For such a provider
E[factor] <= 1 + sd_p(q/p) * sd_p(p_provider/p) + pi * CAP by the Cauchy-Schwarz inequality, and every factor
is divided by that bound. Then the product over tokens is an e-process whatever prompts, parameters and text;
it needs no honest sample of the same traffic. sd_p(p_provider/p) is taken as `_SPREAD` * s: differences of
two logits' noise are logistic with scale s, of standard deviation 1.81 s, so one logit's about its row's
mean is 1.28 s; the larger figure leaves a factor 1.4 for requests noisier than usual.

s and pi are not known but calibrated. The least e-value counts over all (s, pi) against which the
calibration's own e-value (`evidence.py`: likelihood averaged over the prior, over likelihood) stays below
1/`_MISS`; the true pair is outside that set with probability at most `_MISS`. The result is capped at
`LARGEST` and divided by 1 + `LARGEST` * `_MISS`: then its expectation is at most 1 with the calibration's
luck included, and no alpha below 1/`LARGEST` can be reached.

**Rows left out.** Where rounding could move a token across a filter's edge, p and the provider's
distribution have different supports and no such bound holds. Those rows, known from the prefix alone, earn 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from auditor.evidence import TOLERATED_STEPS, Calibration
from auditor.noise_model import F64, GROSS_RATES, SCALES
from auditor.reference.row_law import TILTS, RowLaw

CAP = 2.0
"""Largest factor that one token may earn."""

LARGEST = 1e6
"""The e-value is not stated beyond this."""

RANK_POWERS = (1.1, 1.25, 1.5, 2.0)
HISTOGRAM_BINS = 10

_MISS = 1e-8
_SPREAD = float(np.pi / np.sqrt(3.0))
_EDGE_LOGITS = 0.5  # rows whose filter edge is nearer are left out


@dataclass(frozen=True, slots=True)
class SeedFree:
    """One request, reduced.

    Attributes:
        tokens: output tokens. used: those that could earn something. outside: tokens that the filters exclude
            by more than rounding explains.
        surprise, entropy: sums of -log p and of the rows' entropies over the tokens used, nats.
        histogram: expected number of u in each tenth of [0, 1].
        log_bets: summed log factors, surprise rivals then rank rivals.
        spreads: summed sd_p(q/p) of the same rivals.
    """

    tokens: int
    used: int
    outside: int
    surprise: float
    entropy: float
    histogram: tuple[float, ...]
    log_bets: tuple[float, ...]
    spreads: tuple[float, ...]


def reduce_law(law: RowLaw) -> SeedFree:
    """Reduce one request's rows."""
    far = law.edge_gap >= _EDGE_LOGITS
    inside = np.isfinite(law.log_probability)
    use = far & inside
    p, above = np.exp(law.log_probability[use]), law.above[use]
    rank_bets, rank_spreads = _rank_rivals(above, p)
    bets = np.concatenate([law.log_ratio[use], rank_bets], axis=1)
    spreads = np.concatenate([law.spread[use], np.broadcast_to(rank_spreads, rank_bets.shape)], axis=1)
    edges = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)
    low, high = np.minimum(above, 1.0), np.minimum(above + p, 1.0)
    width = np.maximum(high - low, 1e-300)[:, None]
    overlap = np.clip(np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1]), 0.0, None)
    return SeedFree(
        tokens=len(law.entropy),
        used=int(use.sum()),
        outside=int((far & ~inside).sum()),
        surprise=float(-law.log_probability[use].sum()),
        entropy=float(law.entropy[use].sum()),
        histogram=tuple((overlap / width).sum(axis=0).tolist()),
        log_bets=tuple(np.minimum(bets, np.log(CAP)).sum(axis=0).tolist()),
        spreads=tuple(spreads.sum(axis=0).tolist()),
    )


def _rank_rivals(above: F64, p: F64) -> tuple[F64, F64]:
    """Log factors [n, 2K] of the rivals of rank, and a bound on their spread [2K].

    A factor is the mean of the rival's density over the token's interval, so its second moment is at most
    the density's own, b^2 / (2b - 1).
    """
    low, high = np.clip(above, 0.0, 1.0), np.clip(above + p, 0.0, 1.0)
    columns = []
    with np.errstate(divide="ignore"):
        for start, stop in ((low, high), (1.0 - high, 1.0 - low)):
            width = np.maximum(stop - start, 0.0)
            for b in RANK_POWERS:
                # Differences of nearly equal powers lose their digits: there the density stands for the mean.
                narrow = width < 1e-7
                mean = (stop**b - start**b) / np.where(narrow, 1.0, width)
                columns.append(np.log(np.where(narrow, b * (0.5 * (start + stop)) ** (b - 1.0), mean)))
    spread = np.sqrt([b * b / (2.0 * b - 1.0) - 1.0 for b in RANK_POWERS])
    return np.stack(columns, axis=1), np.concatenate([spread, spread])


@dataclass(frozen=True, slots=True)
class SeedFreeEvidence:
    """What the audited requests say together.

    Attributes:
        excess: mean of -log p minus entropy over the tokens used, nats a token; 0 is expected.
        distance: largest gap between the distribution of u and the uniform one, at tenths.
        log_e_surprise, log_e_rank: logs of the e-values.
    """

    tokens: int
    used: int
    excess: float
    distance: float
    log_e_surprise: float
    log_e_rank: float


def seed_free_evidence(requests: Sequence[SeedFree], calibration: Calibration) -> SeedFreeEvidence:
    """Both tests over all requests.

    Args:
        requests: at least one.
        calibration: the profile's honest requests.
    """
    used = sum(r.used for r in requests)
    bets = np.sum([r.log_bets for r in requests], axis=0)
    spreads = np.sum([r.spreads for r in requests], axis=0)
    counts = np.sum([r.histogram for r in requests], axis=0)
    share = np.cumsum(counts) / max(counts.sum(), 1e-300)
    uniform = np.arange(1, HISTOGRAM_BINS + 1) / HISTOGRAM_BINS
    first = len(TILTS)
    return SeedFreeEvidence(
        tokens=sum(r.tokens for r in requests),
        used=used,
        excess=sum(r.surprise - r.entropy for r in requests) / used if used else 0.0,
        distance=float(np.abs(share - uniform).max()) if used else 0.0,
        log_e_surprise=_log_e(bets[:first], spreads[:first], used, calibration),
        log_e_rank=_log_e(bets[first:], spreads[first:], used, calibration),
    )


def _log_e(bets: F64, spreads: F64, used: int, calibration: Calibration) -> float:
    """Log of the mean over rivals of discounted bets, at the noisiest honest (s, pi) still possible."""
    if not used:
        return 0.0
    noise = _SPREAD * SCALES[np.minimum(np.arange(len(SCALES)) + TOLERATED_STEPS, len(SCALES) - 1)]
    # log is concave, so the mean spread's discount, `used` times, is at least the sum of the rows' own.
    slack = spreads[:, None, None] / used * noise[:, None] + GROSS_RATES * CAP
    earned = logsumexp(bets[:, None, None] - used * np.log1p(slack), axis=0) - np.log(len(bets))
    possible = logsumexp(calibration.prior + calibration.grid) - calibration.grid < -np.log(_MISS)
    return float(min(earned[possible].min(), np.log(LARGEST)) - np.log1p(LARGEST * _MISS))
