"""Token Recycling: what the model last thought likely after a token, seen anywhere, by anyone.

A matrix from each token to the eight largest logits that some row gave after it; every row of every step
updates it, those of wrong guesses too. Source: arXiv 2408.08696; its fixed template of 80 nodes is replaced
by the shared heap, and logits are kept beside the ids so that candidates can be ranked under noise.
One matrix for each tenant: a tree's speed would tell one what another had asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.drafter import Context, Verified
from auditor.reference.drafters.expansion import Candidates, Expansion
from auditor.reference.drafters.tree import DraftTree
from auditor.reference.future_noise import FutureNoise

_WIDTH = 8
_NOTHING = Candidates((), ())


@dataclass(slots=True)
class _Matrix:
    """Rows that were seen: token -> ids and logits after it."""

    rows: dict[int, tuple[list[int], list[float]]] = field(default_factory=dict)
    temperature: float = 1.0

    def candidates(self, state: int) -> Candidates:
        found = self.rows.get(state)
        if found is None:
            return _NOTHING
        return Candidates(found[0], [logit / self.temperature for logit in found[1]])

    def after(self, state: int, token: int) -> int:
        del state
        return token


class RecyclingDrafter:
    """Guesses from the model's own earlier rows."""

    top = _WIDTH

    def __init__(self, *, noise_aware: bool = True) -> None:
        self._expansion = Expansion(noise_aware=noise_aware, width=_WIDTH)
        self._matrices: dict[str, _Matrix] = {}

    def propose(self, context: Context, budget: Budget, noise: FutureNoise) -> DraftTree:
        """As `Drafter`."""
        matrix = self._matrices.setdefault(context.tenant, _Matrix())
        matrix.temperature = context.temperature
        return self._expansion.grow(context, matrix, context.tokens[-1], budget, noise)

    def observe(self, context: Context, emitted: Sequence[int], verified: Verified | None) -> None:
        """As `Drafter`; of equal tokens in one step the last row stays."""
        self._expansion.learn(context, emitted)
        if verified is None:
            return
        rows = self._matrices.setdefault(context.tenant, _Matrix()).rows
        shown = zip(
            verified.tokens.tolist(), verified.top_ids.tolist(), verified.top_logits.tolist(), strict=True
        )
        for token, ids, logits in shown:
            rows[token] = ids, logits

    def forget(self, context: Context) -> None:
        """As `Drafter`."""
        self._expansion.forget(context)
