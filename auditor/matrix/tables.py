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


def markdown(found: dict[str, Any]) -> str:
    """One line a row, families together; what cannot be caught stands in the same table."""
    buckets = found["buckets"]
    names = [f"{first}-{after - 1}" for first, after in pairwise(buckets[:-1])] + [f"{buckets[-2]}-"]
    head = [
        *("deviation", "shows", "mismatches", f"at output tokens {' / '.join(names)}"),
        *("tokens for 90 %", "for 99 %", "95 % of that", "mean clipped at 0.5, 99 %"),
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
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
