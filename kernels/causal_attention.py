"""Attention of a sequence's rows to all positions up to their own, float32 on a CPU.

Rows are computed in tiles of positions that begin at multiples of `TILE`, over blocks of keys that begin at
multiples of `KEYS`, one after another with a running maximum (FlashAttention, arXiv 2205.14135). What a row
gets depends on its position and on what it sees: cutting a sequence elsewhere changes no bit. Both backends
have one signature; `backend=` chooses.

Numba notices a change of the file that holds a cached function, not of what that function calls: after an
edit here or in `register_block.py` or `vector_loops.py` remove `kernels/__pycache__`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels.register_block import COLUMNS, ROWS, add_product, set_product
from auditor.kernels.vector_loops import GROUP, LEAST, add_up, exponential, maxima, unordered, weigh

Backend = Literal["reference", "compiled"]
F32 = npt.NDArray[np.float32]

# Positions of a tile, a multiple of ROWS that divides KEYS; and keys of a block, a multiple of COLUMNS.
TILE, KEYS = 24, 192

_ZERO, _ONE, _NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)


def causal_attention(
    queries: F32,
    keys: F32,
    values: F32,
    scale: float,
    window: int | None,
    sinks: F32 | None,
    out: F32,
    *,
    backend: Backend = "compiled",
) -> None:
    """Set `out` to what the newest positions of a sequence gather.

    Args:
        queries: float32 [rows, heads, dim], of the newest positions.
        keys, values: float32 [positions, key/value heads, dim], values perhaps of another dim.
        scale: of the scores.
        window: newest positions seen, one's own included; None for all.
        sinks: float32 [heads], a logit per head that takes weight and gives nothing; None without.
        out: float32 [rows, heads, value dim].
    """
    if backend == "compiled":
        if sinks is None:
            sinks = np.full(queries.shape[1], _NOTHING)
        _loop()(queries, keys, values, np.float32(scale), window or len(keys), sinks, out)
        return
    group, start = queries.shape[1] // keys.shape[1], len(keys) - len(queries)
    age = np.arange(start, len(keys))[:, None] - np.arange(len(keys))
    seen = (age >= 0) & (age < (window or len(keys)))
    for head in range(queries.shape[1]):
        scores = queries[:, head] @ keys[:, head // group].T * np.float32(scale)
        scores = np.where(seen, scores, _NOTHING)
        sink = _NOTHING if sinks is None else sinks[head]
        most = np.maximum(scores.max(1, keepdims=True), sink)
        weights = np.exp(scores - most)
        total = weights.sum(1, keepdims=True) + np.exp(sink - most)
        out[:, head] = weights @ values[:, head // group] / total


@cache
def _loop() -> Callable[..., None]:
    """Compiled when it is first asked for, and once: for arrays that lie in any way."""
    heads = numba.float32[:, :, :]
    kinds = numba.void(heads, heads, heads, numba.float32, numba.int64, numba.float32[:], heads)
    return numba.njit(kinds, cache=True, nogil=True)(_attend)  # type: ignore[no-any-return]


def _attend(queries, keys, values, scale, window, sinks, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    shared = keys.shape[1]
    group, blocks = queries.shape[1] // shared, (len(keys) + KEYS - 1) // KEYS
    width = (values.shape[2] + COLUMNS - 1) // COLUMNS * COLUMNS
    columns = np.empty((blocks, keys.shape[2], KEYS), np.float32)
    rows = np.empty((blocks, KEYS, width), np.float32)
    for head in range(shared):
        first, last = head * group, (head + 1) * group
        _lay_out(keys[:, head], values[:, head], columns, rows)
        _attend_head(
            queries[:, first:last],
            columns,
            rows,
            len(keys),
            scale,
            window,
            sinks[first:last],
            out[:, first:last],
        )


@numba.njit(cache=True, nogil=True)
def _lay_out(keys, values, columns, rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Keys as columns, [blocks, dim, KEYS], and values as rows, [blocks, KEYS, width]; else zeros."""
    for position in range(len(columns) * KEYS):
        turned, copied = columns[position // KEYS], rows[position // KEYS, position % KEYS]
        if position < len(keys):
            key, value = keys[position], values[position]
            for i in range(len(key)):
                turned[i, position % KEYS] = key[i]
            for i in range(len(value)):
                copied[i] = value[i]
            _fill(copied[len(value) :], _ZERO)
        else:
            for i in range(len(turned)):
                turned[i, position % KEYS] = _ZERO
            _fill(copied, _ZERO)


@numba.njit(cache=True, nogil=True)
def _attend_head(queries, columns, rows, positions, scale, window, sinks, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """What the query heads [rows, group, dim] of one key/value head gather, a tile of positions at a time."""
    count, group, dim = queries.shape
    start, room = positions - count, (group * TILE + ROWS - 1) // ROWS * ROWS
    asked, gathered = np.zeros((room, dim), np.float32), np.zeros((room, rows.shape[2]), np.float32)
    scores, weights = np.empty((room, KEYS), np.float32), np.zeros((room, KEYS), np.float32)
    most, total = np.empty(room, np.float32), np.empty(room)
    groups = np.empty((KEYS + GROUP - 1) // GROUP, np.int32)
    for tile in range(start // TILE * TILE, positions, TILE):
        first, last = max(tile, start), min(tile + TILE, positions)
        used = (last - first) * group
        for r in range(used):
            query = queries[first - start + r // group, r % group]
            for i in range(dim):
                asked[r, i] = query[i] * scale
            _fill(gathered[r], _ZERO)
            most[r], total[r] = sinks[r % group], 1.0
        for block in range(max(tile - window + 1, 0) // KEYS, (last - 1) // KEYS + 1):
            begin = block * KEYS
            seen = min(KEYS, tile + TILE - begin)
            _score(asked, used, columns[block], seen, scores)
            for r in range(used):
                position = first + r // group - begin
                low, high = max(position - window + 1, 0), min(position + 1, seen)
                own = scores[r, :seen], weights[r, :seen], gathered[r]
                most[r], total[r] = _weigh(low, high, most[r], total[r], *own, groups)
            _gather(weights[:, :seen], used, rows[block], gathered)
        for r in range(used):
            share, own = np.float32(1.0 / total[r]), out[first - start + r // group, r % group]
            for i in range(len(own)):
                own[i] = gathered[r, i] * share


@numba.njit(cache=True, nogil=True)
def _score(asked, used, columns, seen, scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for j in range(0, seen, COLUMNS):
        for r in range(0, used, ROWS):
            own = scores[r : r + ROWS, j : j + COLUMNS]
            set_product(asked[r : r + ROWS], columns[:, j : j + COLUMNS], own)


@numba.njit(cache=True, nogil=True)
def _gather(weights, used, rows, gathered):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for j in range(0, gathered.shape[1], COLUMNS):
        for r in range(0, used, ROWS):
            own = gathered[r : r + ROWS, j : j + COLUMNS]
            add_product(weights[r : r + ROWS], rows[: weights.shape[1], j : j + COLUMNS], own)


@numba.njit(cache=True, nogil=True)
def _weigh(low, high, most, total, scores, weights, gathered, groups):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Weights of a block's keys low..high - 1 for one row, 0 for the others; its new maximum and total.

    What the row gathered so far is scaled to the new maximum.
    """
    if low >= high:
        _fill(weights, _ZERO)
        return most, total
    _fill(scores[:low], _NOTHING)
    _fill(scores[high:], _NOTHING)
    top = max(unordered(maxima(scores, groups[: (len(scores) + GROUP - 1) // GROUP])), most)
    weigh(scores, _ONE, top, weights)
    _fill(weights[:low], _ZERO)
    _fill(weights[high:], _ZERO)
    kept = exponential(max(most - top, LEAST))
    if top > most:
        for i in range(len(gathered)):
            gathered[i] *= kept
    return top, total * kept + add_up(weights)


# Array assignments would mean the same, and take twice as long to compile.
@numba.njit(cache=True, nogil=True)
def _fill(out, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(len(out)):
        out[i] = x
