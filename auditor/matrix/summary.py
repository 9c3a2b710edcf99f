"""The whole run as one JSON object, `auditor.matrix/v2`: rows, and what they come to together. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import geometric_mean
from typing import Any

from auditor.diagnosis.causes import OTHER
from auditor.matrix.naming import true_family
from auditor.matrix.power import AUDITS, HONEST_AUDITS, SIZES, bound
from auditor.matrix.run import JUDGED
from auditor.matrix.seen import BUCKETS

SCHEMA = "auditor.matrix/v2"
WANTED = "0.99"
BESIDE = ("fused", "tokens_alone", "one_look", "same_promise")
"""Ways of judging that are held beside the published statistic."""
Rows = Sequence[dict[str, Any]]


def report(
    rows: Rows, *, model_digest: str, recipe: str, alpha: float, honest_audits: dict[str, Any] | None
) -> dict[str, Any]:
    """All of it.

    Args:
        rows: the honest one first. honest_audits: of `honest_audits`, None where none were made.
    """
    honest, others = rows[0], rows[1:]
    curve = honest["curve"]
    worst = {way: max(curve[way]) for way in JUDGED}
    return {
        "schema": SCHEMA,
        "model_digest": model_digest,
        "recipe": recipe,
        "alpha": alpha,
        "audits": AUDITS,
        "sizes": [list(size) for size in SIZES],
        "buckets": list(BUCKETS),
        "false_alarms": {
            "most": worst,
            "interval": bound(worst["fused"], HONEST_AUDITS),
            "audits": HONEST_AUDITS,
            "requests": honest["requests"],
        },
        "honest_audits": honest_audits,
        "caught": sum(row["needed"]["fused"][WANTED] is not None for row in others),
        "rows_measured": len(others),
        "beside_published": {way: beside(others, way) for way in BESIDE},
        "floor": _floor(others),
        "diagnosis": {way: diagnosed(others, way) for way in ("named", "unlisted")},
        "rows": list(rows),
    }


def beside(rows: Rows, way: str) -> dict[str, Any]:
    """Tokens for power 0.99 over those of the published statistic, where both catch a row."""
    pairs = [(row["needed"][way][WANTED], row["needed"]["published"][WANTED]) for row in rows]
    both = [(own, theirs) for own, theirs in pairs if own is not None and theirs is not None]
    return {
        "rows": len(both),
        "geometric_mean": geometric_mean([own / theirs for own, theirs in both]) if both else None,
        "needs_more": sum(own > theirs for own, theirs in both),
        "only_ours": sum(own is not None and theirs is None for own, theirs in pairs),
        "only_published": sum(own is None and theirs is not None for own, theirs in pairs),
    }


def _floor(rows: Rows) -> dict[str, Any]:
    """The least that tokens could do with, over the published statistic's; and ours over that."""
    both = [
        (row["floor"], row["needed"]["published"][WANTED], row["needed"]["tokens_alone"][WANTED])
        for row in rows
        if row["floor"] is not None
    ]
    published = [least / theirs for least, theirs, _ in both if theirs is not None]
    ours = [own / least for least, _, own in both if own is not None]
    return {
        "rows": len(published),
        "over_published": geometric_mean(published) if published else None,
        "ours_over_floor": geometric_mean(ours) if ours else None,
    }


def diagnosed(rows: Rows, way: str) -> dict[str, Any]:
    """Families that were named for logs of convicted rows.

    Returns:
        `right` of `logs`, the interval of the share, and `confusion`: true family -> named family -> logs.
        Families are those of what acts: a provider that runs int4 weights now and then is `weights`.
    """
    confusion: dict[str, Counter[str]] = {}
    for row in rows:
        for cause, _ in row.get("diagnosis", {}).get(way, ()):
            named = OTHER if cause == OTHER else true_family(cause)
            confusion.setdefault(true_family(row["name"]), Counter())[named] += 1
    logs = sum(sum(named.values()) for named in confusion.values())
    right = sum(named[family] for family, named in confusion.items())
    return {
        "logs": logs,
        "right": right,
        "share": right / logs if logs else None,
        "interval": bound(right / logs, logs) if logs else None,
        "confusion": {family: dict(named) for family, named in sorted(confusion.items())},
    }
