"""The matrix as one HTML file: heat maps, power curves, the table; no script or network, light or dark. Pure.

Heat maps are tables whose cells say the power in words as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from auditor.html_templates import html_template
from auditor.matrix.tables import (
    HEADS,
    bucket_names,
    by_family,
    cells,
    confusion_table,
    honest_text,
    tokens_text,
)
from auditor.reports.figures import Plot, Series, styled

WAYS = {"fused": "with fingerprints", "tokens_alone": "tokens alone", "published": "published mean margin"}
MOST_LINES = 7
"""Lines in one plot: beyond, they cannot be told apart."""


def render_matrix(found: dict[str, Any]) -> str:
    """The page of a run (`summary.report`)."""
    rows = by_family(found)
    return html_template("matrix.html.jinja").render(
        found=found,
        ways=WAYS,
        heat=[_heat(row) for row in rows],
        budgets=[f"{tokens:,}" for tokens in rows[0]["curve"]["tokens"]],
        buckets=bucket_names(found),
        positions=[_positions(row, rows[0]) for row in rows],
        curves=_curves(rows[1:]),
        heads=HEADS,
        table=[cells(row) for row in rows],
        confusions=[
            (title, *confusion_table(found["diagnosis"][way]["confusion"]), found["diagnosis"][way])
            for way, title in (("named", "All hypotheses"), ("unlisted", "Without the row's own entry"))
            if found["diagnosis"][way]["logs"]
        ],
        honest=honest_text(found),
    )


def _percent(share: float) -> int:
    return round(100 * share)


def _heat(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": row["name"],
        "ways": {way: [_percent(share) for share in row["curve"][way]] for way in WAYS},
    }


def _positions(row: dict[str, Any], honest: dict[str, Any]) -> dict[str, Any]:
    """Mismatches by position, in percent, and their excess over honest ones on a scale to a fifth."""
    cells = [
        None
        if rate is None
        else (f"{100 * rate:.1f}", _percent(min(1.0, max(0.0, rate - (own or 0.0)) / 0.2)))
        for rate, own in zip(row["by_position"], honest["by_position"], strict=True)
    ]
    return {"name": row["name"], "cells": cells}


def _curves(rows: Sequence[dict[str, Any]]) -> list[tuple[str, Markup]]:
    """Power against tokens, a figure for each few rows of a family."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    figures = []
    for family, members in families.items():
        for start in range(0, len(members), MOST_LINES):
            part = members[start : start + MOST_LINES]
            number = f" ({start // MOST_LINES + 1})" if len(members) > MOST_LINES else ""
            figures.append((f"{family}{number}", _drawn(part)))
    return figures


def _drawn(rows: Sequence[dict[str, Any]]) -> Markup:
    last = math.log10(max(row["curve"]["tokens"][-1] for row in rows))
    plot = Plot(860, 280, x=lambda v: math.log10(v) / last, y=lambda v: v, right=210.0)
    ticks = [(float(10**n), f"{10**n:,}") for n in range(math.floor(last) + 1)]
    shares = [(p, f"{p:g}") for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    plot.axes(ticks, shares, x_label="output tokens seen", y_label="power")
    lines = styled([row["name"] for row in rows], lambda name: _points(name, rows))
    for one in lines:
        plot.line([(plot.across(x), plot.up(y)) for x, y in one.points], one.colour, dash=one.dash)
    plot.end_labels([Series(_short(one.name), one.points, one.colour, one.dash) for one in lines])
    said = "; ".join(f"{row['name']}: {tokens_text(row, 'fused')} tokens for 0.99" for row in rows)
    return Markup(plot.svg(f"Power of the verdict against tokens seen. {said}"))  # noqa: S704  escaped there


def _points(name: str, rows: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    curve = next(row["curve"] for row in rows if row["name"] == name)
    return [(float(t), float(p)) for t, p in zip(curve["tokens"], curve["fused"], strict=True)]


def _short(name: str) -> str:
    return name.partition("/")[2]
