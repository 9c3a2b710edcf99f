"""Detection against tokens seen, by requests drawn with replacement; the published mean margin beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from auditor.evidence import Calibration, margin_log_e, outside_log_e
from auditor.gathering import Evidence, fused_log_e
from auditor.matrix.rows import F64, Reduced
from auditor.noise_model import log_likelihoods

SIZES = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 90, 128, 180, 256, 362, 512)
AUDITS, HONEST_AUDITS = 400, 2_000
HONEST_DRAWS = 4_000
PUBLISHED_CLIP = 0.5
_SEED = 43_000_000


@dataclass(frozen=True, slots=True)
class Curve:
    """Power against sample size.

    Attributes:
        tokens: mean tokens at each size. fused, published: share of `AUDITS` logs convicted.
    """

    tokens: tuple[int, ...]
    fused: tuple[float, ...]
    published: tuple[float, ...]

    def needed(self, wanted: float, which: str = "fused") -> int | None:
        """Tokens of the smallest size from which on the share stays at `wanted`; None if there is none."""
        shares = getattr(self, which)
        short = [n for n, share in enumerate(shares) if share < wanted]
        first = short[-1] + 1 if short else 0
        return None if first == len(shares) else self.tokens[first]

    def interval(self, wanted: float) -> tuple[int | None, int | None]:
        """Tokens at which the upper, then the lower, 95 % bound of the share reaches `wanted`."""
        sides = ([bound(share)[side] for share in self.fused] for side in (1, 0))
        first, last = (
            next((t for t, s in zip(self.tokens, shares, strict=True) if s >= wanted), None)
            for shares in sides
        )
        return first, last


def bound(share: float, total: int = AUDITS) -> tuple[float, float]:
    """Two-sided 95 % Clopper-Pearson interval of a share of `total` audits."""
    low, high = binomtest(round(share * total), total).proportion_ci(0.95)
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Honest:
    """What honest requests of one kind of traffic say, for every row that is held against them.

    Attributes:
        calibration: of the fused e-value. outside, filtered: their tokens outside their filters, of how many.
        published: their clipped margins' sum and their tokens, each by request.
    """

    calibration: Calibration
    outside: int
    filtered: int
    published: tuple[F64, F64]

    @classmethod
    def of(cls, requests: Sequence[Reduced]) -> Honest:
        """From calibration requests."""
        return cls(
            Calibration.of_grids(log_likelihoods(r.counts for r in requests)),
            sum(r.outside for r in requests),
            sum(r.filtered for r in requests),
            _clipped(requests),
        )


def detection_curve(
    honest: Honest,
    audited: Sequence[Reduced],
    alpha: float,
    *,
    audits: int = AUDITS,
    sizes: Sequence[int] = SIZES,
) -> Curve:
    """Share of simulated logs of each size that the fused e-value convicts at `alpha`.

    Args:
        honest: requests of the same traffic. audited: requests of one provider.
        audits: simulated logs of each size.
    """
    generator = np.random.default_rng(_SEED)
    grids = log_likelihoods(r.counts for r in audited)
    flat = grids.reshape(len(grids), -1)
    edges = np.array([[r.outside, r.filtered] for r in audited], np.float64)
    fused, tokens = [], []
    length = float(np.mean([r.counts.tokens for r in audited]))
    for size in sizes:
        weights = generator.multinomial(size, np.full(len(audited), 1 / len(audited)), size=audits)
        margins = margin_log_e(honest.calibration, (weights @ flat).reshape(audits, *grids.shape[1:]))
        totals = weights @ edges
        log_e = [_log_e(own, honest, edge) for own, edge in zip(margins, totals, strict=True)]
        fused.append(float((np.array(log_e) >= -math.log(alpha)).mean()))
        tokens.append(round(size * length))
    return Curve(tuple(tokens), tuple(fused), tuple(_published(honest, audited, alpha, sizes)))


def _log_e(margins: float, honest: Honest, edges: F64) -> float:
    evidence = [Evidence("token-difr", 0.0, float(margins))]
    if honest.filtered and edges[1]:
        log_e = outside_log_e(honest.outside, honest.filtered, int(edges[0]), int(edges[1]))
        evidence.append(Evidence("outside-support", 0.0, log_e))
    return fused_log_e(evidence)


def _clipped(requests: Sequence[Reduced]) -> tuple[F64, F64]:
    clipped = [float(np.minimum(r.margins, PUBLISHED_CLIP).sum()) for r in requests]
    return np.array(clipped), np.array([r.counts.tokens for r in requests], np.float64)


def _published(honest: Honest, audited: Sequence[Reduced], alpha: float, sizes: Sequence[int]) -> list[float]:
    """The mean margin clipped at 0.5, at the best threshold there is: the honest pool's own quantile."""
    generator = np.random.default_rng(_SEED + 1)
    (own, own_tokens), (cheating, tokens) = honest.published, _clipped(audited)
    shares = []
    for size in sizes:
        draw = generator.integers(len(own), size=(HONEST_DRAWS, size))
        null = own[draw].sum(axis=1) / own_tokens[draw].sum(axis=1)
        draw = generator.integers(len(cheating), size=(AUDITS, size))
        seen = cheating[draw].sum(axis=1) / tokens[draw].sum(axis=1)
        shares.append(float((seen > np.quantile(null, 1 - alpha)).mean()))
    return shares
