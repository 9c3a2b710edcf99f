"""From counts of what followed to candidates: longer matches first, shorter ones where those are thin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

from auditor.reference.drafters.expansion import Candidates

LEVELS = 4  # longest matches that are heard
_BACKOFF = 1.0  # weight of all shorter matches together, in counts


def backed_off(
    levels: Sequence[tuple[int, Mapping[int, int]]], base: Mapping[int, float] | None = None
) -> Candidates:
    """Interpolated estimates of what follows (Jelinek and Mercer 1980; weights as in PPM, method A).

    Args:
        levels: length of a match and counts of what followed it, the longest match first.
        base: what is likely where no match says anything.
    """
    chances = {} if base is None else {token: chance for token, chance in base.items() if chance > 0}
    if not levels:
        return Candidates(list(chances), [log(chance) for chance in chances.values()])
    for _, counts in reversed(levels[:LEVELS]):
        total = sum(counts.values()) + (_BACKOFF if chances else 0.0)
        chances = {token: _BACKOFF * chance / total for token, chance in chances.items()}
        for token, n in counts.items():
            chances[token] = chances.get(token, 0.0) + n / total
    length, counts = levels[0]
    support = 4 * min(length, 7) + min(sum(counts.values()), 4) - 1
    return Candidates(list(chances), [log(chance) for chance in chances.values()], support)
