"""Prompt lookup: what followed the last times that the newest tokens stood together in the sequence.

Counts of (n tokens, next token); an update is one dictionary entry a length and token. Sources: vLLM's ngram
proposer, llama.cpp's lookup examples (their `context` cache).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.counts import backed_off
from auditor.reference.drafters.drafter import Context, Verified
from auditor.reference.drafters.expansion import Candidates, Expansion
from auditor.reference.drafters.tree import DraftTree
from auditor.reference.future_noise import FutureNoise


@dataclass(slots=True)
class _Counted:
    """One sequence's counts of its first `read` tokens; a state is the newest tokens."""

    longest: int
    counts: dict[tuple[int, ...], dict[int, int]] = field(default_factory=dict)
    read: int = 0

    def extend(self, tokens: Sequence[int]) -> None:
        for place in range(self.read, len(tokens)):
            for n in range(1, min(self.longest, place) + 1):
                following = self.counts.setdefault(tuple(tokens[place - n : place]), {})
                following[tokens[place]] = following.get(tokens[place], 0) + 1
        self.read = len(tokens)

    def candidates(self, state: tuple[int, ...]) -> Candidates:
        tails = ((len(state) - first, self.counts.get(state[first:])) for first in range(len(state)))
        return backed_off([(length, found) for length, found in tails if found])

    def after(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*state, token)[-self.longest :]


class NgramDrafter:
    """Guesses from the sequence's own repetitions; `longest` tokens at most are looked up together."""

    top = 0

    def __init__(self, *, longest: int = 4, noise_aware: bool = True) -> None:
        self._longest, self._expansion = longest, Expansion(noise_aware=noise_aware)
        self._counted: dict[int, _Counted] = {}

    def propose(self, context: Context, budget: Budget, noise: FutureNoise) -> DraftTree:
        """As `Drafter`."""
        counted = self._counted.setdefault(context.key, _Counted(self._longest))
        counted.extend(context.tokens)
        state = tuple(context.tokens[-self._longest :])
        return self._expansion.grow(context, counted, state, budget, noise)

    def observe(self, context: Context, emitted: Sequence[int], verified: Verified | None) -> None:
        """As `Drafter`."""
        del verified
        self._expansion.learn(context, emitted)

    def forget(self, context: Context) -> None:
        """As `Drafter`."""
        self._counted.pop(context.key, None)
        self._expansion.forget(context)
