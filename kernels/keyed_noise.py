"""The family of keyed noises: integers from (row key, token id), and the transform to Gumbel noise.

Every member is two functions of a row's key and a token, `noise` and `leading`, each written twice: plainly
in NumPy, and compiled for the races. A key is one to three uint64 words, whatever the member needs:

* SplitMix64: the row key. murmur: the state after seed and position (`murmur.row_states`), for 53 bits both.
* Philox of vLLM: the 32-bit word that `randint(seed, position)` gave.
* `exponential_` on CUDA: seed, number of the draw, threads of the launch.
* SGLang's first hash: the 64-bit step seed.

`leading` is an integer L below 2**31 with noise <= -ln(L / 2**31) + 1e-4: it rules a token out of a race
without a logarithm. Members that an engine computes in float32 are given the engine's integers and uniforms
exactly, and float64 logarithms: what rounding on the engine's side leaves open is the scheme's tolerance.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels import murmur, philox
from auditor.kernels.splitmix import F64, GOLDEN, U64, bits53, gumbel, gumbel_of, mix_word

# In place of an infinite noise, which would make an infinite margin: larger than any spread of logits.
ENDLESS = 1e4

_LOW = np.uint64(0xFFFFFFFF)
_TINY_64 = 2.2250738585072014e-308
_LEAST_E = 2.0**-24


class KeyedNoise(IntEnum):
    """Members of the family; the comment is u, then the noise."""

    SPLITMIX_CLASSIC = 0  # 53 bits; -ln(-ln u)
    SPLITMIX_TAIL_SAFE = 1  # 53 bits; -ln(-ln(1 - u))
    MURMUR_32 = 2  # (h + 1/2) / 2**32 in float32; -ln(-log1p(-u)), log1p by a polynomial below 1/4
    MURMUR_53 = 3  # 53 bits of two hashes; -ln(-ln u)
    MURMUR_24 = 4  # the leading 24 bits of h and a half; as MURMUR_32
    PHILOX_EPSILON = 5  # Triton's rand, float32; -ln(-ln(u + 1e-20) + 1e-20) in float64
    PHILOX_64 = 6  # two words / 2**64; -ln(-ln u)
    PHILOX_32 = 7  # Triton's rand, float32, zero raised; -ln(-log1p(-u))
    CUDA_EXPONENTIAL = 8  # cuRAND's uniform, float32, in (0, 1]; -ln(max(-ln u, 2**-24))
    SGLANG_24_EPSILON = 9  # 24 bits, float32; -ln(-ln(u + 1e-9) + 1e-9)
    SGLANG_24 = 10  # 24 bits, float32, zero raised to 1e-10; -ln(-ln u)
    SGLANG_32_OPEN = 11  # h / (2**32 - 1); -ln(-ln u), endless at the last h
    SGLANG_32 = 12  # h / (2**32 - 1); -ln(max(-ln u, 2**-32))


def key_words(keys: U64) -> U64:
    """Keys as uint64 [R, 3], given [R] or [R, W]."""
    keys = keys.reshape(len(keys), -1)
    words = np.zeros((len(keys), 3), np.uint64)
    words[:, : keys.shape[1]] = keys
    return words


def keyed_noise(kind: KeyedNoise, keys: U64, tokens: npt.NDArray[np.int64]) -> F64:
    """Gumbel noise of tokens int64 [R, C] under row keys uint64 [R] or [R, W]; float64 [R, C]."""
    if kind <= KeyedNoise.SPLITMIX_TAIL_SAFE:
        return gumbel(bits53(keys.reshape(len(keys)), tokens), tail_safe=bool(kind))
    key = key_words(keys)
    if kind in (KeyedNoise.MURMUR_32, KeyedNoise.MURMUR_24):
        h = murmur.hashes(key[:, 0].astype(np.uint32), tokens)
        scaled = (h.astype(np.float64) + 0.5) * 2.0**-32
        u = scaled if kind == KeyedNoise.MURMUR_32 else ((h >> np.uint32(8)) + 0.5) * 2.0**-24
        return _murmur_transform(u.astype(np.float32))
    if kind == KeyedNoise.CUDA_EXPONENTIAL:
        u = _curand_uniform(key, tokens)
        return np.asarray(-np.log(_cuda_exponential(u)))
    with np.errstate(divide="ignore"):
        inner = _inner(kind, key, tokens)
        return np.asarray(np.minimum(-np.log(inner), ENDLESS))


def _murmur_transform(u: npt.NDArray[np.float32]) -> F64:
    """The noise of float32 uniforms by vLLM's polynomial for log1p."""
    series, x = np.full(u.shape, 1.0 / 8.0), u.astype(np.float64)
    for term in range(7, 0, -1):
        series = 1.0 / term + x * series
    direct = -np.log(np.maximum(np.float32(1) - u, np.float32(2.0**-24)).astype(np.float64))
    return np.asarray(-np.log(np.where(u < np.float32(0.25), x * series, direct)))


def _curand_uniform(key: U64, tokens: npt.NDArray[np.int64]) -> F64:
    """float32 uniforms in (0, 1] of a launch of key[:, 2] threads, which make four numbers a round each."""
    i, threads = tokens.astype(np.uint64), key[:, 2:3]
    rounds, lane, thread = (
        key[:, 1:2] + i // (np.uint64(4) * threads),
        (i // threads) % np.uint64(4),
        i % threads,
    )
    seed = (key[:, 0:1] & _LOW, key[:, 0:1] >> np.uint64(32))
    four = philox.philox(
        (rounds & _LOW, rounds >> np.uint64(32), thread & _LOW, thread >> np.uint64(32)), seed
    )
    words = np.choose(lane.astype(np.int64), np.broadcast_arrays(*four))
    # Each step is rounded to float32 once, as a fused multiply and add does too.
    exact = words.astype(np.float32).astype(np.float64) * 2.0**-32 + 2.0**-33
    return np.asarray(exact.astype(np.float32).astype(np.float64))


def _cuda_exponential(u: F64) -> F64:
    return np.where(u >= 1.0 - _LEAST_E, _LEAST_E, -np.log(np.minimum(u, 1.0 - _LEAST_E)))


def _inner(kind: KeyedNoise, key: U64, tokens: npt.NDArray[np.int64]) -> F64:  # noqa: PLR0911 - a member each
    """What the noise is minus the logarithm of, for the classic transforms and Triton's log1p."""
    if kind == KeyedNoise.MURMUR_53:
        low, high = (murmur.hashes((key[:, 0] >> np.uint64(s)).astype(np.uint32), tokens) for s in (0, 32))
        bits = ((high.astype(np.uint64) << np.uint64(32)) | low) >> np.uint64(11)
        return np.asarray(-np.log(np.minimum((bits.astype(np.float64) + 0.5) * 2.0**-53, 1.0 - 2.0**-53)))
    if kind in (KeyedNoise.PHILOX_EPSILON, KeyedNoise.PHILOX_32):
        u = philox.triton_rand(key[:, 0:1], tokens.astype(np.uint64)).astype(np.float64)
        if kind == KeyedNoise.PHILOX_32:
            return np.asarray(-np.log1p(-np.maximum(u, np.float64(philox.TRITON_SCALE))))
        return np.asarray(-np.log(u + 1e-20) + 1e-20)
    if kind == KeyedNoise.PHILOX_64:
        first, second, _, _ = philox.triton_words(key[:, 0:1], tokens.astype(np.uint64))
        r = (second << np.uint64(32)) | first
        return np.asarray(-np.log(np.maximum(r.astype(np.float64) * 2.0**-64, _TINY_64)))
    if kind in (KeyedNoise.SGLANG_24, KeyedNoise.SGLANG_24_EPSILON):
        with np.errstate(over="ignore"):
            mixed = (key[:, 0:1] * np.uint64(8589934591)) ^ (tokens.astype(np.uint64) * np.uint64(479001599))
        u32 = (mixed & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)
        if kind == KeyedNoise.SGLANG_24:
            return np.asarray(-np.log(np.maximum(u32, np.float32(1e-10)).astype(np.float64)))
        return np.asarray(-np.log((u32 + np.float32(1e-9)).astype(np.float64)) + 1e-9)
    u = murmur.hashes(key[:, 0].astype(np.uint32), tokens).astype(np.float64) / (2.0**32 - 1.0)
    inner = np.minimum(-np.log(u), np.finfo(np.float64).max)
    return np.asarray(np.maximum(inner, 2.0**-32) if kind == KeyedNoise.SGLANG_32 else inner)


@numba.njit(cache=True, nogil=True)
def noise_of(kind, key, token):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, PLR0911
    """`keyed_noise` of one key (a tuple of three words) and token, compiled; the last place may differ."""
    if kind <= 1:
        return gumbel_of(key[0], token, kind == 1)
    if kind in (2, 4):
        return _murmur_noise(key[0], token, kind)
    if kind == 8:
        return _cuda_noise(key, token)
    if kind in (5, 7):
        u = np.float64(np.float32(_triton_magnitude(key[0], token)) * np.float32(4.6566127342e-10))
        if kind == 7:
            return -math.log(-math.log1p(-max(u, np.float64(np.float32(4.6566127342e-10)))))
        return -math.log(-math.log(u + 1e-20) + 1e-20)
    if kind in (9, 10):
        u32 = np.float32(_sglang_bits(key[0], token)) * np.float32(2.0**-24)
        if kind == 10:
            return -math.log(-math.log(np.float64(max(u32, np.float32(1e-10)))))
        return -math.log(-math.log(np.float64(np.float32(u32 + np.float32(1e-9)))) + 1e-9)
    if kind in (3, 6):
        inner = -math.log(_wide_uniform(key[0], token, kind))
    else:
        u = np.float64(murmur.hash_of(np.uint32(key[0]), token)) / 4294967295.0
        inner = 1.7976931348623157e308 if u == 0.0 else -math.log(u)
        if kind == 12:
            inner = max(inner, 2.0**-32)
    return ENDLESS if inner <= 0.0 else -math.log(inner)


@numba.njit(cache=True, nogil=True)
def _wide_uniform(key, token, kind):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """float64 uniforms of two words: murmur's 53 bits (3) and Philox's 64 (6)."""
    if kind == 6:
        none = np.uint64(0)
        low, high, _, _ = philox.philox_of(np.uint64(token), none, none, none, key, none)
        return max(np.float64((high << np.uint64(32)) | low) * 2.0**-64, 2.2250738585072014e-308)
    low = np.uint64(murmur.hash_of(np.uint32(key & np.uint64(0xFFFFFFFF)), token))
    high = np.uint64(murmur.hash_of(np.uint32(key >> np.uint64(32)), token))
    bits = ((high << np.uint64(32)) | low) >> np.uint64(11)
    return min((np.float64(bits) + 0.5) * 2.0**-53, 1.0 - 2.0**-53)


@numba.njit(cache=True, nogil=True)
def _murmur_noise(key, token, kind):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    h = murmur.hash_of(np.uint32(key), token)
    if kind == 2:
        u = np.float32((np.float64(h) + 0.5) * 2.0**-32)
    else:
        u = np.float32((np.float64(h >> np.uint32(8)) + 0.5) * 2.0**-24)
    if u < np.float32(0.25):
        x, series = np.float64(u), 1.0 / 8.0
        for term in range(7, 0, -1):
            series = 1.0 / term + x * series
        return -math.log(x * series)
    return -math.log(-math.log(np.float64(max(np.float32(np.float32(1) - u), np.float32(2.0**-24)))))


@numba.njit(cache=True, nogil=True, inline="always")
def _triton_magnitude(key, token):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    none = np.uint64(0)
    word = philox.philox_of(np.uint64(token), none, none, none, key, none)[0]
    signed = np.int64(word) - (np.int64(word >> np.uint64(31)) << 32)
    return -signed - 1 if signed < 0 else signed


@numba.njit(cache=True, nogil=True, inline="always")
def _cuda_word(key, token):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    i, low, half = np.uint64(token), np.uint64(0xFFFFFFFF), np.uint64(32)
    stride = i // key[2]
    counter, thread, lane = key[1] + (stride >> np.uint64(2)), i - stride * key[2], stride & np.uint64(3)
    a, b, c, d = philox.philox_of(
        counter & low, counter >> half, thread & low, thread >> half, key[0] & low, key[0] >> half
    )
    return a if lane == 0 else b if lane == 1 else c if lane == 2 else d


@numba.njit(cache=True, nogil=True)
def _cuda_noise(key, token):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    rounded = np.float64(np.float32(_cuda_word(key, token)))
    u = np.float64(np.float32(rounded * 2.0**-32 + 2.0**-33))
    return -math.log(2.0**-24) if u >= 1.0 - 2.0**-24 else -math.log(-math.log(u))


@numba.njit(cache=True, nogil=True, inline="always")
def _sglang_bits(key, token):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    mixed = (key * np.uint64(8589934591)) ^ (np.uint64(token) * np.uint64(479001599))
    return np.int64(mixed & np.uint64(0xFFFFFF))


@numba.njit(cache=True, nogil=True)
def leading_of(kind, key, token):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """L of one token, an int32 in [0, 2**31)."""
    one = np.empty(1, np.int32)
    fill_leading(kind, key, token, one)
    return one[0]


@numba.njit(cache=True, nogil=True)
def fill_leading(kind, key, start, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Set `out` to the L of tokens `start`, `start + 1`, ...; winners' are near 0."""
    if kind <= 1:
        _splitmix_leading(key[0], np.uint64(0xFFFFFFFFFFFFFFFF) if kind == 0 else np.uint64(0), start, out)
    elif kind in (2, 4):
        # Of 24 bits and a half the last seven of L may not count.
        _murmur_leading(np.uint32(key[0]), np.uint32(0), np.int32(-1 if kind == 2 else -128), start, out)
    elif kind == 3:
        _murmur_leading(np.uint32(key[0] >> np.uint64(32)), np.uint32(0xFFFFFFFF), np.int32(-1), start, out)
    elif kind >= 11:
        _murmur_leading(np.uint32(key[0]), np.uint32(0xFFFFFFFF), np.int32(-1), start, out)
    elif kind in (5, 7):
        _triton_leading(key[0], kind == 5, start, out)
    elif kind == 6:
        _philox_leading(key[0], start, out)
    elif kind == 8:
        _cuda_leading(key, start, out)
    else:
        for i in range(len(out)):
            out[i] = np.int32((np.int64(0xFFFFFF) - _sglang_bits(key[0], start + i)) << 7)


@numba.njit(cache=True, nogil=True)
def _splitmix_leading(key, mirror, start, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    z = key + np.uint64(start) * GOLDEN
    for i in range(len(out)):
        z += GOLDEN
        out[i] = np.int32((mix_word(z) ^ mirror) >> np.uint64(33))


@numba.njit(cache=True, nogil=True)
def _murmur_leading(state, mirror, mask, start, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(len(out)):
        h = murmur.hash_of(state, np.uint32(start + i)) ^ mirror
        out[i] = np.int32(h >> np.uint32(1)) & mask


@numba.njit(cache=True, nogil=True)
def _triton_leading(key, mirror, start, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(len(out)):
        magnitude = _triton_magnitude(key, start + i)
        # float32 rounds the last seven bits of a number near 2**31, either way.
        out[i] = np.int32(max(np.int64(0x7FFFFFFF) - magnitude - 256, 0) if mirror else magnitude)


@numba.njit(cache=True, nogil=True)
def _philox_leading(key, start, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    none = np.uint64(0)
    for i in range(len(out)):
        word = philox.philox_of(np.uint64(start + i), none, none, none, key, none)[1]
        out[i] = np.int32((np.uint64(0xFFFFFFFF) - word) >> np.uint64(1))


@numba.njit(cache=True, nogil=True)
def _cuda_leading(key, start, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    low, half, none = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(0)
    if key[2] >= np.uint64(start + len(out)):  # every element the first number of a thread of its own
        for i in range(len(out)):
            counter, thread = key[1], np.uint64(start + i)
            word = philox.philox_of(
                counter & low, counter >> half, thread, none, key[0] & low, key[0] >> half
            )[0]
            left = np.int64(0xFFFFFFFF - 512) - np.int64(word)
            out[i] = np.int32(left >> 1) if left > 0 else np.int32(0)
    else:
        for i in range(len(out)):
            word = _cuda_word(key, start + i)
            left = np.int64(0xFFFFFFFF - 512) - np.int64(word)
            out[i] = np.int32(left >> 1) if left > 0 else np.int32(0)
