"""Evidence over tokens as geometry: where lines, ticks and labels stand. The template draws them.

The vertical scale is the demo page's: exponents of ten, linear up to 10, where verdicts are made, and
logarithmic beyond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 760.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 18.0, 18.0, 46.0
_LINEAR, _STRETCH = 10.0, 1.4
_TICKS = (-30, -10, -5, 0, 5, 10, 30, 100, 300, 1000, 3000, 10000)


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    value: int


@dataclass(frozen=True, slots=True)
class Line:
    """One group's evidence. `end` is where its last point stands."""

    recipe: str
    path: str
    end: tuple[float, float]
    convicted: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing of `WIDTH` by `HEIGHT`; `bar` is the height of the conviction line."""

    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    bar: float
    zero: float


def evidence_plot(curves: Sequence[dict[str, Any]], alpha: float) -> Plot | None:
    """The plot of an exhibit's curves; None when there is no point to draw."""
    drawn = [(curve["recipe"] or "", [(0, 0.0), *map(tuple, curve["points"])]) for curve in curves]
    drawn = [(recipe, points) for recipe, points in drawn if len(points) > 1]
    if not drawn:
        return None
    threshold = -math.log10(alpha)
    exponents = [exponent for _, points in drawn for _, exponent in points]
    most = max(tokens for _, points in drawn for tokens, _ in points) or 1
    low, high = _stretched(min(-6.0, *exponents)), _stretched(max(threshold * 1.6, *exponents) + 1.0)

    def x(tokens: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * tokens / most, 1)

    def y(exponent: float) -> float:
        return round(
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (_stretched(exponent) - low) / (high - low), 1
        )

    lines = tuple(
        Line(
            recipe,
            "M" + "L".join(f"{x(tokens):g},{y(exponent):g}" for tokens, exponent in points),
            (x(points[-1][0]), y(points[-1][1])),
            points[-1][1] >= threshold,
        )
        for recipe, points in drawn
    )
    return Plot(
        lines,
        tuple(Tick(x(value), value) for value in _round_steps(most)),
        tuple(Tick(y(value), value) for value in _TICKS if low <= _stretched(value) <= high),
        y(threshold),
        y(0.0),
    )


def _stretched(exponent: float) -> float:
    size = abs(exponent)
    place = _STRETCH * size / _LINEAR if size <= _LINEAR else _STRETCH + math.log10(size / _LINEAR)
    return math.copysign(place, exponent)


def _round_steps(most: int) -> list[int]:
    """Four to eight round numbers from 0 up to `most`."""
    rough = most / 5
    unit = 10.0 ** math.floor(math.log10(max(rough, 1.0)))
    step = max(1, round(unit * next(m for m in (1, 2, 5, 10) if m * unit >= rough)))
    return list(range(0, most + 1, step))
