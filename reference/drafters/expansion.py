"""The tree that is worth most, for any drafter: a heap of candidates by their chance of being taken.

DySpec (arXiv 2410.11744) pops the likeliest candidate, adds it, and offers its next sibling and its first
child, with q as the chance. Under keyed noise q is not the chance: the token is already decided by
log p + g with g known, so candidates are ranked by log q + g and the chance of a rank is learned, from how
often candidates of that rank, lead and support were taken (`HitTable`). Nothing here changes a token.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.drafter import Context
from auditor.reference.drafters.tree import EMPTY, ROOT, DraftTree
from auditor.reference.future_noise import FutureNoise

State = TypeVar("State")
Kind = tuple[int, int, int]
"""Rank, lead and support of a candidate: what its chance is learned by."""
_GAPS = (0.25, 0.5, 1.0, 2.0, 4.0)
_LEAST_CHANCE = 0.01
_PRIOR_WEIGHT = 2.0


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may follow a node.

    Attributes:
        tokens: ids. scores: log q of each, up to a constant.
        support: how much evidence is behind them, a small number whose meaning is the source's own.
    """

    tokens: Sequence[int]
    scores: Sequence[float]
    support: int = 0


class Source(Protocol[State]):
    """A cheap model of what follows: a state for each node, candidates from a state."""

    def candidates(self, state: State) -> Candidates:
        """What may follow; perhaps nothing."""
        ...

    def after(self, state: State, token: int) -> State:
        """The state behind a child."""
        ...


class HitTable:
    """How often candidates of a kind were taken, learned as decoding goes on."""

    def __init__(self) -> None:
        self._counts: dict[Kind, list[float]] = {}

    def chance(self, kind: Kind) -> float:
        """Of a candidate of this (rank, lead, support)."""
        hits, tries = self._counts.get(kind, (0.0, 0.0))
        prior = 0.6 / (kind[0] + 1.0) ** 1.5
        return float(hits + _PRIOR_WEIGHT * prior) / (tries + _PRIOR_WEIGHT)

    def learn(self, kind: Kind, *, hit: bool) -> None:
        """Count one that was tried."""
        entry = self._counts.setdefault(kind, [0.0, 0.0])
        entry[0] += hit
        entry[1] += 1.0


class Sharpness:
    """How far candidates' estimates are to be trusted against the noise: score = sharpness * log q + g.

    1 is right for true probabilities. Thin counts say too little of what is nearly certain, rough ones too
    much: for each support it is learned which sharpness would have put the token taken first most often.
    """

    CHOICES = (2.0, 1.0, 4.0, 16.0, 0.5)

    def __init__(self) -> None:
        self._hits: dict[int, list[float]] = {}
        self._all = [0.0] * len(self.CHOICES)

    def of(self, support: int) -> float:
        """The best so far, all supports together counting a little."""
        own = self._hits.get(support, self._all)
        rated = [hits + 0.05 * everywhere for hits, everywhere in zip(own, self._all, strict=True)]
        return self.CHOICES[rated.index(max(rated))]

    def learn(self, found: Candidates, noise: Sequence[float], taken: int) -> None:
        """See which token was taken."""
        if taken not in found.tokens:
            return
        place = found.tokens.index(taken)
        own = self._hits.setdefault(found.support, [0.0] * len(self.CHOICES))
        for n, sharpness in enumerate(self.CHOICES):
            scores = [sharpness * s + g for s, g in zip(found.scores, noise, strict=True)]
            hit = scores[place] == max(scores)
            own[n] += hit
            self._all[n] += hit


@dataclass(frozen=True, slots=True)
class Ranked:
    """Candidates of one node, best first.

    Attributes:
        tokens, kinds: in that order. found, noise: what they were ranked by; no noise where none is known.
    """

    tokens: list[int]
    kinds: list[Kind]
    found: Candidates
    noise: list[float]


@dataclass(slots=True)
class Offers:
    """Candidates ranked and rated, and what became of those that were offered.

    Attributes:
        noise_aware: rank by log q + g; otherwise by q alone.
        width: most children of a node.
    """

    noise_aware: bool = True
    width: int = 8
    hits: HitTable = field(default_factory=HitTable)
    sharpness: Sharpness = field(default_factory=Sharpness)
    _made: dict[int, tuple[DraftTree, Sequence[Kind], Mapping[int, Ranked]]] = field(default_factory=dict)

    def ranked(self, found: Candidates, depth: int, noise: FutureNoise) -> Ranked:
        """Rank what may follow a node; a kind is rank, distance from the first (or its lead), support."""
        scores, drawn = list(found.scores), []
        if self.noise_aware and noise.known:
            drawn = noise.gumbel(depth, found.tokens)
            trust = self.sharpness.of(found.support)
            scores = [trust * s + g for s, g in zip(scores, drawn, strict=True)]
        order = sorted(range(len(scores)), key=lambda n: -scores[n])
        kinds = []
        for rank, place in enumerate(order[: self.width]):
            lead = abs(scores[place] - scores[order[0 if rank else 1]]) if len(order) > 1 else None
            kinds.append(self.kind(rank, lead, found.support))
        return Ranked([found.tokens[place] for place in order[: self.width]], kinds, found, drawn)

    @staticmethod
    def kind(rank: int, lead: float | None, support: int) -> Kind:
        """A candidate's kind; `lead` is how far it is from the first, the first's from the second."""
        return rank, -1 if lead is None else bisect_right(_GAPS, lead), support

    def made(
        self, context: Context, tree: DraftTree, kinds: Sequence[Kind], ranked: Mapping[int, Ranked]
    ) -> None:
        """Remember a tree, its nodes' kinds, and what was ranked at each, until the step is over."""
        self._made[context.key] = tree, kinds, ranked

    def learn(self, context: Context, emitted: Sequence[int]) -> None:
        """See which of the guesses made last were taken."""
        tree, kinds, ranked = self._made.pop(context.key, (EMPTY, (), {}))
        following: dict[int, int] = {}
        node: int | None = ROOT
        for token in emitted:
            if node is None:
                break
            following[node] = token
            if (own := ranked.get(node)) is not None and own.noise:
                self.sharpness.learn(own.found, own.noise, token)
            node = tree.child(node, token)
        for token, parent, kind in zip(tree.tokens, tree.parents, kinds, strict=True):
            if parent in following:
                self.hits.learn(kind, hit=token == following[parent])

    def forget(self, context: Context) -> None:
        """The sequence has ended."""
        self._made.pop(context.key, None)


@dataclass(slots=True)
class _Node:
    """A node's ranked candidates, and how many of them are in the tree; a number, depth, value and state."""

    number: int
    depth: int
    value: float
    state: Any
    ranked: Ranked
    taken: int = 0


@dataclass(slots=True)
class Expansion(Offers):
    """Grows the tree of candidates that are worth their rows."""

    def grow(
        self, context: Context, source: Source[Any], state: Any, budget: Budget, noise: FutureNoise
    ) -> DraftTree:
        """Grow from the root, `state` being the root's."""
        tokens: list[int] = []
        parents: list[int] = []
        kinds: list[Kind] = []
        heap: list[tuple[float, int, _Node]] = []
        ranked: dict[int, Ranked] = {}

        def offer(node: _Node) -> None:
            ranked[node.number] = node.ranked
            if node.taken < len(node.ranked.tokens):
                value = node.value * self.hits.chance(node.ranked.kinds[node.taken])
                heapq.heappush(heap, (-value, node.number * self.width + node.taken, node))

        offer(_Node(ROOT, 0, 1.0, state, self.ranked(source.candidates(state), 0, noise)))
        while heap:
            negative, _, node = heapq.heappop(heap)
            value = -negative
            if value < _LEAST_CHANCE or not budget.worth(value):
                break
            budget.spend(value)
            token = node.ranked.tokens[node.taken]
            tokens.append(token)
            parents.append(node.number)
            kinds.append(node.ranked.kinds[node.taken])
            node.taken += 1
            offer(node)
            depth = node.depth + 1
            if depth < budget.depth and budget.left:
                behind = source.after(node.state, token)
                found = self.ranked(source.candidates(behind), depth, noise)
                offer(_Node(len(tokens) - 1, depth, value, behind, found))
        tree = DraftTree(tuple(tokens), tuple(parents))
        self.made(context, tree, kinds, ranked)
        return tree
