"""SplitMix64 counter noise: the integers behind every keyed Gumbel race we replay.

A row of noise is named by one 64-bit key; the noise of token `v` is a function of (key, v) alone, so
any entry can be computed without its neighbours. Source of the mixer: Steele, Lea, Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014 (finaliser variant 13 of Stafford).
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
LARGEST_UNIFORM = 1.0 - 2.0**-53
_MANTISSA = np.uint64((1 << 53) - 1)


def mix(z: U64) -> U64:
    """Finalise each 64-bit word; a bijection of uint64."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * _M1
        z = (z ^ (z >> np.uint64(27))) * _M2
        return z ^ (z >> np.uint64(31))


def bits53(keys: U64, tokens: npt.NDArray[np.int64]) -> U64:
    """53 random bits for each (key, token) pair.

    Args:
        keys: uint64 [R].
        tokens: int64 [R, C]; ids of the tokens wanted in each row.

    Returns:
        uint64 [R, C], each below 2**53.
    """
    with np.errstate(over="ignore"):
        return mix(keys[:, None] + (tokens.astype(np.uint64) + np.uint64(1)) * GOLDEN) >> np.uint64(11)


def gumbel(bits: U64, *, tail_safe: bool) -> F64:
    """Gumbel(0, 1) noise from 53-bit integers, in the arithmetic the engine uses.

    With `u = (bits + 1/2) / 2**53`, the classic transform is `-ln(-ln u)`, whose winners lie near
    u = 1, where the grid of doubles is coarse; the tail-safe one is `-ln(-ln(1 - u))`, whose winners lie
    near u = 0. They are different noises for the same bits.

    The last grid point rounds to u = 1. Tail-safe, it is held at the double below, since a seed can be made
    for it and an infinite margin must not be for sale; classic, it is +inf as in the engine, which no
    31-bit step seed reaches for a token id below 300,000 (all were tried).
    """
    u = (bits.astype(np.float64) + 0.5) * 2.0**-53
    if tail_safe:
        return np.asarray(-np.log(-np.log1p(-np.minimum(u, LARGEST_UNIFORM))))
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(-np.log(u)))


def flipped(bits: U64) -> U64:
    """Mirror the grid, u -> 1 - u: puts the winners of the classic transform near zero."""
    return _MANTISSA - bits


@numba.njit(cache=True, nogil=True, inline="always")
def mix_word(z):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """`mix` of one uint64, compiled."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def gumbel_of(key, token, tail_safe):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """`gumbel` of `bits53` of one key and token, compiled; the logarithm may differ in the last place."""
    bits = mix_word(key + np.uint64(token + 1) * GOLDEN) >> np.uint64(11)
    u = (np.float64(bits) + 0.5) * 2.0**-53
    if tail_safe:
        return -math.log(-math.log1p(-min(u, LARGEST_UNIFORM)))
    inner = -math.log(u)
    return np.inf if inner <= 0.0 else -math.log(inner)
