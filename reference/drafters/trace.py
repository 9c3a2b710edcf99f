"""A logged output as the guess: replay with decode numerics at the pace of prefill.

Every token of an honest log is taken. Where the log was tampered with, the guess is turned down at that very
position, and what the model says instead comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.drafter import Context, Verified
from auditor.reference.drafters.tree import EMPTY, DraftTree
from auditor.reference.future_noise import FutureNoise


class TraceDrafter:
    """Guesses what a log says.

    Args:
        logged: output ids by prompt and seed.
    """

    top = 0

    def __init__(self, logged: Mapping[tuple[tuple[int, ...], int], Sequence[int]]) -> None:
        self._logged = logged

    def propose(self, context: Context, budget: Budget, noise: FutureNoise) -> DraftTree:
        """As `Drafter`; the rest of the log as one chain."""
        del noise
        ask = context.request.ask
        output = self._logged.get((ask.prompt, ask.seed))
        if output is None:
            return EMPTY
        done = len(context.tokens) - context.prompt_tokens
        return DraftTree.chain(output[done : done + min(budget.left, budget.depth)])

    def observe(self, context: Context, emitted: Sequence[int], verified: Verified | None) -> None:
        """As `Drafter`."""

    def forget(self, context: Context) -> None:
        """As `Drafter`."""
