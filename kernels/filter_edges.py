"""How far each token of a sorted head is from the filters' edge: plain reference and compiled path.

In every engine's order the tokens kept are a prefix of the row sorted by falling logit, so a head describes
the support. A token's *edge cost* is signed: by how much logits would have to move to put it out (positive,
inside) or in (negative, outside). It is in logits divided by `scale`.

Both functions have one signature; `filter_edges(..., backend=)` chooses. The compiled parts are shared with
`filtered_race`, which works out the costs of the few tokens that matter only: which tokens are kept needs no
logarithm.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels.row_head import RowHeads
from auditor.kernels.splitmix import F64
from auditor.kernels.vector_loops import exponentials

Backend = Literal["reference", "compiled"]

_TINY = float(np.finfo(np.float64).tiny)
# The mass after a token is known as 1 less what comes before, and shares of a row's mass are right to 6e-7:
# its normaliser adds up float32 weights. Less counts as this: all that lie that far out are equally far out.
LEAST_MASS_AFTER = 1e-6


class Filters(NamedTuple):
    """What cuts the support, and in which order.

    Attributes:
        vocabulary: V, the tokens in a row.
        top_k: 0 or at least V keeps all. top_p: 1 keeps all. min_p: 0 keeps all.
        min_p_first: min-p, top-k, top-p (the nucleus is of what min-p leaves); else top-k, top-p, min-p.
        scale: what the engine divides logits by before it filters.
    """

    vocabulary: int
    top_k: int
    top_p: float
    min_p: float
    min_p_first: bool
    scale: float


class HeadCuts(NamedTuple):
    """Where the filters cut R sorted heads.

    Attributes:
        kept: int64 [R], how many leading tokens the filters keep.
        alive: int64 [R], how many the filters before the nucleus leave. inside: int64 [R], how many of those
            the nucleus takes.
        before: float64 [N], the mass (of what those filters leave) before each such token, else unset.
    """

    kept: npt.NDArray[np.int64]
    alive: npt.NDArray[np.int64]
    inside: npt.NDArray[np.int64]
    before: F64


def filter_edges(
    heads: RowHeads, filters: Filters, *, backend: Backend = "compiled"
) -> tuple[npt.NDArray[np.int64], F64]:
    """How many leading tokens of each head are kept, int64 [R], and every token's edge cost, float64 [N].

    Args:
        heads: each must hold every token kept and, if it is not the whole row, the one after; under top-k,
            `top_k` + 1 tokens; of what min-p leaves to a nucleus, all.
    """
    if backend == "reference":
        return _edges_reference(heads, filters)
    cuts = cut_heads(heads, filters)
    return cuts.kept, np.asarray(_edges_compiled(heads.start, heads.logits, cuts, filters))


def cut_heads(heads: RowHeads, filters: Filters) -> HeadCuts:
    """Where the filters cut each head, which takes no logarithm; heads as `filter_edges` wants them."""
    return HeadCuts(*_cut_compiled(heads.start, heads.logits, heads.log_normaliser, filters))


def claimed_edges(
    heads: RowHeads, cuts: HeadCuts, filters: Filters, claimed: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], F64]:
    """The claimed tokens' columns in their heads, int64 [R], and edge costs, float64 [R]; else -1 and NaN."""
    column, cost = _claims_compiled(heads.start, heads.ids, heads.logits, cuts, filters, claimed)
    return column, cost


def log_odds(mass: Any) -> Any:
    """Log-odds of masses, float64 of any shape, within what `LEAST_MASS_AFTER` says is known of them."""
    with np.errstate(divide="ignore"):
        return np.log(mass) - np.log(np.maximum(1.0 - mass, LEAST_MASS_AFTER))


def _edges_reference(heads: RowHeads, filters: Filters) -> tuple[npt.NDArray[np.int64], F64]:
    parts = []
    for r, normaliser in enumerate(heads.log_normaliser):
        logits = heads.logits[heads.start[r] : heads.start[r + 1]]
        x = (logits / np.float32(filters.scale)).astype(np.float64)
        cost, k = np.full_like(x, np.inf), filters.top_k
        if 0 < k < filters.vocabulary:
            cost[:k] = x[:k] - x[k]
            # An exact tie with the last one kept is outside by the smallest step: a prefix is kept.
            cost[k:] = np.minimum(x[k:] - x[k - 1], -_TINY)
        by_min_p = np.full_like(x, np.inf)
        if filters.min_p > 0.0:
            by_min_p[1:] = x[1:] - (x[0] + np.log(filters.min_p))
        if filters.min_p_first:
            cost = np.minimum(cost, by_min_p)
        cost = np.minimum(cost, _nucleus_reference(x, normaliser, cost, filters))
        parts.append(np.minimum(cost, by_min_p))
    kept = np.array([int((cost >= 0).sum()) for cost in parts], np.int64)
    return kept, np.concatenate(parts)


def _nucleus_reference(x: F64, normaliser: float, earlier: F64, filters: Filters) -> F64:
    """Distance to the nucleus' edge: by trading places with a neighbour, or by moving mass across it.

    A token is kept while the mass before it is below `top_p`. Tilting the logits before it against
    those after it by delta moves that mass's log-odds by delta, so the distance of log-odds is the cost.
    """
    top_p = filters.top_p
    if top_p >= 1.0:
        return np.full_like(x, np.inf)
    alive = earlier >= 0
    mass = np.where(alive, np.exp(x - normaliser), 0.0)
    # After an earlier filter the nucleus is of the renormalised rest; without one the row's own normaliser
    # is exact even when only a head of the row is in view.
    if np.isfinite(earlier).any():
        mass = mass / mass.sum()
    before = np.cumsum(mass) - mass
    before[0] = 0.0
    inside = (before < top_p) & alive
    kept = int(inside.sum())
    # Where min-p ends a head within the nucleus, the first outside is at most as likely as the last in view.
    first_out = x[min(kept, len(x) - 1)] if kept < len(x) or len(x) < filters.vocabulary else -np.inf
    by_mass = log_odds(np.float64(top_p)) - log_odds(before)
    cost_in = np.maximum(np.minimum(by_mass, x - first_out), 0.0)
    cost_out = -np.maximum(np.minimum(-by_mass, x[kept - 1] - x), _TINY)
    return np.where(alive, np.where(inside, cost_in, cost_out), np.inf)


@numba.njit(cache=True, nogil=True, inline="always")
def _scaled(logit, filters):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return np.float64(np.float32(logit / np.float32(filters.scale)))


@numba.njit(cache=True, nogil=True)
def _min_p_cost(logits, j, filters):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Distance to `max + ln(min_p)`; the likeliest token can never fall out."""
    if filters.min_p <= 0.0 or j == 0:
        return np.inf
    return _scaled(logits[j], filters) - (_scaled(logits[0], filters) + math.log(filters.min_p))


@numba.njit(cache=True, nogil=True)
def _earlier_cost(logits, j, filters):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Cost of the filters that come before the nucleus."""
    cost, k = np.inf, filters.top_k
    if 0 < k < filters.vocabulary:
        other = _scaled(logits[k if j < k else k - 1], filters)
        cost = _scaled(logits[j], filters) - other
        cost = cost if j < k else min(cost, -_TINY)
    return min(cost, _min_p_cost(logits, j, filters)) if filters.min_p_first else cost


@numba.njit(cache=True, nogil=True)
def _left(logits, count, filters, by_min_p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """How many of the `count` leading tokens min-p, or else what precedes the nucleus, leaves: a prefix."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        cost = _min_p_cost(logits, middle, filters) if by_min_p else _earlier_cost(logits, middle, filters)
        low, high = (middle + 1, high) if cost >= 0 else (low, middle)
    return low


@numba.njit(cache=True, nogil=True)
def _nucleus(logits, normaliser, filters, before):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Set `before` to the mass before each of its tokens, which lead the head; how many the nucleus takes."""
    x, total = np.empty(len(before)), 1.0
    for j in range(len(x)):
        x[j] = np.float64(np.float32(logits[j] / np.float32(filters.scale))) - normaliser
    exponentials(x, before)
    cut_before = 0 < filters.top_k < filters.vocabulary or (filters.min_p_first and filters.min_p > 0.0)
    if cut_before and len(logits) > 1:
        total = before.sum()
    cumulated, inside = 0.0, 0
    for j in range(len(before)):
        mass = before[j] / total
        cumulated += mass
        before[j] = cumulated - mass if j else 0.0
        inside += before[j] < filters.top_p
    return inside


@numba.njit(cache=True, nogil=True)
def _cut_compiled(start, logits, normalisers, filters):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    rows = len(normalisers)
    kept, alive, inside = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    before = np.empty(len(logits))
    for r in range(rows):
        head = logits[start[r] : start[r + 1]]
        alive[r] = inside[r] = _left(head, len(head), filters, by_min_p=False)
        if filters.top_p < 1.0:
            inside[r] = _nucleus(head, normalisers[r], filters, before[start[r] : start[r] + alive[r]])
        kept[r] = _left(head, inside[r], filters, by_min_p=True)
    return kept, alive, inside, before


@numba.njit(cache=True, nogil=True)
def _mass_distance(before, top_p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Log-odds by which the mass before a token falls short of `top_p`; negative when it exceeds it."""
    if before <= 0.0:
        return np.inf
    wanted = math.log(top_p) - math.log(max(1.0 - top_p, LEAST_MASS_AFTER))
    return wanted - (math.log(before) - math.log(max(1.0 - before, LEAST_MASS_AFTER)))


@numba.njit(cache=True, nogil=True)
def edge_cost(j, logits, before, alive, inside, filters):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Signed edge cost of token j of a head (`logits`, and what `HeadCuts` says of it)."""
    cost = _earlier_cost(logits, j, filters)
    if filters.top_p < 1.0 and j < alive:
        x, by_mass = _scaled(logits[j], filters), _mass_distance(before[j], filters.top_p)
        if j < inside:
            if inside < filters.vocabulary:
                # Where min-p ends a head within the nucleus, the last in view stands for the first outside.
                by_mass = min(by_mass, x - _scaled(logits[min(inside, len(logits) - 1)], filters))
            cost = min(cost, max(by_mass, 0.0))
        else:
            cost = min(cost, -max(min(-by_mass, _scaled(logits[inside - 1], filters) - x), _TINY))
    return cost if filters.min_p_first else min(cost, _min_p_cost(logits, j, filters))


@numba.njit(cache=True, nogil=True)
def _edges_compiled(start, logits, cuts, filters):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    cost = np.empty(len(logits))
    for r in range(len(cuts.kept)):
        a, b = start[r], start[r + 1]
        for j in range(b - a):
            cost[a + j] = edge_cost(j, logits[a:b], cuts.before[a:b], cuts.alive[r], cuts.inside[r], filters)
    return cost


@numba.njit(cache=True, nogil=True)
def _claims_compiled(start, ids, logits, cuts, filters, claimed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    column, cost = np.full(len(claimed), -1, np.int64), np.full(len(claimed), np.nan)
    for r in range(len(claimed)):
        a, b = start[r], start[r + 1]
        for j in range(b - a):
            if ids[a + j] == claimed[r]:
                column[r] = j
                cost[r] = edge_cost(j, logits[a:b], cuts.before[a:b], cuts.alive[r], cuts.inside[r], filters)
                break
    return column, cost
