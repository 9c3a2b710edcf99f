"""A grade and the rule that limits it. Pure; the rules are printed in every report.

A grade starts at the best and is capped by each rule that applies; the lowest cap is the grade and its rule
is named beside it. `U` (ungraded) is below D and above F: nothing was shown, for or against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GRADES = ("A+", "A", "B", "C", "D", "U", "F")


@dataclass(frozen=True, slots=True)
class Rule:
    """A published rule: at most this grade when it applies."""

    id: str
    cap: str
    text: str


RULES = (
    Rule("G1", "F", "the period's evidence is inconsistent with the declared system"),
    Rule("G2", "U", "nothing was judged in the period"),
    Rule("G3", "D", "a cause that the policy must detect would not have been shown"),
    Rule("G4", "D", "the period is inconclusive: the evidence cannot convict and could not acquit"),
    Rule("G5", "C", "an audit failed, was cancelled or was unfinished at the end of the period"),
    Rule("G6", "B", "cheating on a larger share of requests than the policy allows could have gone unseen"),
    Rule("G7", "B", "a verdict rests on a calibration profile that no trusted key signed"),
    Rule("G8", "B", "some requests could not be scored exactly, or were logged without a replayable seed"),
    Rule("G9", "A", "fewer than nine in ten requests carry fingerprints or commitments"),
)


@dataclass(frozen=True, slots=True)
class Grade:
    """A letter, the rule that limits it (None at the top), and every rule that applies."""

    letter: str
    limited_by: Rule | None
    applying: tuple[Rule, ...]


def grade(applying: Sequence[str]) -> Grade:
    """The grade under the rules with these ids."""
    rules = tuple(rule for rule in RULES if rule.id in applying)
    if not rules:
        return Grade(GRADES[0], None, ())
    limiting = max(rules, key=lambda rule: (GRADES.index(rule.cap), -RULES.index(rule)))
    return Grade(limiting.cap, limiting, rules)


def worst(letters: Sequence[str]) -> str:
    """The lowest of several grades; ungraded when there are none."""
    return max(letters, key=GRADES.index, default="U")
