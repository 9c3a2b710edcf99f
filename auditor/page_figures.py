"""Plots of the demo page, as inline SVG that follows the page's own colours.

Plots are drawn in marker colours which are then replaced by CSS variables, so that one SVG serves light,
dark and print. The SVG refers to nothing outside itself: no namespace addresses, no metadata, no fonts.
"""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from auditor.noise_model import F64, RequestCounts, bin_centres

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes

    from auditor.demonstration import Audit, Demonstration

_THEME = {
    "#010101": "var(--ink)",
    "#020202": "var(--faint)",
    "#030303": "var(--honest)",
    "#040404": "var(--bar)",
    "#050505": "var(--subtle)",
}
_BELOW = 1e-9  # a share of zero on a log axis: under its edge
INK, FAINT, HONEST_COLOUR, BAR, SUBTLE = _THEME
_SERIES = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c")
_COLOURS = _THEME | {marker: f"var(--series-{n})" for n, marker in enumerate(_SERIES, 1)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "auditor",
    "text.parse_math": False,
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
}


def colours(demonstration: Demonstration) -> dict[str, str]:
    """Marker colour of each provider: honest and unconvicted ones apart, the others in order."""
    chosen, series = {}, iter(_SERIES * 4)
    for audit in demonstration.audits:
        if audit.cause == "honest":
            chosen[audit.cause] = HONEST_COLOUR
        else:
            chosen[audit.cause] = SUBTLE if audit.tokens_to_convict is None else next(series)
    return chosen


def css_colour(marker: str) -> str:
    """Return the page's CSS value of a marker colour."""
    return _COLOURS[marker]


def evidence_figure(demonstration: Demonstration) -> str:
    """Evidence against tokens seen, one line a provider, with the conviction line; SVG."""
    line = -math.log10(demonstration.alpha)
    colour = colours(demonstration)
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 5.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_yscale("symlog", linthresh=10, linscale=1.4)
        axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.axhline(line, color=BAR, linewidth=1.4, linestyle=(0, (5, 3)))
        ends = []
        for audit in demonstration.audits:
            exponents = np.array([0.0, *audit.curve_log_e]) / math.log(10)
            tokens = (0, *audit.curve_tokens)
            axes.plot(tokens, exponents, color=colour[audit.cause], linewidth=2.0, solid_joinstyle="round")
            axes.plot(tokens[-1], exponents[-1], "o", color=colour[audit.cause], markersize=5)
            ends.append((tokens[-1], float(exponents[-1]), audit.cause))
        most = max(x for x, _, _ in ends)
        axes.set_xlim(0, most * 1.02)
        axes.set_ylim(min(-8.0, *(y - 2 for _, y, _ in ends)), None)
        axes.annotate(
            f"convicted above this line: {1 / demonstration.alpha:,.0f}",
            (most, line),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=BAR,
        )
        _end_labels(axes, ends, colour)
        _evidence_axes(axes, top=max(y for _, y, _ in ends))
        return _svg(figure, "evidence")


def _evidence_axes(axes: Axes, top: float) -> None:
    ticks = [t for t in (-5, 0, 5, 10, 30, 100, 300, 1000) if t <= max(10.0, top * 1.3)]
    axes.set_yticks(ticks, [_power_of_ten(t) for t in ticks])
    axes.minorticks_off()
    axes.grid(visible=True, axis="y", alpha=0.6)
    axes.set_xlabel("output tokens seen")
    axes.set_ylabel("evidence of cheating (e-value)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _power_of_ten(exponent: int) -> str:
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if exponent else "1"


def _end_labels(axes: Axes, ends: Sequence[tuple[int, float, str]], colour: dict[str, str]) -> None:
    """Name each line in a column on the right, pushed apart where they would overlap."""
    gap = 15.0
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    to_points = 72.0 / figure.dpi
    right = axes.get_xlim()[1]
    column = float(axes.transData.transform((right, 0.0))[0]) * to_points + 14
    placed: list[float] = []
    for x, y, cause in sorted(ends, key=lambda end: end[1]):
        across, up = (float(v) * to_points for v in axes.transData.transform((x, y)))
        height = max(up, placed[-1] + gap) if placed else up
        placed.append(height)
        axes.annotate(
            cause,
            (x, y),
            xytext=(column - across, height - up),
            textcoords="offset points",
            va="center",
            color=colour[cause],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour[cause],
                "linewidth": 0.6,
                "shrinkB": 5,
                "alpha": 0.6,
            },
        )


def margin_figure(honest: Iterable[RequestCounts], audit: Audit, marker: str) -> str:
    """Share of tokens whose margin exceeds a value: calibrated honest noise against one provider; SVG."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.6, 2.7), layout="constrained")
        axes = figure.add_subplot()
        edges, base = exceedance(honest)
        base, shown = np.maximum(base, _BELOW), np.maximum(exceedance(audit.counts)[1], _BELOW)
        axes.fill_between(edges, base, np.maximum(base, shown), step="post", color=marker, alpha=0.15)
        axes.step(edges, base, where="post", color=HONEST_COLOUR, linewidth=1.8)
        axes.step(edges, shown, where="post", color=marker, linewidth=2.0)
        axes.set(xscale="log", yscale="log", xlim=(1e-4, 30), ylim=(1e-4, 0.6))
        axes.set_xticks([1e-4, 1e-2, 1], ["0.0001", "0.01", "1"])
        axes.set_yticks([1e-4, 1e-3, 1e-2, 1e-1], ["1 in 10,000", "1 in 1,000", "1 in 100", "1 in 10"])
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.6)
        axes.set_xlabel("margin above (logits)")
        return _svg(figure, f"margin-{re.sub('[^a-z0-9]+', '-', audit.cause.lower())}")


def exceedance(requests: Iterable[RequestCounts]) -> tuple[F64, F64]:
    """(margins, share of all tokens whose margin lies above each)."""
    centres = bin_centres()
    counted = np.zeros(len(centres))
    tokens = 0
    for request in requests:
        tokens += request.tokens
        for (_, margin), count in request.missed.items():
            counted[margin] += count
    above = np.append(np.cumsum(counted[::-1])[::-1][1:], 0.0)
    return np.maximum(centres, 1e-6), above / max(tokens, 1)


def _svg(figure: Figure, name: str) -> str:
    """Inline SVG: theme colours, the page's font, ids of its own, nothing that points outside."""
    stream = io.StringIO()
    figure.savefig(
        stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None}
    )
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|width|height)="[^"]*"', "", svg, count=4)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    return re.sub("|".join(_COLOURS), lambda found: _COLOURS[found.group()], svg)
