"""Attention of few rows over keys and values by slot: rotation, storing and gathering in one call a layer.

A row's result depends on its query and on the keys that it sees, in the order of their positions, and on
nothing else: neither on other rows of the call, nor on whether its predecessors were cached or are in a draft
tree beside it. Both backends have one signature; `backend=` chooses.

Numba notices a change of the file that holds a cached function, not of what that function calls: after an
edit here or in `row_parts.py` remove `kernels/__pycache__`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels.row_parts import _rotate_heads, rotate_heads
from auditor.kernels.vector_loops import RUN, add_up, weigh

Backend = Literal["reference", "compiled"]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Places:
    """Where a call's rows belong, and what each sees.

    Attributes:
        keep: int64 [R], the slot of each row's own key and value.
        sequence: int64 [R], which sequence a row is of.
        past, past_first: int64; sequence s's committed slots are past[past_first[s] : past_first[s + 1]], in
            the order of positions.
        seen, seen_first: int64; row r sees the call's rows seen[seen_first[r] : seen_first[r + 1]], in the
            order of positions, itself the last.
        most: at least as many as the keys that any row sees.
    """

    keep: I64
    sequence: I64
    past: I64
    past_first: I64
    seen: I64
    seen_first: I64
    most: int


def attend_slots(
    qkv: F32,
    angles: tuple[F32, F32],
    cache: tuple[F32, F32],
    places: Places,
    scale: float,
    out: F32,
    *,
    backend: Backend = "compiled",
) -> None:
    """Rotate queries and keys in place, store keys and values in their slots, and let each row gather.

    Args:
        qkv: float32 [at least R, (heads + 2 key/value heads) * dim], contiguous.
        angles: cosine and sine, float32 [R, N], as `row_parts.rotate_heads` takes them.
        cache: keys and values, float32 [slots, key/value heads, dim], contiguous; written to.
        out: float32 [at least R, heads * dim], contiguous; its first R rows are written.
    """
    keys, values = cache
    if backend == "compiled":
        p, room = places, places.most + 3
        slots, scores = np.empty(room, np.uint64), np.empty((2, room), np.float32)
        _attend(
            qkv,
            *angles,
            keys,
            values,
            p.keep,
            p.sequence,
            p.past,
            p.past_first,
            p.seen,
            p.seen_first,
            np.float32(scale),
            slots,
            scores,
            out,
        )
        return
    rows, (_, key_heads, dim) = len(places.keep), keys.shape
    heads = qkv.shape[1] // dim - 2 * key_heads
    own = qkv[:rows]
    rotate_heads(own, *angles, heads=heads + key_heads, head_dim=dim, backend="reference")
    parts = own.reshape(rows, heads + 2 * key_heads, dim)
    keys[places.keep], values[places.keep] = (
        parts[:, heads : heads + key_heads],
        parts[:, heads + key_heads :],
    )
    for row in range(rows):
        first, last = places.past_first[places.sequence[row] :][:2]
        beside = places.seen[places.seen_first[row] : places.seen_first[row + 1]]
        slots = np.concatenate([places.past[first:last], places.keep[beside]])
        for head in range(heads):
            shared = head * key_heads // heads
            score = keys[slots, shared] @ parts[row, head] * np.float32(scale)
            weights = np.exp(score - score.max())
            gathered = weights @ values[slots, shared] / weights.sum()
            out[row, head * dim : (head + 1) * dim] = gathered


# Four keys at a time, and two heads that share them: what is loaded is used eight times, or four.
@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _score(query, keys, slots, j, head, scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    first, second, third, fourth = slots[j], slots[j + 1], slots[j + 2], slots[j + 3]
    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(query)):
        x = query[i]
        a += x * keys[first, head, i]
        b += x * keys[second, head, i]
        c += x * keys[third, head, i]
        d += x * keys[fourth, head, i]
    scores[j], scores[j + 1], scores[j + 2], scores[j + 3] = a, b, c, d


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _score_pair(query, other, keys, slots, j, head, scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    first, second, third, fourth = slots[j], slots[j + 1], slots[j + 2], slots[j + 3]
    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    e, f, g, h = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(query)):
        x, y = query[i], other[i]
        one, two = keys[first, head, i], keys[second, head, i]
        three, four = keys[third, head, i], keys[fourth, head, i]
        a += x * one
        b += x * two
        c += x * three
        d += x * four
        e += y * one
        f += y * two
        g += y * three
        h += y * four
    scores[0, j], scores[0, j + 1], scores[0, j + 2], scores[0, j + 3] = a, b, c, d
    scores[1, j], scores[1, j + 1], scores[1, j + 2], scores[1, j + 3] = e, f, g, h


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _gather(weights, j, values, slots, head, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    first, second, third, fourth = slots[j], slots[j + 1], slots[j + 2], slots[j + 3]
    a, b, c, d = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
    for i in range(len(out)):
        out[i] += (a * values[first, head, i] + b * values[second, head, i]) + (
            c * values[third, head, i] + d * values[fourth, head, i]
        )


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _gather_pair(weights, j, values, slots, head, out, other):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    first, second, third, fourth = slots[j], slots[j + 1], slots[j + 2], slots[j + 3]
    a, b, c, d = weights[0, j], weights[0, j + 1], weights[0, j + 2], weights[0, j + 3]
    e, f, g, h = weights[1, j], weights[1, j + 1], weights[1, j + 2], weights[1, j + 3]
    for i in range(len(out)):
        one, two = values[first, head, i], values[second, head, i]
        three, four = values[third, head, i], values[fourth, head, i]
        out[i] += (a * one + b * two) + (c * three + d * four)
        other[i] += (e * one + f * two) + (g * three + h * four)


@numba.njit(cache=True, nogil=True)
def _store(qkv, heads, keys, values, keep):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    key_heads, dim = keys.shape[1], keys.shape[2]
    for row in range(len(keep)):
        for head in range(key_heads):
            key, value = (heads + head) * dim, (heads + key_heads + head) * dim
            for i in range(dim):
                keys[keep[row], head, i] = qkv[row, key + i]
                values[keep[row], head, i] = qkv[row, value + i]


@numba.njit(cache=True, nogil=True)
def _weights(scores, count, scale):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Scores to weights, those behind `count` to 0; returns one over their sum."""
    best = np.float32(-np.inf)
    for j in range(count):
        best = max(best, scores[j])
    total = 0.0
    for part in range(0, count, RUN):
        own = scores[part : min(part + RUN, count)]
        weigh(own, scale, best * scale, own)
        total += add_up(own)
    for j in range(count, len(scores)):
        scores[j] = 0
    return np.float32(1.0 / total)


@numba.njit(cache=True, nogil=True)
def _alone(row, start, cache, slots, count, shared, scale, scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """One head of a row; `row` is its projections and what it gathers, `cache` keys and values."""
    keys, values = cache
    end, weights = start + keys.shape[2], scores[0, : len(slots)]
    query, gathered = row[0][start:end], row[1][start:end]
    for j in range(0, len(slots), 4):
        _score(query, keys, slots, j, shared, weights)
    share = _weights(weights, count, scale)
    gathered[:] = 0
    for j in range(0, len(slots), 4):
        _gather(weights, j, values, slots, shared, gathered)
    for i in range(len(gathered)):
        gathered[i] *= share


@numba.njit(cache=True, nogil=True)
def _pair(row, start, cache, slots, count, shared, scale, scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Two heads of a row, as `_alone`."""
    keys, values = cache
    dim, weights = keys.shape[2], scores[:, : len(slots)]
    middle, end = start + dim, start + 2 * dim
    query, other = row[0][start:middle], row[0][middle:end]
    gathered, beside = row[1][start:middle], row[1][middle:end]
    for j in range(0, len(slots), 4):
        _score_pair(query, other, keys, slots, j, shared, weights)
    share, its_share = _weights(weights[0], count, scale), _weights(weights[1], count, scale)
    row[1][start:end] = 0
    for j in range(0, len(slots), 4):
        _gather_pair(weights, j, values, slots, shared, gathered, beside)
    for i in range(dim):
        gathered[i] *= share
        beside[i] *= its_share


@numba.njit(cache=True, nogil=True)
def _attend(  # type: ignore[no-untyped-def]  # noqa: ANN202
    qkv,  # noqa: ANN001
    cos,  # noqa: ANN001
    sin,  # noqa: ANN001
    keys,  # noqa: ANN001
    values,  # noqa: ANN001
    keep,  # noqa: ANN001
    sequence,  # noqa: ANN001
    past,  # noqa: ANN001
    past_first,  # noqa: ANN001
    seen,  # noqa: ANN001
    seen_first,  # noqa: ANN001
    scale,  # noqa: ANN001
    slots,  # noqa: ANN001
    scores,  # noqa: ANN001
    out,  # noqa: ANN001
):
    key_heads, dim = keys.shape[1], keys.shape[2]
    heads = qkv.shape[1] // dim - 2 * key_heads
    group = heads // key_heads
    _rotate_heads(qkv[: len(keep)], cos, sin, heads + key_heads, dim)
    _store(qkv, heads, keys, values, keep)
    for row in range(len(keep)):
        count = 0
        for j in range(past_first[sequence[row]], past_first[sequence[row] + 1]):
            slots[count] = past[j]
            count += 1
        for j in range(seen_first[row], seen_first[row + 1]):
            slots[count] = keep[seen[j]]
            count += 1
        whole = (count + 3) // 4 * 4
        slots[count:whole] = slots[0]
        own, cache, held = (qkv[row], out[row]), (keys, values), slots[:whole]
        for shared in range(key_heads):
            first = shared * group
            for head in range(first, first + group - 1, 2):
                _pair(own, head * dim, cache, held, count, shared, scale, scores)
            if group % 2:
                _alone(own, (first + group - 1) * dim, cache, held, count, shared, scale, scores)
