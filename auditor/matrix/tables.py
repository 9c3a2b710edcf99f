"""The matrix for people and for spreadsheets: tables in Markdown, and rows in CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from auditor.matrix.power import E_VALUE_SHARE
from auditor.matrix.summary import WANTED
from auditor.matrix.texts import KEY, OPENING

_COLUMNS = (
    *("name", "timing", "traffic", "tokens", "mismatches", "differing", "fused_90", "fused_99"),
    *("tokens_alone_99", "one_look_99", "same_promise_99", "fingerprints_99", "winning", "floor"),
    "published_99",
    *("diagnosis", "diagnosis_unlisted", "localisation_iou", "localisation_hits", "source"),
)

HEADS = (
    *("deviation", "shows", "mismatches", "fused, 90 %", "fused, 99 %", "95 % of that", "tokens", "one look"),
    *("same promise", "fingerprints", "wins", "floor", "published", "named (without its own entry)", "spans"),
)
"""Of the columns of `cells`."""


def most(row: dict[str, Any]) -> str:
    """More than the largest sample tried."""
    return f"> {row['curve']['tokens'][-1]:,}"


def tokens_text(row: dict[str, Any], way: str, wanted: str = WANTED) -> str:
    """Tokens needed, or more than the largest sample tried; a dash where the way cannot judge."""
    if way == "fingerprints" and not row["has_states"]:
        return "-"
    needed = row["needed"][way][wanted]
    return most(row) if needed is None else f"{needed:,}"


def interval_text(row: dict[str, Any]) -> str:
    """Where the 95 % bounds of the power reach what is wanted."""
    low, high = row["interval"]
    return f"{most(row) if low is None else f'{low:,}'} to {most(row) if high is None else f'{high:,}'}"


def named_text(row: dict[str, Any]) -> str:
    """Causes that the diagnosis named, and those without the row's own entry where they are others."""
    found = row.get("diagnosis")
    if not found:
        return ""
    named, unlisted = (
        ", ".join(dict.fromkeys(cause for cause, _ in found[w])) for w in ("named", "unlisted")
    )
    return named if named == unlisted else f"{named} ({unlisted})"


def spans_text(row: dict[str, Any]) -> str:
    """How the reported spans lie."""
    found = row.get("localisation")
    if not found:
        return ""
    if not found["flagged"]:
        return f"0 of {found['requests']}"
    return (
        f"{found['flagged']} of {found['requests']}; {found['hits']:.2f} ({found['acted']:.2f}); "
        f"IoU {found['iou']:.2f}"
    )


def _beside(found: dict[str, Any]) -> str:
    names = {
        "fused": "with fingerprints",
        "tokens_alone": "tokens alone",
        "one_look": "tokens at one look, a threshold of the same kind",
        "same_promise": "with fingerprints, no more promised than by the published",
    }
    lines = []
    for way, name in names.items():
        one = found["beside_published"][way]
        mean = "-" if one["geometric_mean"] is None else f"{one['geometric_mean']:.2f}"
        counts = (one["needs_more"], one["only_ours"], one["only_published"])
        lines.append(f"| {name} | {one['rows']} | {mean} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def honest_text(found: dict[str, Any]) -> str:
    """What the disjoint honest audits came to."""
    audits = found["honest_audits"]
    if audits is None:
        return "No disjoint honest audits were made (`--honest-audits`)."
    rates = ", ".join(
        f"{one['audits']} at alpha {alpha} (95 %: at most {one['bound']:.4f})"
        for alpha, one in audits["convicted"].items()
    )
    return (
        f"{audits['audits']:,} disjoint honest audits, each of {audits['requests']} fresh requests of "
        f"at most {audits['tokens']} tokens with fingerprints,\ndecoded, replayed and judged as `audit "
        f"verify` does it, beside {audits['calibrations']} calibrations of {audits['calibration']} "
        "requests drawn\nanew: "
        f"{rates} convicted. The largest e-value was {math.exp(audits['most_log_e']):.2g}."
    )


def _opening(found: dict[str, Any]) -> list[str]:
    alarms, honest, floor = found["false_alarms"], found["rows"][0], found["floor"]
    said = OPENING.format(
        alpha=found["alpha"],
        recipe=found["recipe"],
        requests=honest["requests"],
        tokens=honest["tokens"],
        kind="int8, 16 features, final states: 17 bytes a token",
        audits=found["audits"],
        caught=found["caught"],
        rows=found["rows_measured"],
        honest_audits=honest_text(found),
        honest_logs=alarms["audits"],
        fused=alarms["most"]["fused"],
        alone=alarms["most"]["tokens_alone"],
        states=alarms["most"]["fingerprints"],
        one_look=alarms["most"]["one_look"],
        same_promise=alarms["most"]["same_promise"],
        published=alarms["most"]["published"],
        e_value_share=E_VALUE_SHARE,
        low=alarms["interval"][0],
        high=alarms["interval"][1],
        beside=_beside(found),
        enough=round(float(WANTED) - found["alpha"], 6),
        miss=round(1 - float(WANTED) + found["alpha"], 6),
        floor=_mean(floor["over_published"]),
        floor_rows=floor["rows"],
        over=_mean(floor["ours_over_floor"]),
    )
    return said.splitlines()


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def markdown(found: dict[str, Any]) -> str:
    """A page: what was measured, then one line a row; what cannot be caught stands in the same table."""
    lines = [*_opening(found), *_diagnosis(found), *KEY.splitlines(), ""]
    head = [*HEADS[:3], f"at output tokens {' / '.join(bucket_names(found))}", *HEADS[3:]]
    rows = []
    for row in by_family(found):
        name, shows, mismatches, *rest = cells(row)
        positions = " / ".join("-" if p is None else f"{p:.3f}" for p in row["by_position"])
        rows.append([name, shows, mismatches, positions, *rest])
    return "\n".join([*lines, *table(head, rows)])


def bucket_names(found: dict[str, Any]) -> list[str]:
    """Ranges of positions."""
    buckets = found["buckets"]
    return [f"{first}-{after - 1}" for first, after in pairwise(buckets[:-1])] + [f"{buckets[-2]}-"]


def by_family(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows, the honest one first, families together."""
    return sorted(found["rows"], key=lambda r: (r["name"] != "honest", r["family"]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def cells(row: dict[str, Any]) -> list[str]:
    """What a table says of a row, but for its mismatches by position."""
    return [
        row["name"],
        row["timing"],
        f"{row['mismatches'] / max(row['tokens'], 1):.4f}",
        tokens_text(row, "fused", "0.9"),
        tokens_text(row, "fused"),
        interval_text(row),
        tokens_text(row, "tokens_alone"),
        tokens_text(row, "one_look"),
        tokens_text(row, "same_promise"),
        tokens_text(row, "fingerprints"),
        row["winning"] or row["unseen"],
        most(row) if row["floor"] is None else f"{row['floor']:,}",
        tokens_text(row, "published"),
        named_text(row),
        spans_text(row),
    ]


def _diagnosis(found: dict[str, Any]) -> list[str]:
    named, unlisted = found["diagnosis"]["named"], found["diagnosis"]["unlisted"]
    if not named["logs"]:
        return []
    said = [
        f"{one['right']} of {one['logs']} ({one['share']:.2f}, 95 %: {low:.2f} to {high:.2f})"
        for one in (named, unlisted)
        for low, high in (one["interval"],)
    ]
    lines = [
        "",
        "## Diagnosis",
        "",
        f"The right family is named for {said[0]} logs of rows that are caught; for {said[1]}",
        "when the row's own entry is not among the hypotheses: a trick of a known family that nobody listed.",
        "Rows that act now and then count as what they do then. Logs by true family (lines) and named family",
        "(columns):",
        "",
    ]
    return (
        lines
        + table(*confusion_table(named["confusion"]))
        + ["", "Without the row's own entry:", ""]
        + table(*confusion_table(unlisted["confusion"]))
    )


def confusion_table(confusion: dict[str, dict[str, int]]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of families by families."""
    columns = sorted({*confusion, *(name for named in confusion.values() for name in named)})
    lines = [
        [family, *(str(named[name]) if name in named else "" for name in columns)]
        for family, named in confusion.items()
    ]
    return ["really", *columns], lines


def comma_separated(found: dict[str, Any]) -> str:
    """The same as CSV; an empty cell where no sample tried was enough."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in found["rows"]:
        spans, names = row.get("localisation") or {}, row.get("diagnosis") or {}
        needed = row["needed"]
        writer.writerow(
            [
                *(row[name] for name in ("name", "timing", "traffic", "tokens", "mismatches", "differing")),
                *(needed["fused"][wanted] for wanted in ("0.9", WANTED)),
                *(
                    needed[way][WANTED]
                    for way in ("tokens_alone", "one_look", "same_promise", "fingerprints")
                ),
                *(row["winning"], row["floor"], needed["published"][WANTED]),
                *(" ".join(cause for cause, _ in names.get(way, ())) for way in ("named", "unlisted")),
                *(spans.get("iou"), spans.get("hits"), row["source"]),
            ]
        )
    return out.getvalue()
