"""Several drafters' guesses in one tree: each has a share, what two of them guess stands once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.drafter import Context, Drafter, Verified, propose_all
from auditor.reference.drafters.tree import ROOT, DraftTree
from auditor.reference.future_noise import FutureNoise


class BlendDrafter:
    """Guesses of several drafters; what one leaves of its share is for those behind it."""

    def __init__(self, *drafters: Drafter) -> None:
        self._drafters = drafters
        self.top = max((drafter.top for drafter in drafters), default=0)

    def propose(self, context: Context, budget: Budget, noise: FutureNoise) -> DraftTree:
        """As `Drafter`."""
        return self.propose_all([(context, budget, noise)])[0]

    def propose_all(self, asked: Sequence[tuple[Context, Budget, FutureNoise]]) -> list[DraftTree]:
        """As `BatchDrafter`."""
        left = [budget.nodes for _, budget, _ in asked]
        rounds = []
        for number, drafter in enumerate(self._drafters):
            sharing = len(self._drafters) - number
            shares = [replace(b, nodes=n // sharing) for (_, b, _), n in zip(asked, left, strict=True)]
            own = [(context, share, noise) for (context, _, noise), share in zip(asked, shares, strict=True)]
            rounds.append(propose_all(drafter, own))
            left = [n - len(tree) for n, tree in zip(left, rounds[-1], strict=True)]
        return [joined(trees) for trees in zip(*rounds, strict=True)]

    def observe(self, context: Context, emitted: Sequence[int], verified: Verified | None) -> None:
        """As `Drafter`."""
        for drafter in self._drafters:
            drafter.observe(context, emitted, verified)

    def forget(self, context: Context) -> None:
        """As `Drafter`."""
        for drafter in self._drafters:
            drafter.forget(context)


def joined(trees: Sequence[DraftTree]) -> DraftTree:
    """The tree of all paths of several trees."""
    places: dict[tuple[int, int], int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    for tree in trees:
        number = {ROOT: ROOT}
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            key = number[parent], token
            if key not in places:
                places[key] = len(tokens)
                tokens.append(token)
                parents.append(number[parent])
            number[node] = places[key]
    return DraftTree(tuple(tokens), tuple(parents))
