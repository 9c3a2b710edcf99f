"""Token Recycling: what the model thought likely after a token, seen anywhere in a tenant's requests.

A matrix from each token to the largest logits that some row gave after it; every row of every step updates
it, those of wrong guesses too. Source: arXiv 2408.08696, which keeps the eight ids of the last row and grows
a fixed template of 80 nodes. Here probabilities are kept beside the ids, halved with each newer row rather
than overwritten, and 32 of them, since noise lifts tokens from far down; the shared heap is the template. One
matrix for each tenant: a tree's speed would tell one what another had asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np

from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.drafter import Context, Verified
from auditor.reference.drafters.expansion import Candidates, Expansion
from auditor.reference.drafters.tree import DraftTree
from auditor.reference.future_noise import FutureNoise

WIDTH = 32
_KEPT = 0.5  # of what was known of a token, at each newer row


@dataclass(slots=True)
class Matrix:
    """Token -> how likely each of a few others was after it; a state is the newest token."""

    rows: dict[int, dict[int, float]] = field(default_factory=dict)

    def learn(self, verified: Verified, temperature: float) -> None:
        """Add rows, in their order."""
        scaled = verified.top_logits / temperature
        likely = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        shown = zip(verified.tokens.tolist(), verified.top_ids.tolist(), likely.tolist(), strict=True)
        for token, ids, chances in shown:
            old = self.rows.get(token)
            if old is None:
                self.rows[token] = dict(zip(ids, chances, strict=True))
                continue
            joined = {other: _KEPT * chance for other, chance in old.items()}
            for other, chance in zip(ids, chances, strict=True):
                joined[other] = joined.get(other, 0.0) + (1 - _KEPT) * chance
            self.rows[token] = dict(sorted(joined.items(), key=lambda item: -item[1])[:WIDTH])

    def candidates(self, state: int) -> Candidates:
        """As `Source`."""
        found = {token: chance for token, chance in self.rows.get(state, {}).items() if chance > 0}
        return Candidates(list(found), [log(chance) for chance in found.values()])

    def after(self, state: int, token: int) -> int:
        """As `Source`."""
        del state
        return token


class RecyclingDrafter:
    """Guesses from the model's own earlier rows."""

    top = WIDTH

    def __init__(self, *, noise_aware: bool = True) -> None:
        self._expansion = Expansion(noise_aware=noise_aware)
        self._matrices: dict[str, Matrix] = {}

    def propose(self, context: Context, budget: Budget, noise: FutureNoise) -> DraftTree:
        """As `Drafter`."""
        matrix = self._matrices.setdefault(context.tenant, Matrix())
        return self._expansion.grow(context, matrix, context.tokens[-1], budget, noise)

    def observe(self, context: Context, emitted: Sequence[int], verified: Verified | None) -> None:
        """As `Drafter`."""
        self._expansion.learn(context, emitted)
        if verified is not None:
            self._matrices.setdefault(context.tenant, Matrix()).learn(verified, context.temperature)

    def forget(self, context: Context) -> None:
        """As `Drafter`."""
        self._expansion.forget(context)
