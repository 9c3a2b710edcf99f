"""Which tokens a request's filters allow, and how far each is from the filter's edge.

Engines cut the support with top-k, top-p and min-p in different orders. In every order the tokens kept
are a prefix of the row sorted by falling logit, so one sort describes the support. A hard cut would turn
a rounding error at the edge into an infinite margin; instead each token carries a signed *edge cost* in
logit units: how much logits would have to move to put it out (positive, inside) or in (negative,
outside).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from auditor.kernels.splitmix import F64
from auditor.reference.noise import FilterOrder
from auditor.reference.sampling import SamplingSpec

# Tokens just outside the edge that stay in view as alternatives an honest provider may have drawn.
_BEYOND_EDGE = 8
_HEADS = (96, 1024)


@dataclass(frozen=True, slots=True)
class Support:
    """The head of each row in order of falling logit, cut after the last token that can matter.

    Attributes:
        ids: int64 [R, C] token ids. logits: float64 [R, C], raw (before temperature).
        kept: int64 [R], how many leading tokens the filters keep (at least 1).
        edge: float64 [R, C], signed edge cost in logit units; >= 0 inside, < 0 outside.
        claimed_column: int64 [R], where the claimed token stands, or -1 when it lies beyond column C.
        claimed_edge: float64 [R], signed edge cost of the claimed token wherever it stands.
        log_normaliser: float64 [R], of the whole row in the units that the filters see.
    """

    ids: npt.NDArray[np.int64]
    logits: F64
    kept: npt.NDArray[np.int64]
    edge: F64
    claimed_column: npt.NDArray[np.int64]
    claimed_edge: F64
    log_normaliser: F64


def find_support(
    logits: torch.Tensor, claimed: npt.NDArray[np.int64], spec: SamplingSpec, order: FilterOrder
) -> Support:
    """Apply the filters of `spec` in an engine's order.

    Args:
        logits: float32 [R, V], raw.
        claimed: int64 [R].
        order: `vllm` divides by T, then min-p, top-k, top-p; `transformers` divides by T, then top-k,
            top-p, min-p; `llama.cpp` runs top-k, top-p, min-p on unscaled logits.

    Sorting the whole vocabulary is rarely needed: short heads of the row are tried first, and only the rows
    whose support reaches beyond one go on to the next.
    """
    vocabulary = logits.shape[1]
    first = (spec.top_k + _BEYOND_EDGE,) if 0 < spec.top_k < vocabulary else _HEADS
    widths = [*(width for width in first if width < vocabulary), vocabulary]
    support, settled = _within_head(logits, claimed, spec, order, widths[0])
    for width in widths[1:]:
        if settled.all():
            break
        rest = ~settled
        wider, settled_now = _within_head(logits[torch.from_numpy(rest)], claimed[rest], spec, order, width)
        support = _with_rows(support, wider, rest)
        settled[rest] = settled_now
    return support


def _within_head(
    logits: torch.Tensor, claimed: npt.NDArray[np.int64], spec: SamplingSpec, order: FilterOrder, width: int
) -> tuple[Support, npt.NDArray[np.bool_]]:
    """The support as seen in the `width` largest logits, and in which rows that view is enough."""
    rows, vocabulary = logits.shape
    scale = spec.temperature if order != "llama.cpp" else 1.0
    values, ids = _sorted_head(logits, width)
    scaled = (values / np.float32(scale)).astype(np.float64)
    normaliser = log_normaliser(logits, scale)
    edge = _edge_costs(scaled, normaliser, spec, order, vocabulary) * scale
    kept = (edge >= 0).sum(axis=1)
    settled = np.ones(rows, np.bool_)
    if width < vocabulary:
        settled = (kept + _BEYOND_EDGE <= width) & _nucleus_in_view(scaled, spec, order, vocabulary)
    columns = min(width, int(kept.max(where=settled, initial=1)) + _BEYOND_EDGE)
    column = _find(ids, claimed)
    claimed_edge = np.take_along_axis(edge, column[:, None], axis=1)[:, 0]
    hidden = np.flatnonzero(column < 0)
    if len(hidden):
        last_kept = scaled[hidden, kept[hidden] - 1]
        beyond = _edge_beyond_head(
            logits[torch.from_numpy(hidden)] / float(np.float32(scale)),
            claimed[hidden],
            last_kept,
            normaliser[hidden],
            spec,
        )
        claimed_edge[hidden] = beyond * scale
    column = np.where(column < columns, column, -1)
    raw = values[:, :columns].astype(np.float64)
    return Support(ids[:, :columns], raw, kept, edge[:, :columns], column, claimed_edge, normaliser), settled


def _edge_beyond_head(
    x: torch.Tensor, claimed: npt.NDArray[np.int64], last_kept: F64, normaliser: F64, spec: SamplingSpec
) -> F64:
    """Signed edge cost, in units of `x` [R, V], of claimed tokens below the whole head: all are outside."""
    own = x[torch.arange(len(x)), torch.from_numpy(claimed)]
    distance = last_kept - own.double().numpy()
    only_top_p = spec.top_p < 1.0 and spec.top_k <= 0 and spec.min_p <= 0.0
    if only_top_p:
        above = torch.where(x > own[:, None], (x - torch.from_numpy(normaliser)[:, None].float()).exp(), 0.0)
        distance = np.minimum(
            distance, -_mass_distance(above.sum(dim=1, dtype=torch.float64).numpy(), spec.top_p)
        )
    return np.asarray(-np.maximum(distance, np.finfo(np.float64).tiny))


def _with_rows(support: Support, other: Support, where: npt.NDArray[np.bool_]) -> Support:
    """`support` with the rows of `other` put in `where`; the narrower one is padded with excluded tokens."""
    columns = max(support.ids.shape[1], other.ids.shape[1])

    def joined(mine: npt.NDArray[Any], theirs: npt.NDArray[Any], filler: float) -> npt.NDArray[Any]:
        wide = np.full((len(mine), columns), filler, mine.dtype)
        wide[:, : mine.shape[1]] = mine
        wide[where] = np.pad(theirs, ((0, 0), (0, columns - theirs.shape[1])), constant_values=filler)
        return wide

    def put(mine: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        mine = mine.copy()
        mine[where] = theirs
        return mine

    return Support(
        joined(support.ids, other.ids, 0),
        joined(support.logits, other.logits, float(np.finfo(np.float32).min)),
        put(support.kept, other.kept),
        joined(support.edge, other.edge, -float(np.finfo(np.float64).max)),
        put(support.claimed_column, other.claimed_column),
        put(support.claimed_edge, other.claimed_edge),
        support.log_normaliser,
    )


def log_normaliser(logits: torch.Tensor, temperature: float) -> F64:
    """Log of the summed exponentials of `logits / temperature`, float64 [R]; only the sum is in float64."""
    x = logits / temperature
    top = x.amax(dim=1, keepdim=True)
    total = (x - top).exp_().sum(dim=1, dtype=torch.float64)
    return np.asarray((top[:, 0].double() + total.log()).numpy())


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


def _nucleus_in_view(
    x: F64, spec: SamplingSpec, order: FilterOrder, vocabulary: int
) -> npt.NDArray[np.bool_]:
    """In which rows the head holds every token whose mass the nucleus is a share of.

    Without an earlier filter the row's own normaliser stands for the rest, and top-k never reaches beyond
    the head; but what min-p leaves may.
    """
    if order != "vllm" or spec.min_p <= 0.0 or spec.top_p >= 1.0 or 0 < spec.top_k < vocabulary:
        return np.ones(len(x), np.bool_)
    return np.asarray(x[:, -1] < x[:, 0] + np.log(spec.min_p))


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
    cost: F64 = x - (x[:, :1] + np.log(min_p))
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
    by_mass = _mass_distance(before, top_p)
    inside = (before < top_p) & alive
    kept = inside.sum(axis=1)
    here = np.arange(len(x))
    last_in = x[here, kept - 1][:, None]
    first_out = np.where(kept < x.shape[1], x[here, np.minimum(kept, x.shape[1] - 1)], -np.inf)[:, None]
    tiny = np.finfo(np.float64).tiny
    cost_in = np.minimum(by_mass, x - first_out)
    cost_out = -np.maximum(np.minimum(-by_mass, last_in - x), tiny)
    return np.where(alive, np.where(inside, np.maximum(cost_in, 0.0), cost_out), np.inf)


def _mass_distance(before: F64, top_p: float) -> F64:
    """Log-odds by which the mass before a token falls short of `top_p`; negative when it exceeds it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(before) - np.log1p(-np.minimum(before, 1.0))
    return np.asarray(np.log(top_p) - np.log1p(-top_p) - odds)
