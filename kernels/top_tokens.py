"""The largest logits of a row, sorted: found by a bar just low enough, not by sorting the row.

Tokens stand in groups whose largest logits are known. If M groups reach a bar, M tokens do, so a bar is
found by halving over the few group maxima; only the groups that reach it are looked at. What passes is one
uint64 key a token: its logit as an ordered integer above, its id's complement below. Larger keys come first,
so equal logits stand by rising id and no two keys are equal.
"""

from __future__ import annotations

import numba
import numpy as np

from auditor.kernels.vector_loops import GROUP, LOWEST, count_from, order_all, ordered, unordered

# A digit of the radix sort, and how few keys are sorted faster by comparing them.
_DIGIT, _FEW = 11, 256


@numba.njit(cache=True, nogil=True)
def sorted_head(logits, maxima, wanted, keys):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The keys of the `wanted` largest logits (of all, if there are fewer), falling.

    Args:
        logits: float32 [V]. maxima: int32, `vector_loops.maxima` of it.
        keys: uint64 scratch [V + 1]; what is returned may be a view of it.
    """
    wanted = min(wanted, len(logits))
    if wanted == 0:
        return keys[:0]
    if 4 * wanted <= 3 * len(maxima):
        bar = _bar(maxima, wanted)
    else:
        orders = np.empty(len(logits), np.int32)
        order_all(logits, orders)
        bar = _bar(orders, wanted)
    found = gather_above(logits, maxima, bar, keys)
    for g in range(len(maxima)):
        if found >= wanted:
            break
        if maxima[g] >= bar:
            for v in range(g * GROUP, min(len(logits), g * GROUP + GROUP)):
                if found < wanted and ordered(logits[v]) == bar:
                    keys[found] = _key(bar, v)
                    found += 1
    return falling(keys[:found])[:wanted]


@numba.njit(cache=True, nogil=True)
def gather_above(logits, maxima, bar, keys):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the keys of all tokens whose `ordered` logit is above `bar`, by rising id; returns how many."""
    found, level = np.uint64(0), unordered(bar)
    above = np.empty(GROUP, np.uint8)
    for g in range(len(maxima)):
        if maxima[g] > bar:
            group = logits[g * GROUP : g * GROUP + GROUP]
            for i in range(len(group)):
                above[i] = not group[i] <= level
            for i in range(len(group)):
                keys[found] = np.uint64(g * GROUP + i)
                found += np.uint64(above[i])  # no branch: which tokens pass cannot be predicted
    for i in range(found):
        keys[i] = _key(ordered(logits[keys[i]]), keys[i])
    return np.int64(found)


@numba.njit(cache=True, nogil=True)
def falling(keys):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Keys that stand by rising id among equal logits, sorted to fall; overwrites `keys`."""
    if len(keys) <= _FEW:
        keys.sort()
        return keys[::-1]
    other = np.empty_like(keys)
    varying = np.uint64(0)
    for i in range(len(keys)):
        varying |= keys[i] ^ keys[0]
    for shift in range(32, 64, _DIGIT):
        if (varying >> np.uint64(shift)) & np.uint64((1 << _DIGIT) - 1):
            _by_digit(keys, other, np.uint64(shift))
            keys, other = other, keys
    return keys


@numba.njit(cache=True, nogil=True, inline="always")
def logit_of(key):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The logit in a key."""
    return unordered(np.int32(np.int64(key >> np.uint64(32)) - np.int64(0x80000000)))


@numba.njit(cache=True, nogil=True)
def unpack(keys, ids, logits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the tokens and logits of `keys`."""
    for j in range(len(keys)):
        ids[j] = np.int64(0xFFFFFFFF - (keys[j] & np.uint64(0xFFFFFFFF)))
        logits[j] = logit_of(keys[j])


@numba.njit(cache=True, nogil=True, inline="always")
def _key(order, token):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    high = np.uint64(np.int64(order) + np.int64(0x80000000))
    return (high << np.uint64(32)) | np.uint64(0xFFFFFFFF - token)


@numba.njit(cache=True, nogil=True)
def _bar(orders, wanted):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """A number which at least `wanted` of `orders` reach, and few more unless many are equal to it."""
    low, high = np.int64(LOWEST), np.int64(orders.max()) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        found = count_from(orders, np.int32(middle))
        if found < wanted:
            high = middle
        else:
            low = middle
            if found <= wanted + wanted // 4:
                break
    return np.int32(low)


@numba.njit(cache=True, nogil=True)
def _by_digit(keys, out, shift):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """One pass of a radix sort, largest digit first, that leaves equal digits in their order."""
    digits = np.uint64((1 << _DIGIT) - 1)
    place = np.zeros((1 << _DIGIT) + 1, np.int64)
    for i in range(len(keys)):
        place[digits - ((keys[i] >> shift) & digits) + np.uint64(1)] += 1
    for digit in range(1, len(place)):
        place[digit] += place[digit - 1]
    for i in range(len(keys)):
        digit = digits - ((keys[i] >> shift) & digits)
        out[place[digit]] = keys[i]
        place[digit] += 1
