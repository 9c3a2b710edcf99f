"""Figures of a report as inline SVG in the page's own colours: one drawing for light, dark and print. Pure.

Only shapes and labels: no script, style or address. Text is escaped here; colours are the page's variables.
Each figure's numbers are also in a table of the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

SERIES = tuple(f"var(--series-{n})" for n in range(1, 8))
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 4")
_LINE_HEIGHT = 15.0


@dataclass(frozen=True, slots=True)
class Series:
    """A line: (x, y) in data units, a name, a colour and a dash pattern."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dash: str = ""


@dataclass
class Plot:
    """A plane of `width` by `height` with room for labels, and marks drawn on it."""

    width: float
    height: float
    x: Callable[[float], float]
    y: Callable[[float], float]
    left: float = 62.0
    right: float = 150.0
    top: float = 14.0
    bottom: float = 44.0
    parts: list[str] = field(default_factory=list)

    def across(self, value: float) -> float:
        """Horizontal place of an x."""
        return self.left + self.x(value) * (self.width - self.left - self.right)

    def up(self, value: float) -> float:
        """Vertical place of a y."""
        return self.height - self.bottom - self.y(value) * (self.height - self.top - self.bottom)

    def line(
        self,
        points: Sequence[tuple[float, float]],
        colour: str,
        *,
        width: float = 2.2,
        dash: str = "",
    ) -> None:
        """A polyline through places."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"'
            f' stroke-linejoin="round" stroke-linecap="round"{dashed}/>'
        )

    def dot(self, x: float, y: float, colour: str, radius: float = 3.4, *, hollow: bool = False) -> None:
        """A point at a place."""
        fill = "var(--card)" if hollow else colour
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
        self.parts.append(f'<circle {place} fill="{fill}" stroke="{colour}" stroke-width="1.6"/>')

    def text(
        self, x: float, y: float, said: str, *, anchor: str = "start", colour: str = "var(--soft)"
    ) -> None:
        """A label at a place."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(said)}</text>'
        )

    def axes(
        self, xs: Sequence[tuple[float, str]], ys: Sequence[tuple[float, str]], *, x_label: str, y_label: str
    ) -> None:
        """Grid, ticks and names of the axes."""
        start, end = self.left, self.width - self.right
        for value, said in ys:
            at = self.up(value)
            self.parts.append(
                f'<line x1="{start}" x2="{end}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>'
            )
            self.text(start - 8, at + 4, said, anchor="end")
        floor = self.height - self.bottom
        for value, said in xs:
            at = self.across(value)
            self.parts.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 5}" stroke="var(--faint)"/>'
            )
            self.text(at, floor + 19, said, anchor="middle")
        self.parts.append(f'<line x1="{start}" x2="{end}" y1="{floor}" y2="{floor}" stroke="var(--faint)"/>')
        self.text((start + end) / 2, self.height - 5, x_label, anchor="middle")
        middle = (self.top + floor) / 2
        self.parts.append(
            f'<text x="14" y="{middle:.1f}" text-anchor="middle" fill="var(--soft)"'
            f' transform="rotate(-90 14 {middle:.1f})">{escape(y_label)}</text>'
        )

    def end_labels(self, lines: Sequence[Series]) -> None:
        """Names at the right edge, each after a piece of its line, pushed apart where they would overlap."""
        column = self.width - self.right + 10
        last = -math.inf
        ends = [(self.up(one.points[-1][1]), one.name, one) for one in lines if one.points]
        for at, name, one in sorted(ends, key=lambda end: end[:2]):
            last = max(at + 4, last + _LINE_HEIGHT)
            self.line([(column, last - 4), (column + 22, last - 4)], one.colour, dash=one.dash)
            self.text(column + 28, last, name, colour=one.colour)

    def svg(self, title: str) -> str:
        """The drawing."""
        return (
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" aria-label="{escape(title)}"'
            f' font-size="12">{"".join(self.parts)}</svg>'
        )


def stretched(value: float) -> float:
    """Decimal exponents on an axis that is linear up to 10 either way and logarithmic beyond."""
    if abs(value) <= 10.0:
        return value / 10.0
    return math.copysign(1.0 + 0.8 * math.log10(abs(value) / 10.0), value)


def raised(exponent: float) -> str:
    """Ten to a whole power, in digits that need no markup."""
    if exponent == 0:
        return "1"
    return "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def evidence_figure(
    series: Sequence[Series], bar: float, labels: Sequence[tuple[float, str]], title: str
) -> str:
    """Evidence of each provider by period, with the line above which a period convicts.

    Args:
        series: (number of the period, decimal exponent of the e-value).
        bar: decimal exponent that convicts. labels: what to write under some of the periods.
    """
    values = [y for one in series for _, y in one.points] or [0.0]
    low, high = min(-4.0, *values) - 1.0, max(10.0, bar + 1.0, *values)
    first = min((x for one in series for x, _ in one.points), default=0.0)
    last = max((x for one in series for x, _ in one.points), default=1.0)
    wide = max(last - first, 1.0)
    bottom, top = stretched(low), stretched(high)
    plot = Plot(
        920,
        400,
        x=lambda v: (v - first) / wide if last > first else 0.5,
        y=lambda v: (stretched(v) - bottom) / (top - bottom),
    )
    ticks = [t for t in (-30, -10, -5, 0, 5, 10, 30, 100, 300) if low <= t <= high]
    plot.axes(
        labels, [(t, raised(t)) for t in ticks], x_label="end of period (UTC)", y_label="evidence (e-value)"
    )
    at = plot.up(bar)
    plot.line([(plot.left, at), (plot.width - plot.right, at)], "var(--bar)", width=1.4, dash="6 4")
    plot.text(plot.left + 6, at - 6, "convicted above this line", colour="var(--bar)")
    for one in series:
        places = [(plot.across(x), plot.up(y)) for x, y in one.points]
        plot.line(places, one.colour, dash=one.dash)
        for x, y in places:
            plot.dot(x, y, one.colour)
    plot.end_labels(series)
    return plot.svg(title)


def power_figure(series: Sequence[Series], minimum: float, title: str) -> str:
    """Power against the share of requests on which a provider cheats, one line a cause."""
    floor = math.log10(0.02)
    plot = Plot(
        860,
        320,
        x=lambda v: (math.log10(v) - floor) / -floor,
        y=lambda v: v,
        right=170.0,
    )
    shares = [(f, f"{100 * f:g} %") for f in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)]
    plot.axes(
        shares,
        [(p, f"{p:g}") for p in (0.0, 0.25, 0.5, 0.75, 1.0)],
        x_label="share of requests cheated on",
        y_label="power",
    )
    at = plot.up(minimum)
    plot.line([(plot.left, at), (plot.width - plot.right, at)], "var(--soft)", width=1.2, dash="6 4")
    for one in series:
        plot.line([(plot.across(x), plot.up(y)) for x, y in one.points], one.colour, dash=one.dash)
    plot.end_labels(series)
    return plot.svg(title)


def span_figure(tokens: int, spans: Sequence[Sequence[int]], title: str) -> str:
    """Where in an answer the suspicious tokens lie: a bar of its length with the spans filled in."""
    scale = 300.0 / max(tokens, 1)
    parts = ['<rect x="0" y="3" width="300" height="10" rx="5" fill="var(--faint)"/>']
    for start, end in spans:
        wide = max((end - start) * scale, 2.0)
        parts.append(
            f'<rect x="{start * scale:.1f}" y="1" width="{wide:.1f}" height="14" rx="2" fill="var(--bad)"/>'
        )
    return f'<svg viewBox="0 0 300 16" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def styled(names: Sequence[str], points: Callable[[str], Sequence[tuple[float, float]]]) -> list[Series]:
    """Lines with a colour and, beyond as many as there are colours, a dash pattern of their own."""
    return [
        Series(name, points(name), SERIES[n % len(SERIES)], _DASHES[n % len(_DASHES)])
        for n, name in enumerate(names)
    ]
