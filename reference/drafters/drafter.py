"""The seam between the engine and whatever guesses.

Invariant: drafters decide how quick decoding is and never what comes out. The engine takes nothing from them
but a tree of token ids, so a drafter may be wrong, stale or random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.tree import EMPTY, DraftTree
from auditor.reference.future_noise import FutureNoise
from auditor.reference.running import Running


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """One sequence, as a drafter sees it.

    Attributes:
        key: names the sequence for as long as it is decoded.
        tokens: prompt and output so far; the same list, which grows, in every call.
        prompt_tokens: how many of them are the prompt.
        request: what was asked, with its sampler and rules.
    """

    key: int
    tokens: list[int]
    prompt_tokens: int
    request: Running

    @property
    def temperature(self) -> float:
        """At which tokens are drawn; 1 for a greedy request, whose ranking it does not change."""
        return self.request.spec.temperature or 1.0

    @property
    def tenant(self) -> str:
        """Whose request it is: nothing is learned from one tenant for another."""
        return self.request.ask.tenant


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """What the model said at the rows of one step.

    Attributes:
        tokens: int64 [rows], what was read: the root, then the tree's nodes.
        top_ids: int64 [rows, k] and top_logits: float32 [rows, k], the largest logits after each.
    """

    tokens: npt.NDArray[np.int64]
    top_ids: npt.NDArray[np.int64]
    top_logits: npt.NDArray[np.float32]


class Drafter(Protocol):
    """Guesses what comes next."""

    @property
    def top(self) -> int:
        """How many of each row's largest logits `observe` is to be shown; 0 for none."""
        ...

    def propose(self, context: Context, budget: Budget, noise: FutureNoise) -> DraftTree:
        """Guess what follows `context.tokens`.

        Args:
            noise: what will be added to the logits of coming positions, where the scheme knows it now.
        """
        ...

    def observe(self, context: Context, emitted: Sequence[int], verified: Verified | None) -> None:
        """See the tokens that a step added; `context.tokens` has them already."""
        ...

    def forget(self, context: Context) -> None:
        """The sequence has ended."""
        ...


@runtime_checkable
class BatchDrafter(Protocol):
    """A drafter that works on many sequences at once."""

    def propose_all(self, asked: Sequence[tuple[Context, Budget, FutureNoise]]) -> list[DraftTree]:
        """As `Drafter.propose`, for each."""
        ...


def propose_all(drafter: Drafter, asked: Sequence[tuple[Context, Budget, FutureNoise]]) -> list[DraftTree]:
    """Trees of many sequences, by whichever way the drafter has."""
    if isinstance(drafter, BatchDrafter):
        return drafter.propose_all(asked)
    return [drafter.propose(*one) for one in asked]


class NoDrafts:
    """Guesses nothing: plain decoding."""

    top = 0

    def propose(self, context: Context, budget: Budget, noise: FutureNoise) -> DraftTree:
        """As `Drafter`."""
        del context, budget, noise
        return EMPTY

    def observe(self, context: Context, emitted: Sequence[int], verified: Verified | None) -> None:
        """As `Drafter`."""

    def forget(self, context: Context) -> None:
        """As `Drafter`."""
