"""Which tokens a request's filters allow, and how far each is from the filter's edge.

Engines cut the support with top-k, top-p and min-p in different orders. In every order the tokens kept
are a prefix of the row sorted by falling logit, so one sort describes the support. A hard cut would turn
a rounding error at the edge into an infinite margin; instead each token carries a signed *edge cost* in
logit units: how much logits would have to move to put it out (positive, inside) or in (negative,
outside).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from auditor.kernels.splitmix import F64
from auditor.reference.noise import FilterOrder
from auditor.reference.sampling import SamplingSpec

# Tokens just outside the edge that stay in view as alternatives an honest provider may have drawn.
_BEYOND_EDGE = 8
_FIRST_SORT = 1024


@dataclass(frozen=True, slots=True)
class Support:
    """The head of each row in order of falling logit, cut after the last token that can matter.

    Attributes:
        ids: int64 [R, C] token ids. logits: float64 [R, C], raw (before temperature).
        kept: int64 [R], how many leading tokens the filters keep (at least 1).
        edge: float64 [R, C], signed edge cost in logit units; >= 0 inside, < 0 outside.
        claimed_column: int64 [R], where the claimed token stands, or -1 when it lies beyond column C.
        claimed_edge: float64 [R], signed edge cost of the claimed token wherever it stands.
    """

    ids: npt.NDArray[np.int64]
    logits: F64
    kept: npt.NDArray[np.int64]
    edge: F64
    claimed_column: npt.NDArray[np.int64]
    claimed_edge: F64


def find_support(
    logits: torch.Tensor, claimed: npt.NDArray[np.int64], spec: SamplingSpec, order: FilterOrder
) -> Support:
    """Apply the filters of `spec` in an engine's order.

    Args:
        logits: float32 [R, V], raw.
        claimed: int64 [R].
        order: `vllm` divides by T, then min-p, top-k, top-p; `transformers` divides by T, then top-k,
            top-p, min-p; `llama.cpp` runs top-k, top-p, min-p on unscaled logits.

    Sorting the whole vocabulary is rarely needed: a head of 1,024 tokens is tried first, and the full
    row is sorted only if the support or a claimed token reaches beyond it.
    """
    vocabulary = logits.shape[1]
    width = min(vocabulary, max(_FIRST_SORT, spec.top_k + _BEYOND_EDGE))
    scale = spec.temperature if order != "llama.cpp" else 1.0
    while True:
        values, ids = _sorted_head(logits, width)
        scaled = (values / np.float32(scale)).astype(np.float64)
        normaliser = torch.logsumexp(logits.double() / scale, dim=1).numpy()
        edge = _edge_costs(scaled, normaliser, spec, order, vocabulary) * scale
        column = _find(ids, claimed)
        kept = (edge >= 0).sum(axis=1)
        in_view = int(kept.max()) + _BEYOND_EDGE <= width and bool((column >= 0).all())
        if width == vocabulary or (in_view and _nucleus_in_view(scaled, spec, order, vocabulary)):
            break
        width = vocabulary
    columns = min(width, int(kept.max()) + _BEYOND_EDGE)
    claimed_edge = np.take_along_axis(edge, column[:, None], axis=1)[:, 0]
    column = np.where(column < columns, column, -1)
    raw = values[:, :columns].astype(np.float64)
    return Support(ids[:, :columns], raw, kept, edge[:, :columns], column, claimed_edge)


def _sorted_head(logits: torch.Tensor, width: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Largest `width` logits of each row, falling; equal logits in order of rising id."""
    if width == logits.shape[1]:
        values, ids = torch.sort(logits, dim=1, descending=True, stable=True)
        return values.numpy(), ids.numpy()
    _, ids = torch.topk(logits, width, dim=1, sorted=False)
    ids = ids.sort(dim=1).values
    values, place = torch.sort(logits.gather(1, ids), dim=1, descending=True, stable=True)
    return values.numpy(), ids.gather(1, place).numpy()


def _find(ids: npt.NDArray[np.int64], claimed: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    hit = ids == claimed[:, None]
    return np.where(hit.any(axis=1), hit.argmax(axis=1), -1)


def _nucleus_in_view(x: F64, spec: SamplingSpec, order: FilterOrder, vocabulary: int) -> bool:
    """Whether the head holds every token whose mass the nucleus is a share of.

    Without an earlier filter the row's own normaliser stands for the rest, and top-k never reaches beyond
    the head; but what min-p leaves may.
    """
    if order != "vllm" or spec.min_p <= 0.0 or spec.top_p >= 1.0 or 0 < spec.top_k < vocabulary:
        return True
    return bool((x[:, -1] < x[:, 0] + np.log(spec.min_p)).all())


def _edge_costs(x: F64, normaliser: F64, spec: SamplingSpec, order: FilterOrder, vocabulary: int) -> F64:
    """Signed edge cost of each sorted token, in units of `x` (float64 [R, C], falling)."""
    cost = np.full_like(x, np.inf)
    log_p = x - normaliser[:, None]
    if order == "vllm":
        cost = np.minimum(cost, _min_p_cost(x, spec.min_p))
        cost = np.minimum(cost, _top_k_cost(x, spec.top_k, vocabulary))
        return np.minimum(cost, _top_p_cost(x, log_p, cost, spec.top_p))
    cost = np.minimum(cost, _top_k_cost(x, spec.top_k, vocabulary))
    cost = np.minimum(cost, _top_p_cost(x, log_p, cost, spec.top_p))
    return np.minimum(cost, _min_p_cost(x, spec.min_p))


def _min_p_cost(x: F64, min_p: float) -> F64:
    """Distance to `max + ln(min_p)`; the likeliest token can never fall out."""
    if min_p <= 0.0:
        return np.full_like(x, np.inf)
    cost = x - (x[:, :1] + np.log(min_p))
    cost[:, 0] = np.inf
    return cost


def _top_k_cost(x: F64, top_k: int, vocabulary: int) -> F64:
    """Distance to the other side of the k-th place."""
    if not 0 < top_k < vocabulary:
        return np.full_like(x, np.inf)
    cost = np.empty_like(x)
    cost[:, :top_k] = x[:, :top_k] - x[:, top_k : top_k + 1]
    # An exact tie with the last one kept counts as outside by the smallest step, so that a prefix is kept.
    cost[:, top_k:] = np.minimum(x[:, top_k:] - x[:, top_k - 1 : top_k], -np.finfo(np.float64).tiny)
    return cost


def _top_p_cost(x: F64, log_p: F64, earlier: F64, top_p: float) -> F64:
    """Distance to the nucleus' edge: by trading places with a neighbour, or by moving mass across it.

    A token is kept while the mass before it is below `top_p`. Tilting the logits before it against
    those after it by delta moves that mass's log-odds by delta, so the distance of log-odds is the cost.
    """
    if top_p >= 1.0:
        return np.full_like(x, np.inf)
    alive = earlier >= 0
    mass = np.where(alive, np.exp(log_p), 0.0)
    # After top-k the nucleus is of the renormalised rest; without it the row's own normaliser is exact
    # even when only a head of the row is in view.
    if np.isfinite(earlier).any():
        mass = mass / mass.sum(axis=1, keepdims=True)
    before = np.cumsum(mass, axis=1) - mass
    before[:, 0] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(before) - np.log1p(-np.minimum(before, 1.0))
    by_mass = np.log(top_p) - np.log1p(-top_p) - odds
    inside = (before < top_p) & alive
    kept = inside.sum(axis=1)
    here = np.arange(len(x))
    last_in = x[here, kept - 1][:, None]
    first_out = np.where(kept < x.shape[1], x[here, np.minimum(kept, x.shape[1] - 1)], -np.inf)[:, None]
    tiny = np.finfo(np.float64).tiny
    cost_in = np.minimum(by_mass, x - first_out)
    cost_out = -np.maximum(np.minimum(-by_mass, last_in - x), tiny)
    return np.where(alive, np.where(inside, np.maximum(cost_in, 0.0), cost_out), np.inf)
