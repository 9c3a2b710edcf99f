"""A Gumbel race over the whole vocabulary under keyed noise: plain reference and compiled CPU path.

For every row: who wins `logit + noise`, who comes second, what the claimed token scored and how many
tokens beat it. Both functions have one signature; `race(..., backend=)` chooses.

The compiled path never evaluates a logarithm for a token that cannot matter. With
`u = (bits + 1/2) / 2**53` (mirrored for the classic transform) token v scores above a level t exactly
when `u < 1 - exp(-exp(z_v - t))`, and that is below `exp(z_v - t)`: one multiplication and one
comparison with the exponential that the log-normaliser needs anyway rules out almost every token. A row
is read in blocks, so that neither its weights nor its noise are ever in memory as a whole.
Survivors are scored in float64 with the engine's own formula, so the answer does not depend on the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels.splitmix import F64, LARGEST_UNIFORM, U64, bits53, gumbel

Backend = Literal["reference", "compiled"]


@dataclass(frozen=True, slots=True)
class RaceRows:
    """Outcome of R races. Scores are `logit + noise`, float64 [R]; ids int64 [R].

    Attributes:
        winner, winner_score: the race's first; ties go to the lowest id.
        runner_up_score: score of the second (-inf when one token has all the mass).
        claimed_score: score of the claimed token.
        rank: how many tokens score above the claimed one.
        log_normaliser: log of the summed exponentials of the row's logits.
    """

    winner: npt.NDArray[np.int64]
    winner_score: F64
    runner_up_score: F64
    claimed_score: F64
    rank: npt.NDArray[np.int64]
    log_normaliser: F64


def race(
    logits: npt.NDArray[np.float32],
    keys: U64,
    claimed: npt.NDArray[np.int64],
    *,
    tail_safe: bool,
    backend: Backend = "compiled",
) -> RaceRows:
    """Run one race a row.

    Args:
        logits: float32 [R, V], already divided by the temperature; -inf excludes a token.
        keys: uint64 [R], one noise row each.
        claimed: int64 [R], token ids within [0, V).
        tail_safe: which Gumbel transform (`splitmix.gumbel`).
        backend: `reference` materialises [R, V] noise; `compiled` does not.
    """
    if backend == "reference":
        return _race_reference(logits, keys, claimed, tail_safe=tail_safe)
    top = logits.max(axis=1)
    winner, first, second, score, rank, total = _race_compiled(logits, top, keys, claimed, tail_safe)
    return RaceRows(winner, first, second, score, rank, top + np.log(total))


def _race_reference(
    logits: npt.NDArray[np.float32], keys: U64, claimed: npt.NDArray[np.int64], *, tail_safe: bool
) -> RaceRows:
    rows, vocabulary = logits.shape
    ids = np.broadcast_to(np.arange(vocabulary, dtype=np.int64), (rows, vocabulary))
    z = logits.astype(np.float64)
    scores = z + gumbel(bits53(keys, ids), tail_safe=tail_safe)
    here = np.arange(rows)
    winner = scores.argmax(axis=1)
    claimed_score = scores[here, claimed]
    rank = (scores > claimed_score[:, None]).sum(axis=1)
    winner_score = scores[here, winner]
    scores[here, winner] = -np.inf
    top = z.max(axis=1)
    normaliser = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    return RaceRows(winner, winner_score, scores.max(axis=1), claimed_score, rank, normaliser)


@numba.njit(cache=True, nogil=True, inline="always")
def _mix(z):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True, nogil=True, inline="always")
def _noise(bits, tail_safe):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    u = (np.float64(bits) + 0.5) * 2.0**-53
    if tail_safe:
        return -math.log(-math.log1p(-min(u, LARGEST_UNIFORM)))
    inner = -math.log(u)
    return np.inf if inner <= 0.0 else -math.log(inner)


# Tokens weighed, hashed and compared at a time: what they need stays in the first-level cache.
_BLOCK = 256

# exp(x) = 2**n * exp(r) with n = round(x / ln 2), ln 2 in two parts, and a polynomial of degree 7 in r
# (Cephes' expf). Adding 1.5 * 2**23 rounds to an integer, which is then found in the low bits.
_PER_LN2, _ROUND = np.float32(1.44269504088896341), np.float32(1.5 * 2**23)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C7, _C6, _C5 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C4, _C3, _C2 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE = np.float32(1)
# Below the normal range a weight would be rounded coarsely or to 0, and hide tokens that beat a claim far
# down there; held at its edge it still bounds from above.
_LEAST = np.float32(-86.6)


# The three loops below are apart because LLVM vectorises each of them, but not their union.


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _weigh(logits, top, weights):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Set `weights` to exp(logits - top), but no less than exp(-86.6); the relative error is below 2e-7."""
    for i in range(len(logits)):
        x = logits[i] - top
        x = max(_LEAST, x)
        shifted = np.float32(x * _PER_LN2 + _ROUND)
        n = shifted - _ROUND
        r = x - n * _LN2_HIGH - n * _LN2_LOW
        p = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
        p = np.float32(p * r * r + r + _ONE)
        raised = np.int32(p.view(np.int32) + (shifted.view(np.int32) << np.int32(23)))
        weights[i] = raised.view(np.float32)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _total(weights):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = 0.0
    for i in range(len(weights)):
        total += np.float64(weights[i])
    return total


@numba.njit(cache=True, nogil=True)
def _hash(key, start, mirror, high):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Set `high` to the first 31 of the 53 bits of tokens `start`, `start + 1`, ...; winners' are near 0."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    z = key + np.uint64(start + 1) * golden
    for i in range(len(high)):
        high[i] = np.int32(_mix(z) >> np.uint64(33)) ^ mirror
        z += golden  # stepping costs a third less than multiplying


@numba.njit(cache=True, nogil=True)
def _survivors(weights, high, factor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """How many tokens of a block pass the bound."""
    found = np.int32(0)
    for i in range(len(weights)):
        found += np.int32(np.float32(high[i]) < factor * weights[i])
    return found


@numba.njit(cache=True, nogil=True)
def _bound(top, level):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """What `weight` is multiplied by for the first 31 bits to be compared with it.

    Those bits round the 53 down; 1e-4 covers what float32 rounds in them and in the weight. A survivor too
    many costs only time, and so does a factor beyond float32's range, an infinite one, which all pass.
    """
    return np.float32(math.exp(min(np.float64(top) - level, 600.0)) * 1.0001 * 2.0**31)


@numba.njit(cache=True, nogil=True)
def _race_compiled(logits, top, keys, claimed, tail_safe):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    rows, vocabulary = logits.shape
    golden = np.uint64(0x9E3779B97F4A7C15)
    mirror = np.int32(0) if tail_safe else np.int32(0x7FFFFFFF)
    winner = np.zeros(rows, np.int64)
    first = np.full(rows, -np.inf)
    second = np.full(rows, -np.inf)
    score = np.zeros(rows)
    rank = np.zeros(rows, np.int64)
    total = np.zeros(rows)
    block_weights, block_high = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
    for r in range(rows):
        y = claimed[r]
        bits = _mix(keys[r] + np.uint64(y + 1) * golden) >> np.uint64(11)
        score[r] = np.float64(logits[r, y]) + _noise(bits, tail_safe)
        # The claimed token leads at first: an honest row then has few survivors besides it.
        best, next_best, best_id, beaten_by = score[r], -np.inf, y, 0
        factor = np.float32(np.inf)
        for start in range(0, vocabulary, _BLOCK):
            stop = min(start + _BLOCK, vocabulary)
            weights, high = block_weights[: stop - start], block_high[: stop - start]
            _weigh(logits[r, start:stop], top[r], weights)
            total[r] += _total(weights)
            _hash(keys[r], start, mirror, high)
            if _survivors(weights, high, factor) == 0:
                continue
            for v in range(start, stop):
                if v == y or not np.float32(high[v - start]) < factor * weights[v - start]:
                    continue
                bits = _mix(keys[r] + np.uint64(v + 1) * golden) >> np.uint64(11)
                x = np.float64(logits[r, v]) + _noise(bits, tail_safe)
                if x > score[r]:
                    beaten_by += 1
                if x > best or (x == best and v < best_id):
                    best, next_best, best_id = x, best, v
                elif x > next_best:
                    next_best = x
                else:
                    continue
                factor = _bound(top[r], min(next_best, score[r]))
        winner[r], first[r], second[r], rank[r] = best_id, best, next_best, beaten_by
    return winner, first, second, score, rank, total
