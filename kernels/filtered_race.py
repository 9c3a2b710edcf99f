"""A Gumbel race among the tokens that filters keep, with the edge's neighbours in view as alternatives.

Scores are in logits: `logit + temperature * noise`. For every row: the winner; the *margin*, by how much
logits would have to move for the claimed token to win; the *slack*, by how much for any other token to; how
many kept tokens beat the claimed one. A token can be brought in or put out at its edge cost (`filter_edges`).

The compiled path draws noise only for tokens that can matter, by the bound of `keyed_race`, and works out
edge costs only for those that do. Both functions have one signature; `filtered_race(..., backend=)` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels.filter_edges import Filters, HeadCuts, edge_cost, filter_edges
from auditor.kernels.keyed_race_numba import bound, leading_bits, mirror_of
from auditor.kernels.row_head import RowHeads
from auditor.kernels.splitmix import F64, U64, bits53, gumbel, gumbel_of
from auditor.kernels.vector_loops import weigh

Backend = Literal["reference", "compiled"]


@dataclass(frozen=True, slots=True)
class FilteredRaceRows:
    """Outcome of R races: winner int64 [R]; margin, slack float64 [R] in logits; rank int64 [R].

    `margin` leaves the claimed token's own edge out of account; `slack` is inf where nothing else is in view.
    """

    winner: npt.NDArray[np.int64]
    margin: F64
    slack: F64
    rank: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FilteredRows:
    """Rows to race: sorted heads, and how the filters cut them.

    Attributes:
        heads: R sorted heads. cuts: of these by the filters, whose `scale` is the temperature.
        columns: int64 [R], how many tokens of each head are in view; at least those kept.
        claimed: int64 [R]. claimed_logit: float32 [R], wherever the claimed token stands.
    """

    heads: RowHeads
    filters: Filters
    cuts: HeadCuts
    columns: npt.NDArray[np.int64]
    claimed: npt.NDArray[np.int64]
    claimed_logit: npt.NDArray[np.float32]


def filtered_race(
    rows: FilteredRows,
    temperature: float,
    draws: U64 | F64,
    *,
    tail_safe: bool = True,
    backend: Backend = "compiled",
) -> FilteredRaceRows:
    """Run one race a row.

    Args:
        draws: keys uint64 [R], one noise row each; or the noise itself, float64 [R, V].
        tail_safe: which Gumbel transform keys mean (`splitmix.gumbel`).
    """
    if backend == "reference":
        return _race_reference(rows, temperature, draws, tail_safe=tail_safe)
    keyed = draws.ndim == 1
    heads = rows.heads
    out = _race_compiled(
        (heads.start, heads.ids, heads.logits),
        (rows.cuts, rows.columns, rows.filters),
        (rows.claimed, rows.claimed_logit),
        temperature,
        (draws if keyed else np.empty(0, np.uint64), np.empty((0, 0)) if keyed else draws, tail_safe),
    )
    return FilteredRaceRows(*out)


def _race_reference(
    rows: FilteredRows, temperature: float, draws: U64 | F64, *, tail_safe: bool
) -> FilteredRaceRows:
    kept, edges = filter_edges(rows.heads, rows.filters, backend="reference")
    parts: list[tuple[int, float, float, int]] = []
    for r, claimed in enumerate(rows.claimed):
        view = slice(rows.heads.start[r], rows.heads.start[r] + rows.columns[r])
        ids, edge = rows.heads.ids[view], edges[view]
        if draws.ndim == 1:
            everyone = np.append(ids, claimed)[None]
            noise = gumbel(bits53(draws[r : r + 1], everyone), tail_safe=tail_safe)[0]  # type: ignore[arg-type]
        else:
            noise = np.asarray(draws, np.float64)[r, np.append(ids, claimed)]
        score = rows.heads.logits[view].astype(np.float64) + temperature * noise[:-1]
        own = np.float64(rows.claimed_logit[r]) + temperature * noise[-1]
        edge = edge * rows.filters.scale
        inside = np.arange(len(ids)) < kept[r]
        column = int(np.where(inside, score, -np.inf).argmax())
        # To explain the claim, every token kept that beats it is overtaken or cut off.
        beats = inside & (score > own) & (ids != claimed)
        margin = np.where(beats, np.minimum(score - own, edge), 0.0).max()
        # Ways for another token to win: it overtakes (and is let in), or the winner is cut off.
        way = np.maximum(score[column] - score, np.where(inside, 0.0, -edge))
        way[column] = edge[column]
        parts.append((int(ids[column]), float(margin), max(float(way.min()), 0.0), int(beats.sum())))
    winner, margins, slacks, ranks = zip(*parts, strict=True) if parts else ((), (), (), ())
    return FilteredRaceRows(
        np.array(winner, np.int64), np.array(margins), np.array(slacks), np.array(ranks, np.int64)
    )


@numba.njit(cache=True, nogil=True)
def _score(logit, token, temperature, noise):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    key, row, tail_safe = noise
    drawn = row[token] if len(row) else gumbel_of(key, token, tail_safe)
    return np.float64(logit) + temperature * drawn


@numba.njit(cache=True, nogil=True)
def _passes(j, ids, weights, factor, noise):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Whether token j's noise may bring it above the level of `factor`."""
    key, row, tail_safe = noise
    return len(row) > 0 or leading_bits(key, ids[j], mirror_of(tail_safe)) < factor * weights[j]


@numba.njit(cache=True, nogil=True)
def _race_kept(head, edges, kept, claim, temperature, noise, weights, shift):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The race among the tokens kept: winner's column and score, runner-up's score, margin and rank."""
    ids, logits = head
    claimed, own = claim
    before, alive, inside, filters = edges
    best, next_best, column = -np.inf, -np.inf, 0
    margin, rank, factor = 0.0, 0, np.float32(np.inf)
    for j in range(kept):
        if not _passes(j, ids, weights, factor, noise):
            continue
        score = _score(logits[j], ids[j], temperature, noise)
        if score > own and ids[j] != claimed:
            rank += 1
            # To explain the claim, every token kept that beats it is overtaken or cut off.
            if score - own > margin:
                cost = edge_cost(j, logits, before, alive, inside, filters) * filters.scale
                margin = max(margin, min(score - own, cost))
        if score > best or j == 0:
            best, next_best, column = score, best, j
        elif score > next_best:
            next_best = score
        else:
            continue
        factor = bound(shift, min(next_best, own) / temperature)
    return column, best, next_best, margin, rank


@numba.njit(cache=True, nogil=True)
def _race_row(head, edges, kept, columns, claim, temperature, noise):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    ids, logits = head
    before, alive, inside, filters = edges
    own = _score(claim[1], claim[0], temperature, noise)
    scale = np.float32(1.0 / temperature)
    shift = np.float32(logits[0] * scale)
    weights = np.empty(columns, np.float32)
    weigh(logits[:columns], scale, shift, weights)
    column, best, next_best, margin, rank = _race_kept(
        head, edges, kept, (claim[0], own), temperature, noise, weights, shift
    )
    # Ways for another token to win: it overtakes (and is let in), or the winner is cut off.
    slack = edge_cost(column, logits, before, alive, inside, filters) * filters.scale
    slack = min(slack, best - next_best)
    for j in range(kept, columns):
        if _passes(j, ids, weights, bound(shift, (best - slack) / temperature), noise):
            lead = best - _score(logits[j], ids[j], temperature, noise)
            if lead < slack:
                cost = edge_cost(j, logits, before, alive, inside, filters) * filters.scale
                slack = min(slack, max(lead, -cost))
    return ids[column], margin, max(slack, 0.0), rank


@numba.njit(cache=True, nogil=True)
def _race_compiled(heads, cut, claims, temperature, draws):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    start, ids, logits = heads
    cuts, columns, filters = cut
    keys, dense, tail_safe = draws
    rows, keyed, nothing = len(columns), len(keys) > 0, np.empty(0)
    winner, rank = np.empty(rows, np.int64), np.empty(rows, np.int64)
    margin, slack = np.empty(rows), np.empty(rows)
    for r in range(rows):
        a, b = start[r], start[r + 1]
        edges = (cuts.before[a:b], cuts.alive[r], cuts.inside[r], filters)
        noise = (keys[r] if keyed else np.uint64(0), nothing if keyed else dense[r], tail_safe)
        claim = (claims[0][r], claims[1][r])
        winner[r], margin[r], slack[r], rank[r] = _race_row(
            (ids[a:b], logits[a:b]), edges, cuts.kept[r], columns[r], claim, temperature, noise
        )
    return winner, margin, slack, rank
