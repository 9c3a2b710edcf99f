"""MurmurHash3 (32 bit) of four words, as engines hash (seed, position, token) for noise.

The words are the seed's low and high half, the position and the token id. The state after the first three
is shared by a row, so a row's key is that state and a token costs one more mixing.

Source of the hash: Austin Appleby's public-domain MurmurHash3_x86_32; of its use: vLLM 0.31 and 0.32,
`v1/worker/gpu/sample/gumbel.py`, and SGLang 0.5.10 and later, `layers/utils/hash.py`.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]

_C1, _C2, _N = np.uint32(0xCC9E2D51), np.uint32(0x1B873593), np.uint32(0xE6546B64)
_F1, _F2, _LENGTH = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35), np.uint32(16)
# The domain of the second hash of the 53-bit variant.
SECOND_DOMAIN = 0x9E3779B9


def _turned(x: U32, by: int) -> U32:
    return np.asarray((x << np.uint32(by)) | (x >> np.uint32(32 - by)))


def _mixed(state: U32, word: U32) -> U32:
    with np.errstate(over="ignore"):
        state = state ^ (_turned(word * _C1, 15) * _C2)
        return np.asarray(_turned(state, 13) * np.uint32(5) + _N)


def row_states(seed: int, positions: npt.NDArray[np.uint64], *, domain: int = 0) -> U32:
    """The state after seed and position, uint32 [R].

    Args:
        seed: taken modulo 2**64. positions: uint64 [R], taken modulo 2**32.
        domain: what the state starts from.
    """
    state = np.full(1, domain, np.uint32)
    for word in (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF):
        state = _mixed(state, np.array([word], np.uint32))
    return _mixed(state, (positions & np.uint64(0xFFFFFFFF)).astype(np.uint32))


def hashes(states: U32, tokens: npt.NDArray[np.int64]) -> U32:
    """The hashes of tokens int64 [R, C] in rows of states uint32 [R]; uint32 [R, C]."""
    h = _mixed(states[:, None], tokens.astype(np.uint32)) ^ _LENGTH
    with np.errstate(over="ignore"):
        h = (h ^ (h >> np.uint32(16))) * _F1
        h = (h ^ (h >> np.uint32(13))) * _F2
        return np.asarray(h ^ (h >> np.uint32(16)))


@numba.njit(cache=True, nogil=True, inline="always")
def hash_of(state, token):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """`hashes` of one state and token, uint32, compiled."""
    k = np.uint32(np.uint32(token) * np.uint32(0xCC9E2D51))
    k = np.uint32(np.uint32(k << np.uint32(15)) | (k >> np.uint32(17)))
    h = np.uint32(np.uint32(state) ^ np.uint32(k * np.uint32(0x1B873593)))
    h = np.uint32(np.uint32(h << np.uint32(13)) | (h >> np.uint32(19)))
    h = np.uint32(np.uint32(h * np.uint32(5)) + np.uint32(0xE6546B64))
    h = np.uint32(h ^ np.uint32(16))
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))
