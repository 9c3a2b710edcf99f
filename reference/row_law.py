"""What a request's own distribution says of a claimed token, when no seed says more.

For each output position: how likely the token was, how much surprise was to be expected, where it stands in
the distribution by falling probability, and how a few other distributions would have rated it. The
distribution is the one the sampler draws from: divided by the temperature, cut by the filters, normalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from auditor.kernels.splitmix import F64
from auditor.reference.noise import FilterOrder
from auditor.reference.sampling import SamplingSpec
from auditor.reference.support import find_support

TILTS = (0.8, 0.9, 1.1, 1.25)
"""Exponents b of the rival distributions q ~ p**b: the same logits at temperature T / b."""

_CELLS = 1 << 20  # of float64 temporaries at a time


@dataclass(frozen=True, slots=True)
class RowLaw:
    """Per scored position; arrays [R].

    Attributes:
        log_probability: of the claimed token under the filtered distribution; -inf outside it.
        entropy: expected surprise -E[log p], nats.
        above: probability of all tokens that stand before the claimed one (falling logit, then rising id).
        edge_gap: logits that must move before another token enters or leaves the filters; inf unfiltered.
        log_ratio: [R, J], log of q(claimed) / p(claimed) for each of `TILTS`.
        spread: [R, J], standard deviation under p of q / p.
    """

    log_probability: F64
    entropy: F64
    above: F64
    edge_gap: F64
    log_ratio: F64
    spread: F64

    @staticmethod
    def concatenate(parts: list[RowLaw]) -> RowLaw:
        """Join tiles in order."""
        return RowLaw(*(np.concatenate([getattr(p, name) for p in parts]) for name in RowLaw.__slots__))


def row_law(
    logits: torch.Tensor, claimed: npt.NDArray[np.int64], spec: SamplingSpec, order: FilterOrder
) -> RowLaw:
    """Rate a tile whose rows share one request's parameters.

    Args:
        logits: float32 [R, V] on the CPU. claimed: int64 [R], each within [0, V).
        spec: as `effective_sampling` returns it, not greedy.
        order: how the engine applies its filters (`find_support`).
    """
    rows = max(1, _CELLS // logits.shape[1])
    parts = []
    for start in range(0, len(claimed), rows):
        tile, ids = logits[start : start + rows], claimed[start : start + rows]
        if spec.filtered:
            support = find_support(tile, ids, spec, order)
            here, last = np.arange(len(ids)), support.kept - 1
            inside = np.arange(support.ids.shape[1]) < support.kept[:, None]
            after = np.minimum(support.kept, support.ids.shape[1] - 1)
            gap = np.minimum(np.abs(support.edge[here, last]), np.abs(support.edge[here, after]))
            values = torch.from_numpy(np.where(inside, support.logits, -np.inf))
            parts.append(_law(values, torch.from_numpy(support.ids), ids, spec.temperature, gap))
        else:
            every, gap = torch.arange(tile.shape[1]).expand(tile.shape), np.full(len(ids), np.inf)
            parts.append(_law(tile.double(), every, ids, spec.temperature, gap))
    return RowLaw.concatenate(parts)


def _law(
    logits: torch.Tensor,
    ids: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    temperature: float,
    gap: F64,
) -> RowLaw:
    log_p = torch.log_softmax(logits / temperature, dim=1)
    p = log_p.exp()
    names = torch.from_numpy(claimed)[:, None]
    own = torch.where(ids == names, log_p, -torch.inf).amax(dim=1)
    before = (log_p > own[:, None]) | ((log_p == own[:, None]) & (ids < names))
    # Rivals only need float32 exponentials: their rounding is far below the noise that is allowed for.
    single = log_p.float()
    sums = {b: _log_sum_power(single, b) for b in sorted({*TILTS, *(2.0 * b - 1.0 for b in TILTS)})}
    ratio = torch.stack([(b - 1.0) * own - sums[b] for b in TILTS], dim=1)
    second = torch.stack([sums[2.0 * b - 1.0] - 2.0 * sums[b] for b in TILTS], dim=1)
    return RowLaw(
        own.numpy(),
        torch.special.entr(p).sum(dim=1).numpy(),
        torch.where(before, p, 0.0).sum(dim=1).numpy(),
        gap,
        ratio.numpy(),
        torch.expm1(second).clamp(min=0.0).sqrt().numpy(),
    )


def _log_sum_power(log_p: torch.Tensor, power: float) -> torch.Tensor:
    """Log sum p**power over the support, float64 [R]; the largest term is below 1, so nothing overflows."""
    return torch.exp(power * log_p).sum(dim=1, dtype=torch.float64).log()
