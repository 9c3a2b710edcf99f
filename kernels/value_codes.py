"""Small codes for rows of features: int4, int8 and fp8 with a one-byte scale a row, and bf16 without.

A code is a cell: all values that round to it. A checker that has the exact value measures how far it lies
outside the cell, so a coarse code costs bytes and resolution but adds no error of its own.

The scale of a row is `2 ** ((byte - 128) / 8)`, the smallest with which the row's largest value fits. Table
values are products of eight stated doubles and powers of two, hence the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from auditor.kernels.splitmix import F64

CodeName = Literal["int4", "int8", "fp8", "bf16"]
CODES: tuple[CodeName, ...] = ("int4", "int8", "fp8", "bf16")

_EIGHTHS = (  # 2 ** (i / 8)
    *(1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096),
    *(1.4142135623730951, 1.5422108254079407, 1.681792830507429, 1.8340080864093424),
)
SCALES: F64 = np.array([np.ldexp(_EIGHTHS[b % 8], b // 8 - 16) for b in range(256)])
"""Scale of each scale byte: 2**-16 to 2**15.875."""

TOPS = {"int4": 7.0, "int8": 127.0, "fp8": 448.0}
"""Largest magnitude of each scaled code."""

# float8 e4m3fn without sign: 0 to 448; 0x7f is NaN.
_FP8: F64 = np.array([c * 2.0**-9 if c < 8 else np.ldexp(8.0 + (c & 7), (c >> 3) - 10) for c in range(0x7F)])
_FP8_MIDDLES = (_FP8[1:] + _FP8[:-1]) / 2
FP8_NAN = 0x7F


@dataclass(frozen=True, slots=True)
class Coded:
    """Rows of features, coded.

    Attributes:
        scale: uint8 [n], the scale byte of each row; 0 for bf16, which has none.
        levels: [n, k]: int8 for int4 and int8; uint8 (bits) for fp8; uint16 (bits) for bf16.
    """

    code: CodeName
    scale: npt.NDArray[np.uint8]
    levels: npt.NDArray[np.int8] | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


def quantize(features: F64, code: CodeName) -> Coded:
    """Code rows of features, float64 [n, k]: nearest level, ties to the even one.

    Raises:
        ValueError: NaN, infinity, or a value beyond what the largest scale reaches.
    """
    if not np.isfinite(features).all():
        raise ValueError("features that are NaN or infinite")
    if code == "bf16":
        return Coded(code, np.zeros(len(features), np.uint8), _to_bf16(features))
    largest = np.abs(features).max(axis=1, initial=0.0) / TOPS[code]
    place = np.searchsorted(SCALES, largest, side="left")
    if (place >= len(SCALES)).any():
        raise ValueError(f"a feature of {float(np.abs(features).max()):.3g}, too large for a scale byte")
    scale = place.astype(np.uint8)
    scaled = features / SCALES[scale][:, None]
    if code == "fp8":
        return Coded(code, scale, _to_fp8(scaled))
    top = TOPS[code]
    return Coded(code, scale, np.clip(np.rint(scaled), -top, top).astype(np.int8))


def cells(coded: Coded) -> tuple[F64, F64]:
    """Lowest and highest value of each code's cell, float64 [n, k] each."""
    if coded.code == "bf16":
        return _bf16_cells(coded.levels.astype(np.uint16))
    scale = SCALES[coded.scale][:, None]
    if coded.code != "fp8":
        centre = coded.levels.astype(np.float64)
        return (centre - 0.5) * scale, (centre + 0.5) * scale
    bits = coded.levels.astype(np.int64)
    magnitude, negative = bits & 0x7F, bits >= 0x80
    middles = np.concatenate([[-_FP8_MIDDLES[0]], _FP8_MIDDLES, [2 * _FP8[-1] - _FP8_MIDDLES[-1]]])
    low, high = middles[magnitude] * scale, middles[magnitude + 1] * scale
    return np.where(negative, -high, low), np.where(negative, -low, high)


def has_loose_scale(coded: Coded) -> bool:
    """Whether a row's scale is larger than its levels need: cells so wide that anything lies in them."""
    if coded.code == "bf16":
        return False
    levels = coded.levels.astype(np.int64)
    magnitude = _FP8[np.minimum(levels & 0x7F, len(_FP8) - 1)] if coded.code == "fp8" else np.abs(levels)
    # The scale before would not hold the largest value, so that is above top / 2 ** (1 / 8) before rounding.
    least = {"int4": 6.0, "int8": 116.0, "fp8": 416.0}[coded.code]
    return bool(((magnitude.max(axis=1, initial=0) < least) & (coded.scale > 0)).any())


def has_non_finite(coded: Coded) -> bool:
    """Whether a floating-point code is NaN or infinite."""
    bits = coded.levels.astype(np.int64)
    if coded.code == "fp8":
        return bool(((bits & 0x7F) == FP8_NAN).any())
    return coded.code == "bf16" and bool(((bits & 0x7F80) == 0x7F80).any())


def _to_fp8(scaled: F64) -> npt.NDArray[np.uint8]:
    magnitude = np.abs(scaled)
    left = np.searchsorted(_FP8_MIDDLES, magnitude, side="left")
    right = np.searchsorted(_FP8_MIDDLES, magnitude, side="right")
    place = np.where(left % 2 == 0, left, right)  # they differ at a tie only
    return np.asarray(place | np.where(np.signbit(scaled), 0x80, 0), np.uint8)


def _to_bf16(features: F64) -> npt.NDArray[np.uint16]:
    # Through float32: features come from float32 sums, which it holds exactly.
    with np.errstate(over="raise"):
        try:
            bits = features.astype(np.float32).view(np.uint32)
        except FloatingPointError:
            raise ValueError("a feature too large for bf16") from None
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    if ((rounded & np.uint32(0x7F80)) == np.uint32(0x7F80)).any():
        raise ValueError("a feature too large for bf16")
    return rounded.astype(np.uint16)


def _bf16_cells(bits: npt.NDArray[np.uint16]) -> tuple[F64, F64]:
    def value(magnitude: npt.NDArray[np.int64]) -> F64:
        raw = (magnitude.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
        return np.where(np.isfinite(raw), raw, np.float64(2.0**128))

    magnitude = (bits & np.uint16(0x7FFF)).astype(np.int64)
    here, above = value(magnitude), value(magnitude + 1)
    below = np.where(magnitude == 0, -above, value(np.maximum(magnitude - 1, 0)))
    low, high = (here + below) / 2, (here + above) / 2
    negative = bits >= 0x8000
    return np.where(negative, -high, low), np.where(negative, -low, high)
