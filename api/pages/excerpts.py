"""Convicted requests as runs of text, hidden reasoning left out unless it was asked for.

What is left out here never reaches the browser: it is not merely covered up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

KINDS = ("match", "near", "far")


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens that are shown alike.

    Attributes:
        kind: one of `KINDS`, or `left-out`, whose text is empty.
        suspicious: inside a span that carries the evidence.
        tokens, misses: how many, and how many of them are off; 0 unless left out.
    """

    kind: str
    text: str = ""
    suspicious: bool = False
    tokens: int = 0
    misses: int = 0


@dataclass(frozen=True, slots=True)
class Excerpt:
    """One request. Its output begins with `hidden` tokens; those `before` and `after` are not in here."""

    number: int
    id: str
    alone: bool
    log10_e: float
    tokens: int
    misses: int
    hidden: int
    before: int
    after: int
    question: str | None
    spans: tuple[tuple[int, int], ...]
    runs: tuple[Run, ...]


def excerpt_of(value: dict[str, Any], *, show_hidden: bool) -> Excerpt:
    """An excerpt of an exhibit (`auditor.exhibit/v1`)."""
    start, end = value["window"]
    spans = tuple((first, last) for first, last in value["spans"])
    return Excerpt(
        number=value["number"],
        id=value["id"],
        alone=value["alone"],
        log10_e=value["log10_e"],
        tokens=value["tokens"],
        misses=value["misses"],
        hidden=value["hidden"],
        before=start,
        after=value["tokens"] - end,
        question=value["question"],
        spans=spans,
        runs=tuple(_runs(value, spans, 0 if show_hidden else value["hidden"])),
    )


def _runs(value: dict[str, Any], spans: tuple[tuple[int, int], ...], left_out: int) -> Iterator[Run]:
    start, end = value["window"]
    if start < min(left_out, end):
        misses = sum(first < left_out and weight > 0 for first, _, weight in value["pieces"])
        yield Run("left-out", tokens=min(left_out, end) - start, misses=misses)
    pieces = [
        (KINDS[weight], any(a <= first < b for a, b in spans), text)
        for first, text, weight in value["pieces"]
        if first >= left_out
    ]
    for (kind, suspicious), group in groupby(pieces, key=lambda piece: piece[:2]):
        yield Run(kind, "".join(text for *_, text in group), suspicious)
