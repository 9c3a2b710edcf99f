"""Loops over a run of logits that LLVM turns into vector code; the row kernels are made of them.

They are apart because LLVM vectorises each, but not their union. A run is short enough to stay in the
first-level cache. Floats are compared as integers (`ordered`): a maximum of integers is vectorised, that of
floats is not, and equal zeros of either sign become one.

Numba notices a change of the file that holds a cached function, not of what that function calls: after an
edit here remove `kernels/__pycache__`.
"""

from __future__ import annotations

import math

import numba
import numpy as np

# Tokens handled at a time, and tokens that share one maximum.
RUN, GROUP = 1024, 64

# exp(x) = 2**n * exp(r) with n = round(x / ln 2), ln 2 in two parts, and a polynomial of degree 6 in r.
# Adding 1.5 * 2**23 rounds to an integer, which is then found in the low bits.
_PER_LN2, _ROUND = np.float32(1.44269504088896341), np.float32(1.5 * 2**23)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C6, _C5, _C4 = np.float32(1.3814540041e-3), np.float32(8.3687451297e-3), np.float32(4.1668390788e-2)
_C3, _C2 = np.float32(1.6666520399e-1), np.float32(4.9999993432e-1)
_ONE = np.float32(1)
# Below the normal range a weight would be rounded coarsely or to 0, and hide tokens that beat a claim far
# down there; held at its edge it still bounds from above.
LEAST = np.float32(-86.6)
# In float64 the polynomial is Taylor's, of degree 13.
_ROUND_64 = np.float64(1.5 * 2**52)
_INVERSE_FACTORIALS = tuple(1.0 / math.factorial(k) for k in range(12, -1, -1))
_ZERO, _SIGN, _MASK, _MINUS_ZERO = np.float32(0), np.int32(31), np.int32(0x7FFFFFFF), np.int32(-1)
# Below the `ordered` integer of any float; and that of minus infinity.
LOWEST, NOTHING = np.int32(-0x80000000), np.int32(-0x7F800001)


@numba.njit(cache=True, nogil=True, inline="always")
def ordered(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """An int32 that compares as the float32 does; adding 0 turns -0 into 0."""
    bits = np.float32(x + _ZERO).view(np.int32)
    return np.int32(bits ^ ((bits >> _SIGN) & _MASK))


@numba.njit(cache=True, nogil=True, inline="always")
def unordered(key):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The float32 of an `ordered` integer."""
    return np.int32(key ^ ((key >> _SIGN) & _MASK)).view(np.float32)


@numba.njit(cache=True, nogil=True, inline="always")
def _larger(largest, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    bits = np.float32(x).view(np.int32)
    return max(largest, np.int32(bits ^ ((bits >> _SIGN) & _MASK)))


@numba.njit(cache=True, nogil=True)
def maxima(logits, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Set `out[g]` to the `ordered` largest logit of group g; returns the largest of all."""
    whole = len(logits) // GROUP
    for g in range(whole):
        largest = LOWEST
        for i in range(g * GROUP, g * GROUP + GROUP):  # a fixed count, for the vectoriser
            largest = _larger(largest, logits[i])
        out[g] = largest
    if whole < len(out):
        largest = LOWEST
        for i in range(whole * GROUP, len(logits)):
            largest = _larger(largest, logits[i])
        out[whole] = largest
    best = LOWEST
    for g in range(len(out)):
        if out[g] == _MINUS_ZERO:
            out[g] = 0
        best = max(best, out[g])
    return best


@numba.njit(cache=True, nogil=True, inline="always")
def exponential(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """exp(x) of a float32 from `LEAST` to 88, to within 2e-7 of itself beside the error of the exponent."""
    shifted = np.float32(x * _PER_LN2 + _ROUND)
    n = shifted - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = np.float32((((((_C6 * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + _ONE) * r + _ONE)
    raised = np.int32(p.view(np.int32) + (shifted.view(np.int32) << np.int32(23)))
    return raised.view(np.float32)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def weigh(logits, scale, shift, weights):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Set `weights` to exp(logits * scale - shift), but no less than exp(-86.6).

    The relative error is below 2e-7 beside that of the exponent; a NaN gives a NaN.
    """
    for i in range(len(logits)):
        x = logits[i] * scale - shift
        weights[i] = exponential(max(x, LEAST))


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def add_up(weights):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Sum of at most `RUN` weights: a vector's lanes add a few dozen each in float32."""
    total = _ZERO
    for i in range(len(weights)):
        total += weights[i]
    return np.float64(total)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def exponentials(x, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Set `out` to exp(x) in float64, to within two units in the last place; no less than exp(-708)."""
    for i in range(len(x)):
        y = max(x[i], -708.0)
        shifted = np.float64(y * 1.4426950408889634 + _ROUND_64)
        n = shifted - _ROUND_64
        r = y - n * 0.693147180369123816490 - n * 1.90821492927058770002e-10
        p = 1.0 / 6227020800.0
        for c in _INVERSE_FACTORIALS:
            p = p * r + c
        power = np.float64(p)  # a view needs a name that was set once
        out[i] = np.int64(power.view(np.int64) + (shifted.view(np.int64) << 52)).view(np.float64)


@numba.njit(cache=True, nogil=True)
def count_from(orders, bar):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """How many `ordered` integers are at least `bar`."""
    found = np.int32(0)
    for i in range(len(orders)):
        found += np.int32(orders[i] >= bar)
    return found


@numba.njit(cache=True, nogil=True)
def order_all(logits, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Set `out` to the `ordered` integers of the logits."""
    for i in range(len(logits)):
        out[i] = ordered(logits[i])
