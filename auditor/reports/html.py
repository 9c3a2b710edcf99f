"""A report as one HTML file for people: no script, no network, light or dark or on paper. Pure.

A function of `report.json` and nothing else, so that it can be made again and compared. Whatever came from
users (names, ids, labels) reaches the page only through autoescape or `figures`, which escapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from auditor.html_templates import html_template
from auditor.reports.figures import evidence_figure, power_figure, span_figure, styled
from auditor.reports.words import WORDS, headline, meaning, odds

MOST_LABELS = 6
MOST_ROWS = 200
"""Audits of one provider that the page lists; `report.json` has all of them."""


def render_report(document: Mapping[str, Any], digest: str) -> str:
    """The page of a report with this digest."""
    periods = _periods(document)
    rules = {rule["id"]: rule for rule in document["grade"]["rules"]}
    return html_template("report.html.jinja").render(
        report=document,
        digest=digest,
        rules=rules,
        words=WORDS,
        headline=headline(document),
        day=_day,
        evidence=_evidence(document, periods),
        periods=periods,
        providers=[_provider(provider, document, periods) for provider in document["providers"]],
        exceptions=[_exception(one) for one in document["exceptions"]],
        most_rows=MOST_ROWS,
    )


def _svg(drawing: str) -> Markup:
    return Markup(drawing)  # noqa: S704  drawn by figures, which escapes its labels


def _day(moment: str) -> str:
    return moment[:10]


def _periods(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The periods before and this one, each with its providers by name."""
    own = {
        "report": document["id"],
        "start": document["period"]["start"],
        "end": document["period"]["end"],
        "grade": document["grade"]["letter"],
        "providers": [
            {**{n: p[n] for n in ("name", "verdict", "grade", "log10_e")}, "tokens": p["requests"]["tokens"]}
            for p in document["providers"]
        ],
    }
    return [
        {**line, "by_name": {p["name"]: p for p in line["providers"]}} for line in [*document["history"], own]
    ]


def _evidence(document: Mapping[str, Any], periods: Sequence[Mapping[str, Any]]) -> Markup:
    def points(name: str) -> list[tuple[float, float]]:
        return [
            (float(n), float(period["by_name"][name]["log10_e"]))
            for n, period in enumerate(periods)
            if name in period["by_name"]
        ]

    every = -(-len(periods) // MOST_LABELS)
    labels = [
        (float(n), _day(p["end"])) for n, p in enumerate(periods) if (len(periods) - 1 - n) % every == 0
    ]
    names = [provider["name"] for provider in document["providers"]]
    bar = -math.log10(float(document["policy"]["alpha"]))
    said = "; ".join(f"{p['name']}: {p['verdict']}, 10 to the {p['log10_e']}" for p in document["providers"])
    return _svg(evidence_figure(styled(names, points), bar, labels, f"Evidence by period. Now: {said}"))


def _provider(
    provider: Mapping[str, Any], document: Mapping[str, Any], periods: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        **provider,
        "anchor": f"provider-{[p['name'] for p in document['providers']].index(provider['name']) + 1}",
        "meaning": meaning(provider, document),
        "power": _power(provider, document),
        "strip": [_cell(period["by_name"].get(provider["name"]), period) for period in periods],
        "shown_audits": provider["audits"][-MOST_ROWS:],
    }


def _cell(found: Mapping[str, Any] | None, period: Mapping[str, Any]) -> dict[str, str]:
    verdict = "absent" if found is None else found["verdict"]
    marks = {"consistent": "✓", "inconsistent": "✕", "inconclusive": "?", "absent": "–"}
    return {"verdict": verdict, "mark": marks[verdict], "day": _day(period["end"])}


def _power(provider: Mapping[str, Any], document: Mapping[str, Any]) -> Markup | None:
    rows = {row["cause"]: row for row in provider["detectable"] if row["required"] and row["points"]}
    if not rows:
        return None

    def points(cause: str) -> list[tuple[float, float]]:
        return [(float(p["fraction"]), float(p["power"])) for p in rows[cause]["points"]]

    said = "; ".join(
        f"{cause}: {row['smallest_fraction'] or 'no share'} is enough" for cause, row in rows.items()
    )
    title = f"Power against cheating on a share of the requests. {said}"
    return _svg(power_figure(styled(list(rows), points), float(document["policy"]["minimum_power"]), title))


def _exception(one: Mapping[str, Any]) -> dict[str, Any]:
    spans = ", ".join(f"{start} to {end}" for start, end in one["spans"])
    title = f"Suspicious tokens {spans or 'not localised'} of {one['tokens']}"
    return {
        **one,
        "odds": odds(float(one["log10_e"])),
        "bar": _svg(span_figure(one["tokens"] or 1, one["spans"], title)),
    }
