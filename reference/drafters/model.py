"""A smaller model as the drafter: a shipped draft, or a copy of the target with fewer layers.

Guesses are made depth by depth for all sequences at once, so that a step costs as many calls of the draft as
its trees are deep. Each guess that is read keeps its slot behind its sequence; what was taken is linked, and
never computed again. With `width` 1 the guesses are a chain. Sources: Leviathan, Kalman, Matias, arXiv
2211.17192; coupled by shared noise, Daliri, Musco, Suresh, arXiv 2408.07978; layers as in DySpec's threshold
variant, arXiv 2410.11744.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from auditor.errors import OptionError
from auditor.reference.batch import Span
from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.drafter import Context, Verified
from auditor.reference.drafters.expansion import Candidates, Kind, Offers, Ranked
from auditor.reference.drafters.tree import ROOT, DraftTree
from auditor.reference.future_noise import FutureNoise
from auditor.reference.loading import ReferenceModel
from auditor.reference.slots import Sequence as Slots


@dataclass(slots=True)
class _Reading:
    """What the draft has read of a sequence: its text, and guesses behind it in the order of their slots."""

    slots: Slots = field(default_factory=Slots)
    read: list[tuple[int, int]] = field(
        default_factory=list
    )  # token and place of the parent, `ROOT` for none


@dataclass(slots=True)
class _Growing:
    """A tree in the making; `edge` holds the nodes to be read next: number, place of the parent, value."""

    context: Context
    budget: Budget
    noise: FutureNoise
    reading: _Reading
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    ranked: dict[int, Ranked] = field(default_factory=dict)
    edge: list[tuple[int, int, float]] = field(default_factory=list)


class ModelDrafter:
    """Guesses of another model with the same vocabulary.

    Args:
        width: most guesses at each depth that are read on from.
        noise_aware: rank by log q + g; otherwise by q.

    Raises:
        OptionError: a model that keeps no state by position, and cannot go back from a wrong guess.
    """

    top = 0

    def __init__(self, model: ReferenceModel, *, width: int = 1, noise_aware: bool = True) -> None:
        if not model.config.shares_prefixes:
            raise OptionError(f"a {model.config.model_type} model cannot draft", fix="name one of attention")
        self._model, self._width, self._cache = model, width, model.new_cache()
        self._offers = Offers(noise_aware=noise_aware, width=width)
        self._readings: dict[int, _Reading] = {}
        self._call_seconds = 0.0

    def propose(self, context: Context, budget: Budget, noise: FutureNoise) -> DraftTree:
        """As `Drafter`."""
        return self.propose_all([(context, budget, noise)])[0]

    def propose_all(self, asked: Sequence[tuple[Context, Budget, FutureNoise]]) -> list[DraftTree]:
        """As `BatchDrafter`."""
        growing = [_Growing(*one, self._readings.setdefault(one[0].key, _Reading())) for one in asked]
        for one in growing:
            room = self._model.config.context_length - len(one.context.tokens)
            one.budget.depth = min(one.budget.depth, room)
        wanting = [one for one in growing if one.budget.left > 0]
        for one in wanting:
            self._catch_up(one)
        depth = 0
        while wanting and self._pays(wanting, depth):
            logits = self._read(wanting, depth)
            rows = 0
            for one in wanting:
                count = max(len(one.edge), 1)
                self._grow(one, logits[rows : rows + count], depth)
                rows += count
            depth += 1
            wanting = [
                one for one in wanting if one.edge and one.budget.left > 0 and depth < one.budget.depth
            ]
        return [self._tree(one) for one in growing]

    def observe(self, context: Context, emitted: Sequence[int], verified: Verified | None) -> None:
        """As `Drafter`."""
        del verified
        self._offers.learn(context, emitted)

    def forget(self, context: Context) -> None:
        """As `Drafter`."""
        self._offers.forget(context)
        if (reading := self._readings.pop(context.key, None)) is not None:
            self._cache.release(reading.slots)

    def _tree(self, one: _Growing) -> DraftTree:
        tree = DraftTree(tuple(one.tokens), tuple(one.parents))
        self._offers.made(one.context, tree, one.kinds, one.ranked)
        return tree

    def _catch_up(self, one: _Growing) -> None:
        """Link the guesses that were taken."""
        slots, read = one.reading.slots, one.reading.read
        places, parent = [], ROOT
        for token in one.context.tokens[slots.length : -1]:
            place = next((n for n, (t, p) in enumerate(read) if t == token and p == parent), None)
            if place is None:
                break
            places.append(place)
            parent = place
        if places == list(range(len(places))):
            slots.length += len(places)
        else:
            self._cache.keep(slots, torch.tensor(places))
        read.clear()

    def _pays(self, wanting: Sequence[_Growing], depth: int) -> bool:
        """Whether one more call of the draft is expected to save more than it takes."""
        call = wanting[0].budget.call
        if call.cost is None or depth == 0:
            return True
        hope = sum(value for one in wanting for _, _, value in one.edge)
        return hope * call.cost(call.rows) / call.expected > self._call_seconds

    def _read(self, wanting: Sequence[_Growing], depth: int) -> Tensor:
        """Logits after each sequence's newest token, or after each node of its edge."""
        start, spans = time.perf_counter(), []
        for one in wanting:
            slots, read, tokens = one.reading.slots, one.reading.read, one.context.tokens
            if depth == 0:
                # A sequence that waited has nothing new: its last token is read again, for its row.
                slots.length = min(slots.length, len(tokens) - 1)
                new = torch.tensor(tokens[slots.length :])
                room = one.context.prompt_tokens + one.context.request.ask.max_tokens
                self._cache.reserve(slots, room)
                keep = slots.table[slots.length : len(tokens)]
                past = slots.slots if slots.length else None
                spans.append(Span(new, past, keep, wanted=len(new) - 1))
                slots.length = len(tokens)
                continue
            for number, parent, _ in one.edge:
                place = len(read)
                read.append((one.tokens[number], parent))
                self._cache.reserve(slots, slots.length + place + 1)
                behind = slots.table[slots.length :]
                path = _path(read, place)
                past = slots.table[: slots.length + place]
                if path != list(range(place)):
                    past = torch.cat([slots.slots, behind[path]])
                spans.append(Span(torch.tensor([one.tokens[number]]), past, behind[place : place + 1]))
        exact = any(len(span.tokens) > 1 and span.past is None for span in spans)
        logits = self._model.logits(self._model.forward(spans, self._cache, exact=exact), exact=False)
        seconds = time.perf_counter() - start
        if depth > 0:
            self._call_seconds = (
                seconds if not self._call_seconds else 0.9 * self._call_seconds + 0.1 * seconds
            )
        return logits

    def _grow(self, one: _Growing, logits: Tensor, depth: int) -> None:
        """Add the best guesses behind each row; they are the next edge."""
        edge = one.edge or [(ROOT, ROOT, 1.0)]
        places = range(len(one.reading.read) - len(one.edge), len(one.reading.read))
        offered = []
        for row, (number, _, value), place in zip(logits, edge, places if one.edge else [ROOT], strict=True):
            candidates = self._candidates(one, row)
            one.ranked[number] = self._offers.ranked(candidates, depth, one.noise)
            for token, kind in zip(one.ranked[number].tokens, one.ranked[number].kinds, strict=True):
                offered.append((value * self._offers.hits.chance(kind), number, place, token, kind))
        one.edge = []
        for value, number, place, token, kind in sorted(offered, key=lambda o: -o[0])[: self._width]:
            if not one.budget.worth(value):
                break
            one.budget.spend(value)
            one.tokens.append(token)
            one.parents.append(number)
            one.kinds.append(kind)
            one.edge.append((len(one.tokens) - 1, place, value))

    def _candidates(self, one: _Growing, logits: Tensor) -> Candidates:
        """The likeliest tokens, and under known noise those that it lifts."""
        scaled = logits / one.context.temperature
        count = min(4 * self._width, len(scaled))
        ids = torch.topk(scaled, count).indices
        if self._offers.noise_aware and one.noise.known:
            ids = torch.topk(scaled, min(32, len(scaled))).indices
        return Candidates(ids.tolist(), scaled[ids].tolist())


def _path(read: Sequence[tuple[int, int]], place: int) -> list[int]:
    """Places of a guess's ancestors, from the first on."""
    path: list[int] = []
    while (place := read[place][1]) != ROOT:
        path.append(place)
    return path[::-1]
