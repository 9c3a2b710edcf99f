"""Speculative decoding as an auditor meets it: which rules can be replayed, and what they may return."""

from __future__ import annotations

from auditor.reference.speculation.admissible import SpeculatedRows, draw_speculated, score_speculated
from auditor.reference.speculation.rules import (
    LOSSLESS,
    NO_DRAFT,
    RULES,
    Speculated,
    SpeculationRule,
    drafts_of_steps,
    find_rule,
    is_synchronised,
)

__all__ = [
    "LOSSLESS",
    "NO_DRAFT",
    "RULES",
    "Speculated",
    "SpeculatedRows",
    "SpeculationRule",
    "drafts_of_steps",
    "draw_speculated",
    "find_rule",
    "is_synchronised",
    "score_speculated",
]
