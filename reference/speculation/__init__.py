"""Speculative decoding as an auditor meets it: which rules can be replayed, and what they may return."""

from __future__ import annotations

from auditor.reference.speculation.admissible import SpeculatedRows, draw_speculated, score_speculated
from auditor.reference.speculation.block import draw_step, judge_step
from auditor.reference.speculation.rules import (
    LOSSLESS,
    LOSSY,
    RULES,
    Speculated,
    SpeculationRule,
    find_rule,
    is_synchronised,
)
from auditor.reference.speculation.steps import NO_DRAFT, Step, drafts_of_steps, steps_of

__all__ = [
    "LOSSLESS",
    "LOSSY",
    "NO_DRAFT",
    "RULES",
    "Speculated",
    "SpeculatedRows",
    "SpeculationRule",
    "Step",
    "drafts_of_steps",
    "draw_speculated",
    "draw_step",
    "find_rule",
    "is_synchronised",
    "judge_step",
    "score_speculated",
    "steps_of",
]
