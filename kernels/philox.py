"""Philox4x32-10: the counter generator of CUDA's cuRAND, of torch on CUDA and of Triton.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; known answers of
Random123. How its users fill key and counter: Triton's `random.py`, cuRAND's `curand_init`.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
# Triton's scale of a 31-bit integer to [0, 1), and the least positive number it so makes.
TRITON_SCALE = np.float32(4.6566127342e-10)


def philox(counter: tuple[U64, U64, U64, U64], key: tuple[U64, U64]) -> tuple[U64, U64, U64, U64]:
    """Ten rounds; all words are below 2**32, in arrays that broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * np.uint64(_M0), c2 * np.uint64(_M1)
        c0, c1, c2, c3 = (
            (right >> np.uint64(32)) ^ c1 ^ k0,
            right & _LOW,
            (left >> np.uint64(32)) ^ c3 ^ k1,
            left & _LOW,
        )
        k0, k1 = (k0 + np.uint64(_W0)) & _LOW, (k1 + np.uint64(_W1)) & _LOW
    return c0, c1, c2, c3


def triton_words(seeds: U64, offsets: U64) -> tuple[U64, U64, U64, U64]:
    """Triton's `randint4x(seed, offset)`: both are 64 bit, and 32-bit seeds are extended with zeros."""
    nothing = np.zeros(1, np.uint64)
    key = (seeds & _LOW, seeds >> np.uint64(32))
    return philox((offsets & _LOW, offsets >> np.uint64(32), nothing, nothing), key)


def triton_magnitude(words: U64) -> npt.NDArray[np.int64]:
    """The 31-bit integer that Triton's `rand` scales: a word read as signed, folded at zero."""
    signed = words.astype(np.uint32).view(np.int32).astype(np.int64)
    return np.where(signed < 0, -signed - 1, signed)


def triton_rand(seeds: U64, offsets: U64) -> npt.NDArray[np.float32]:
    """Triton's `rand(seed, offset)`: float32 in [0, 1)."""
    magnitude = triton_magnitude(triton_words(seeds, offsets)[0])
    return np.asarray(magnitude.astype(np.float32) * TRITON_SCALE)


@numba.njit(cache=True, nogil=True, inline="always")
def philox_of(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """`philox` of one counter and key, uint64 words below 2**32, compiled."""
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        left, right = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (right >> np.uint64(32)) ^ c1 ^ k0,
            right & low,
            (left >> np.uint64(32)) ^ c3 ^ k1,
            left & low,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3
