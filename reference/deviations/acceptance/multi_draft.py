"""K-SEQ: k independent drafts of one position, scanned in order; lossless, and decided by no seed.

Accept x with min(1, p(x) / (rho q(x))), where rho in [1, k] solves 1 - (1 - beta)^k = rho beta and beta is
the chance of accepting one draft; if all fall, draw from what is left of p. Source: SpecTr, arXiv 2310.15141.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from auditor.kernels.splitmix import F64
from auditor.reference.deviations.acceptance.rules import At, sampled

_HALVINGS = 60


def k_seq(p: F64, q: F64, drafts: Sequence[int], coins: Sequence[float], last: float) -> int:
    """The token returned.

    Args:
        p, q: float64 [V]. drafts: drawn from q independently. coins: one for each.
        last: uniform, for the draw when every draft was turned down.
    """
    rho = ratio(p, q, len(drafts))
    for draft, coin in zip(drafts, coins, strict=True):
        if coin < min(1.0, p[draft] / (rho * q[draft])):
            return draft
    beta = accepted(p, q, rho)
    taken = np.minimum(q, p / rho) * ((1 - (1 - beta) ** len(drafts)) / beta if beta > 0 else 0.0)
    left = np.maximum(p - taken, 0.0)
    left = left if left.any() else p
    place = int(np.searchsorted(np.cumsum(left) / left.sum(), last, side="right"))
    return min(place, len(p) - 1)


def accepted(p: F64, q: F64, rho: float) -> float:
    """Chance that one draft of q is accepted."""
    return float(np.minimum(q, p / rho).sum())


def ratio(p: F64, q: F64, drafts: int) -> float:
    """The rho that makes the scan lossless."""
    low, high = 1.0, float(drafts)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        beta = accepted(p, q, middle)
        low, high = (middle, high) if 1 - (1 - beta) ** drafts > middle * beta else (low, middle)
    return high


@dataclass(frozen=True, slots=True)
class KSeq:
    """The scan as a rule: it draws `drafts` tokens of q by coins of its own, whatever was proposed."""

    drafts: int = 4

    def accept(self, p: F64, q: F64 | None, draft: int, coin: float, at: At) -> bool:
        """As `Acceptance`: the scan is all in `instead`."""
        del p, q, draft, coin, at
        return False

    def instead(self, p: F64, q: F64 | None, draft: int, at: At) -> int:
        """As `Acceptance`."""
        del draft
        if q is None:
            return sampled(p, at.noise)
        generator = np.random.default_rng(int(at.noise[:1].view(np.uint64)[0]))
        drafts = generator.choice(len(q), size=self.drafts, p=q).tolist()
        return k_seq(p, q, drafts, generator.random(self.drafts).tolist(), generator.random())
