"""Does reported tokenization look like the claimed tokenizer's? Diagnostics of word segmentation. Pure.

A provider that serves another model behind a transplanted tokenizer (TokenAdapt and the like), or counts with
another tokenizer than the one it names, cuts words in other places. The measures are those of morphological
segmentation: boundaries inside the text as a set, precision and recall of the reported ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True, slots=True)
class Segmentation:
    """Reported pieces of texts beside the claimed tokenizer's.

    Attributes:
        fertility, claimed_fertility: tokens a word.
        continuation, claimed_continuation: share of words cut into several tokens.
        precision, recall, f1: of reported boundaries inside texts, the claimed ones being the truth.
        over, under: boundaries a word too many and too few.
        character_error, word_error: edit distance between reported and returned text, a character and a word.
    """

    words: int
    fertility: float
    claimed_fertility: float
    continuation: float
    claimed_continuation: float
    precision: float
    recall: float
    f1: float
    over: float
    under: float
    character_error: float
    word_error: float


def segmentation(
    reported: Sequence[Sequence[bytes]], claimed: Sequence[Sequence[bytes]], texts: Sequence[str]
) -> Segmentation:
    """Compare the pieces of several texts, pairwise.

    Args:
        reported, claimed: pieces of each text in order. Boundaries are compared where both spell the same
            bytes; elsewhere they count as all wrong.
        texts: as returned to the client.
    """
    words = sum(len(text.split()) for text in texts)
    right = wrong = missed = 0
    for own, other in zip(reported, claimed, strict=True):
        here, there = _cuts(own), _cuts(other)
        both = here & there if b"".join(own) == b"".join(other) else set()
        right, wrong, missed = (
            right + len(both),
            wrong + len(here - both),
            missed + len(there - both),
        )
    precision = right / (right + wrong) if right + wrong else 1.0
    recall = right / (right + missed) if right + missed else 1.0
    spelled = [b"".join(pieces).decode(errors="replace") for pieces in reported]
    characters = sum(map(len, texts))
    return Segmentation(
        words=words,
        fertility=sum(map(len, reported)) / max(1, words),
        claimed_fertility=sum(map(len, claimed)) / max(1, words),
        continuation=_continuation(reported),
        claimed_continuation=_continuation(claimed),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        over=wrong / max(1, words),
        under=missed / max(1, words),
        character_error=sum(map(edit_distance, spelled, texts)) / max(1, characters),
        word_error=sum(edit_distance(a.split(), b.split()) for a, b in zip(spelled, texts, strict=True))
        / max(1, words),
    )


def _cuts(pieces: Sequence[bytes]) -> set[int]:
    """Boundaries strictly inside the text."""
    return set(list(accumulate(map(len, pieces)))[:-1])


def _continuation(texts: Sequence[Sequence[bytes]]) -> float:
    """Share of white-space separated words with a boundary inside."""
    words = cut = 0
    for pieces in texts:
        data, cuts = b"".join(pieces), _cuts(pieces)
        spans = [match.span() for match in re.finditer(rb"\S+", data)]
        words += len(spans)
        cut += sum(any(start < c < end for c in cuts) for start, end in spans)
    return cut / max(1, words)


def edit_distance(first: Sequence[object], second: Sequence[object]) -> int:
    """Levenshtein distance; equal ends are skipped, so that texts that agree cost little."""
    low = 0
    while low < min(len(first), len(second)) and first[low] == second[low]:
        low += 1
    while len(first) > low and len(second) > low and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    first, second = first[low:], second[low:]
    row = list(range(len(second) + 1))
    for n, a in enumerate(first, 1):
        fresh = [n]
        for (diagonal, above), b in zip(pairwise(row), second, strict=True):
            fresh.append(min(diagonal + (a != b), above + 1, fresh[-1] + 1))
        row = fresh
    return row[-1]
