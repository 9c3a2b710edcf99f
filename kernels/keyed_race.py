"""A Gumbel race over the whole vocabulary under keyed noise: plain reference and compiled CPU path.

For every row: who wins `logit + noise`, who comes second, what the claimed token scored and how many
tokens beat it. Both functions have one signature; `race(..., backend=)` chooses.

The compiled path never evaluates a logarithm for a token that cannot matter. With
`u = (bits + 1/2) / 2**53` (mirrored for the classic transform) token v scores above a level t exactly
when `u < 1 - exp(-exp(z_v - t))`, and that is below `exp(z_v - t)`: one multiplication and one
comparison with the exponential that the log-normaliser needs anyway rules out almost every token.
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
    weights = np.exp(logits - top[:, None])
    normaliser = top + np.log(weights.sum(axis=1, dtype=np.float64))
    # Below the normal range a weight is rounded coarsely or to 0, and would hide tokens that beat a claim
    # far down there; held at its edge it still bounds from above.
    np.maximum(weights, np.finfo(np.float32).tiny, out=weights)
    winner, first, second, score, rank = _race_compiled(logits, weights, top, keys, claimed, tail_safe)
    return RaceRows(winner, first, second, score, rank, normaliser)


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


_BLOCK = 128


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _survivors(weights, key, start, stop, factor, tail_safe):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """How many tokens of a block pass the bound; branch-free, so that the compiler vectorises it."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    mirror = np.uint64(0) if tail_safe else np.uint64((1 << 53) - 1)
    found = np.int64(0)
    for v in range(start, stop):
        near_zero = (_mix(key + np.uint64(v + 1) * golden) >> np.uint64(11)) ^ mirror
        found += np.int64(np.float64(np.int64(near_zero)) < factor * np.float64(weights[v]))
    return found


@numba.njit(cache=True, nogil=True)
def _race_compiled(logits, weights, top, keys, claimed, tail_safe):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    rows, vocabulary = logits.shape
    golden = np.uint64(0x9E3779B97F4A7C15)
    winner = np.zeros(rows, np.int64)
    first = np.full(rows, -np.inf)
    second = np.full(rows, -np.inf)
    score = np.zeros(rows)
    rank = np.zeros(rows, np.int64)
    for r in range(rows):
        y = claimed[r]
        bits = _mix(keys[r] + np.uint64(y + 1) * golden) >> np.uint64(11)
        score[r] = np.float64(logits[r, y]) + _noise(bits, tail_safe)
        # The claimed token leads at first: an honest row then has few survivors besides it.
        best, next_best, best_id, beaten_by = score[r], -np.inf, y, 0
        factor = np.inf
        for start in range(0, vocabulary, _BLOCK):
            stop = min(start + _BLOCK, vocabulary)
            if _survivors(weights[r], keys[r], start, stop, factor, tail_safe) == 0:
                continue
            for v in range(start, stop):
                if v == y:
                    continue
                bits = _mix(keys[r] + np.uint64(v + 1) * golden) >> np.uint64(11)
                x = np.float64(logits[r, v]) + _noise(bits, tail_safe)
                if x > score[r]:
                    beaten_by += 1
                if x > best or (x == best and v < best_id):
                    best, next_best, best_id = x, best, v
                elif x > next_best:
                    next_best = x
            level = min(next_best, score[r])
            # 1e-4 covers the float32 rounding of the weight; a survivor too many costs only time.
            factor = math.exp(min(np.float64(top[r]) - level, 600.0)) * 1.0001 * 2.0**53
        winner[r], first[r], second[r], rank[r] = best_id, best, next_best, beaten_by
    return winner, first, second, score, rank
