"""Tokens that a request's grammar leaves no choice about: guesses that cannot be wrong.

Masks are those of the very grammar that samples (`grammar_masks.py`); where one token alone may stand, it is
the guess, and the state after it is asked again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.drafter import Context, Verified
from auditor.reference.drafters.tree import EMPTY, DraftTree
from auditor.reference.future_noise import FutureNoise
from auditor.reference.grammar_masks import GrammarWalk


class GrammarDrafter:
    """Guesses what a grammar forces."""

    top = 0

    def __init__(self) -> None:
        self._walks: dict[int, GrammarWalk] = {}

    def propose(self, context: Context, budget: Budget, noise: FutureNoise) -> DraftTree:
        """As `Drafter`."""
        del noise
        grammar = context.request.grammar
        if grammar is None:
            return EMPTY
        walk = self._walks.setdefault(context.key, GrammarWalk(grammar))
        output = list(context.tokens[context.prompt_tokens :])
        forced: list[int] = []
        while len(forced) < budget.depth and budget.worth(1.0):
            allowed, lost = walk.allowed(np.array(output, np.int64), len(output), 1)
            ids = np.flatnonzero(allowed[0])
            if lost[0] or len(ids) != 1:
                break
            forced.append(int(ids[0]))
            output.append(forced[-1])
            budget.spend(1.0)
        return DraftTree.chain(forced)

    def observe(self, context: Context, emitted: Sequence[int], verified: Verified | None) -> None:
        """As `Drafter`."""

    def forget(self, context: Context) -> None:
        """As `Drafter`."""
        self._walks.pop(context.key, None)
