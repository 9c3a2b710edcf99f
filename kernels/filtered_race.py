"""A Gumbel race among the tokens that filters keep, with the edge's neighbours in view as alternatives.

Scores are in logits: `logit + temperature * noise`. For every row: the winner; the *margin*, by how much
logits would have to move for the claimed token to win; the *slack*, by how much for any other token to; how
many kept tokens beat the claimed one. A token can be brought in or put out at its edge cost (`filter_edges`).

Noise is drawn for tokens in view only, and on the compiled path by keyed schemes only for those that can
matter, by the bound of `keyed_race`; edge costs are worked out only for those that do. Both functions have
one signature; `filtered_race(..., backend=)` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels.filter_edges import Filters, HeadCuts, edge_cost, filter_edges
from auditor.kernels.keyed_noise import KeyedNoise, key_words, keyed_noise, leading_of, noise_of
from auditor.kernels.keyed_race_numba import bound
from auditor.kernels.mersenne import U32, gumbel_at
from auditor.kernels.row_head import RowHeads
from auditor.kernels.splitmix import F64, U64
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
    draws: U64 | U32 | F64,
    *,
    noise: KeyedNoise = KeyedNoise.SPLITMIX_TAIL_SAFE,
    backend: Backend = "compiled",
) -> FilteredRaceRows:
    """Run one race a row.

    Args:
        draws: keys uint64 [R] or [R, W], one noise row each; states of a Mersenne Twister before torch's
            exponential rows, uint32 [R, 625]; or the noise itself, float64 [R, V].
        noise: which noise keys make.
    """
    keyed = draws.dtype == np.uint64
    drawn = _Drawn(np.empty(0), np.empty(0)) if keyed else _drawn(rows, draws)
    if backend == "reference":
        return _race_reference(rows, temperature, draws if keyed else drawn, noise)
    heads = rows.heads
    out = _race_compiled(
        (heads.start, heads.ids, heads.logits),
        (rows.cuts, rows.columns, rows.filters),
        (rows.claimed, rows.claimed_logit),
        temperature,
        (key_words(draws) if keyed else np.empty((0, 3), np.uint64), drawn.heads, drawn.claimed, int(noise)),  # type: ignore[arg-type]
    )
    return FilteredRaceRows(*out)


class _Drawn(NamedTuple):
    """Noise of every token of the heads, float64 [N], and of the claimed ones, float64 [R]."""

    heads: F64
    claimed: F64


def _drawn(rows: FilteredRows, draws: U64 | U32 | F64) -> _Drawn:
    start, drawn = rows.heads.start, np.empty(len(rows.heads.ids))
    claimed = np.empty(len(rows.claimed))
    for r, token in enumerate(rows.claimed):
        ids = np.append(rows.heads.ids[start[r] : start[r] + rows.columns[r]], token)
        noise = gumbel_at(draws[r : r + 1], ids[None])[0] if draws.dtype == np.uint32 else draws[r, ids]  # type: ignore[arg-type]
        drawn[start[r] : start[r] + rows.columns[r]] = noise[:-1]
        claimed[r] = noise[-1]
    return _Drawn(drawn, claimed)


def _race_reference(
    rows: FilteredRows, temperature: float, draws: U64 | U32 | F64 | _Drawn, kind: KeyedNoise
) -> FilteredRaceRows:
    kept, edges = filter_edges(rows.heads, rows.filters, backend="reference")
    parts: list[tuple[int, float, float, int]] = []
    for r, claimed in enumerate(rows.claimed):
        view = slice(rows.heads.start[r], rows.heads.start[r] + rows.columns[r])
        ids, edge = rows.heads.ids[view], edges[view]
        if isinstance(draws, _Drawn):
            noise = np.append(draws.heads[view], draws.claimed[r])
        else:
            noise = keyed_noise(kind, draws[r : r + 1], np.append(ids, claimed)[None])[0]  # type: ignore[arg-type]
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
def _score(j, ids, logits, temperature, noise):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    key, drawn, kind = noise
    return np.float64(logits[j]) + temperature * (drawn[j] if len(drawn) else noise_of(kind, key, ids[j]))


@numba.njit(cache=True, nogil=True)
def _passes(j, ids, weights, factor, noise):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Whether token j's noise may bring it above the level of `factor`."""
    key, drawn, kind = noise
    return len(drawn) > 0 or np.float32(leading_of(kind, key, ids[j])) < factor * weights[j]


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
        score = _score(j, ids, logits, temperature, noise)
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
    own = np.float64(claim[1]) + temperature * claim[2]
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
            lead = best - _score(j, ids, logits, temperature, noise)
            if lead < slack:
                cost = edge_cost(j, logits, before, alive, inside, filters) * filters.scale
                slack = min(slack, max(lead, -cost))
    return ids[column], margin, max(slack, 0.0), rank


@numba.njit(cache=True, nogil=True)
def _race_compiled(heads, cut, claims, temperature, draws):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    start, ids, logits = heads
    cuts, columns, filters = cut
    keys, drawn, claimed_drawn, kind = draws
    rows, keyed, nothing, none = len(columns), len(keys) > 0, np.empty(0), np.uint64(0)
    winner, rank = np.empty(rows, np.int64), np.empty(rows, np.int64)
    margin, slack = np.empty(rows), np.empty(rows)
    for r in range(rows):
        a, b = start[r], start[r + 1]
        edges = (cuts.before[a:b], cuts.alive[r], cuts.inside[r], filters)
        key = (keys[r, 0], keys[r, 1], keys[r, 2]) if keyed else (none, none, none)
        noise = (key, nothing if keyed else drawn[a:b], kind)
        own = noise_of(kind, key, claims[0][r]) if keyed else claimed_drawn[r]
        claim = (claims[0][r], claims[1][r], own)
        winner[r], margin[r], slack[r], rank[r] = _race_row(
            (ids[a:b], logits[a:b]), edges, cuts.kept[r], columns[r], claim, temperature, noise
        )
    return winner, margin, slack, rank
