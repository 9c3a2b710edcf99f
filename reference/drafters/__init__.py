"""Drafters: whatever guesses the next tokens, none of which can change them."""

from __future__ import annotations

from collections.abc import Callable

from auditor.reference.drafters.blend import BlendDrafter
from auditor.reference.drafters.cost import Budget, CostCurve
from auditor.reference.drafters.drafter import Context, Drafter, NoDrafts, Verified
from auditor.reference.drafters.grammar import GrammarDrafter
from auditor.reference.drafters.model import ModelDrafter
from auditor.reference.drafters.ngram import NgramDrafter
from auditor.reference.drafters.recycling import RecyclingDrafter
from auditor.reference.drafters.suffix import SuffixDrafter
from auditor.reference.drafters.trace import TraceDrafter
from auditor.reference.drafters.tree import EMPTY, ROOT, DraftTree

DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "ngram": NgramDrafter,
    "recycling": RecyclingDrafter,
    "suffix": SuffixDrafter,
    "blend": lambda: BlendDrafter(GrammarDrafter(), SuffixDrafter(recycling=True)),
}
"""Drafters that need nothing but what is decoded, by name."""

__all__ = [
    "DRAFTERS",
    "EMPTY",
    "ROOT",
    "BlendDrafter",
    "Budget",
    "Context",
    "CostCurve",
    "DraftTree",
    "Drafter",
    "GrammarDrafter",
    "ModelDrafter",
    "NgramDrafter",
    "NoDrafts",
    "RecyclingDrafter",
    "SuffixDrafter",
    "TraceDrafter",
    "Verified",
]
