"""The matrix for people and for spreadsheets: a table in Markdown, and rows in CSV."""

from __future__ import annotations

import csv
import io
from itertools import pairwise
from typing import Any

_COLUMNS = (
    "name",
    "timing",
    "traffic",
    "tokens",
    "mismatches",
    "tokens_90",
    "tokens_99",
    "published_99",
    "source",
)


def tokens_text(row: dict[str, Any], which: str, wanted: str) -> str:
    """Tokens needed, or more than the largest sample tried."""
    needed = row[which][wanted]
    return f"> {row['curve']['tokens'][-1]:,}" if needed is None else f"{needed:,}"


def interval_text(row: dict[str, Any]) -> str:
    """Where the 95 % bounds of the power reach what is wanted."""
    low, high = row["interval"]
    most = f"> {row['curve']['tokens'][-1]:,}"
    return f"{most if low is None else f'{low:,}'} to {most if high is None else f'{high:,}'}"


_OPENING = """# The deviation matrix

Made by `audit matrix`: alpha {alpha:g}, honest recipe `{recipe}`, an audited log of {requests} requests
({tokens:,} tokens) and three times as many to calibrate. At each logged prefix the deviation draws its
own token, and the fused e-value judges logs made of whole requests drawn with replacement, {audits} of
each size. These are powers on this log's requests, not on other traffic.

Honest logs (decoded, not simulated), {honest_audits:,} of each size: at most {most:.4f} convicted (95 %:
{low:.4f} to {high:.4f}).

{caught} of {rows} rows are caught with power 0.99 within the largest sample tried; the others stand in
the same table, with `>` and that sample.

Last column: the published mean margin clipped at 0.5, at the best threshold there is, the honest pool's
own quantile. Where both catch a row ({both}), ours needs {ratio} times its tokens in the geometric mean.
"""


def _opening(found: dict[str, Any]) -> list[str]:
    """What the figures are, before the figures."""
    alarms, honest, beside = found["false_alarms"], found["rows"][0], found["published_ratio"]
    mean = beside["geometric_mean"]
    said = _OPENING.format(
        alpha=found["alpha"],
        recipe=found["recipe"],
        requests=honest["requests"],
        tokens=honest["tokens"],
        audits=found["audits"],
        honest_audits=alarms["audits"],
        most=alarms["most"],
        low=alarms["interval"][0],
        high=alarms["interval"][1],
        caught=found["caught"],
        rows=found["rows_measured"],
        both=beside["rows"],
        ratio="-" if mean is None else f"{mean:.2f}",
    )
    return [*said.splitlines(), ""]


def markdown(found: dict[str, Any]) -> str:
    """A page: what was measured, then one line a row; what cannot be caught stands in the same table."""
    buckets = found["buckets"]
    names = [f"{first}-{after - 1}" for first, after in pairwise(buckets[:-1])] + [f"{buckets[-2]}-"]
    head = [
        *("deviation", "shows", "mismatches", f"at output tokens {' / '.join(names)}"),
        *("tokens for 90 %", "for 99 %", "95 % of that", "mean clipped at 0.5, 99 %"),
    ]
    lines = _opening(found)
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in sorted(found["rows"], key=lambda r: (r["name"] != "honest", r["family"])):
        rates = " / ".join("-" if p is None else f"{p:.3f}" for p in row["by_position"])
        cells = [
            row["name"],
            row["timing"],
            f"{row['mismatches'] / max(row['tokens'], 1):.4f}",
            rates,
            tokens_text(row, "needed", "0.9"),
            tokens_text(row, "needed", "0.99"),
            interval_text(row),
            tokens_text(row, "published", "0.99"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comma_separated(found: dict[str, Any]) -> str:
    """The same as CSV; an empty cell where no sample tried was enough."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in found["rows"]:
        writer.writerow(
            [
                *(row[name] for name in ("name", "timing", "traffic", "tokens", "mismatches")),
                *(row["needed"][wanted] for wanted in ("0.9", "0.99")),
                row["published"]["0.99"],
                row["source"],
            ]
        )
    return out.getvalue()
