"""The 32-bit Mersenne Twister, with access to chosen words, and what torch's CPU generator makes of them.

A *state* is uint32 [625]: the twister's 624 words and how many of their outputs were handed out. A row of
noise is named by the state before its first word, so its later words can be had without those in between:
whole blocks of 624 are twisted, and only the words asked for are tempered and transformed.

Source: Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8 (1998). torch's use of it: ATen
`CPUGeneratorImpl.h`, `DistributionsHelper.h`, compared with torch 2.13 bit for bit.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels.splitmix import F64

U32 = npt.NDArray[np.uint32]

BLOCK = 624
_SHIFT = 397


def seeded(seed: int) -> U32:
    """State of a generator seeded (`init_genrand`) with the low 32 bits of `seed`, before its first word."""
    state = np.empty(BLOCK + 1, np.uint32)
    state[:BLOCK] = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)["state"]["key"]
    state[BLOCK] = BLOCK
    return state


def words(seed: int, start: int, stop: int) -> U32:
    """Words `start` to `stop - 1` of that generator, uint32 [stop - start]."""
    out = np.empty(stop - start, np.uint32)
    _words(skipped(seeded(seed), start), out)
    return out


def float_uniforms(seed: int, start: int, stop: int) -> F64:
    """Numbers `start` to `stop - 1` of `std::uniform_real_distribution<float>`, float64 [stop - start].

    libstdc++'s: one word, rounded to float32, / 2**32, below 1.
    """
    drawn = words(seed, start, stop).astype(np.float32) * np.float32(2.0**-32)
    return np.asarray(np.minimum(drawn, np.float32(1.0 - 2.0**-24)).astype(np.float64))


def skipped(state: U32, count: int) -> U32:
    """The state `count` words later; costs one twist a block, no word is made."""
    later = state.copy()
    _skip(later, count)
    return later


def row_states(state: U32, words_per_row: int, rows: int) -> U32:
    """States before each of `rows` rows of so many words, uint32 [rows + 1, 625]; the last is after all."""
    out = np.empty((rows + 1, BLOCK + 1), np.uint32)
    _row_states(state, words_per_row, out)
    return out


def exponentials(state: U32, elements: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Chosen elements of `torch.empty(V).exponential_(generator=...)`, float32 [C].

    Two words an element, u = 53 of their 64 bits, -log1p(-u) in float64, rounded to float32.

    Args:
        state: before the row's first word; left as it is.
        elements: int64 [C], rising.
    """
    out = np.empty(len(elements), np.float32)
    _exponentials(state.copy(), elements, out)
    return out


def gumbel_rows(states: U32, vocabulary: int) -> F64:
    """Whole Gumbel rows `-ln E` of such exponentials, float64 [R, V], for states uint32 [R, 625]."""
    return gumbel_at(states, np.broadcast_to(np.arange(vocabulary), (len(states), vocabulary)))


def gumbel_at(states: U32, tokens: npt.NDArray[np.int64]) -> F64:
    """Gumbel noise `-ln E` of chosen tokens int64 [R, C] in any order, float64 [R, C]."""
    out = np.empty(tokens.shape)
    for r, state in enumerate(states):
        order = np.argsort(tokens[r], kind="stable")
        drawn = exponentials(state, np.ascontiguousarray(tokens[r][order], np.int64))
        # An exact zero (u = 0, one draw in 2**53) wins any race in torch too; its noise stays finite.
        out[r, order] = -np.log(np.maximum(drawn.astype(np.float64), 2.0**-60))
    return out


@numba.njit(cache=True, nogil=True)
def _twist(key):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The next 624 words of the state, in place."""
    upper, lower, matrix = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(0x9908B0DF)
    for i in range(BLOCK - _SHIFT):
        y = np.uint32((key[i] & upper) | (key[i + 1] & lower))
        key[i] = key[i + _SHIFT] ^ (y >> np.uint32(1)) ^ (np.uint32(-np.int32(y & np.uint32(1))) & matrix)
    for i in range(BLOCK - _SHIFT, BLOCK - 1):
        y = np.uint32((key[i] & upper) | (key[i + 1] & lower))
        old = key[i + _SHIFT - BLOCK]
        key[i] = old ^ (y >> np.uint32(1)) ^ (np.uint32(-np.int32(y & np.uint32(1))) & matrix)
    y = np.uint32((key[BLOCK - 1] & upper) | (key[0] & lower))
    key[BLOCK - 1] = key[_SHIFT - 1] ^ (y >> np.uint32(1)) ^ (np.uint32(-np.int32(y & np.uint32(1))) & matrix)


@numba.njit(cache=True, nogil=True, inline="always")
def _tempered(y):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    y = np.uint32(y ^ (y >> np.uint32(11)))
    y = np.uint32(y ^ (np.uint32(y << np.uint32(7)) & np.uint32(0x9D2C5680)))
    y = np.uint32(y ^ (np.uint32(y << np.uint32(15)) & np.uint32(0xEFC60000)))
    return np.uint32(y ^ (y >> np.uint32(18)))


@numba.njit(cache=True, nogil=True)
def _skip(state, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    place = np.int64(state[BLOCK]) + count
    while place > BLOCK:  # at exactly 624 the twist waits for the next word, as in every implementation
        _twist(state)
        place -= BLOCK
    state[BLOCK] = place


@numba.njit(cache=True, nogil=True)
def _row_states(state, words_per_row, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    out[0] = state
    for r in range(1, len(out)):
        out[r] = out[r - 1]
        _skip(out[r], words_per_row)


@numba.njit(cache=True, nogil=True)
def _words(state, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    place = np.int64(state[BLOCK])
    for i in range(len(out)):
        if place == BLOCK:
            _twist(state)
            place -= BLOCK
        out[i] = _tempered(state[place])
        place += 1


@numba.njit(cache=True, nogil=True)
def _exponentials(state, elements, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    base = 0  # the row's word that stands first in the present block, less the block's first place
    start = np.int64(state[BLOCK])
    for e in range(len(elements)):
        high = np.uint64(0)
        for half in range(2):
            place = start + 2 * elements[e] + half - base
            while place >= BLOCK:
                _twist(state)
                base += BLOCK
                place -= BLOCK
            word = np.uint64(_tempered(state[place]))
            high = (high << np.uint64(32)) | word
        u = np.float64(high & np.uint64((1 << 53) - 1)) * 2.0**-53
        out[e] = np.float32(-math.log1p(-u))
