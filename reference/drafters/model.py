"""A smaller model as the drafter: a shipped draft, or a copy of the target with fewer layers.

Guesses are made depth by depth for all sequences at once, so that a step costs as many calls of the draft as
its trees are deep. Each guess that is read keeps its slot behind its sequence; what was taken is linked, and
never computed again. With `width` 1 the guesses are a chain. Sources: Leviathan, Kalman, Matias, arXiv
2211.17192; coupled by shared noise, Daliri, Musco, Suresh, arXiv 2408.07978; layers as in DySpec's threshold
variant, arXiv 2410.11744.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from auditor.errors import OptionError
from auditor.kernels.keyed_noise import KeyedNoise
from auditor.kernels.keyed_race import race
from auditor.kernels.splitmix import U64
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

    def take(self, token: int, parent: int, kind: Kind, place: int, value: float) -> bool:
        """Take a guess, to be read next, if it is worth its row; False when it is not."""
        if not self.budget.worth(value):
            return False
        self.budget.spend(value)
        self.tokens.append(token)
        self.parents.append(parent)
        self.kinds.append(kind)
        self.edge.append((len(self.tokens) - 1, place, value))
        return True


class ModelDrafter:
    """Guesses of another model with the same vocabulary.

    Args:
        width: most guesses at each depth that are read on from.
        noise_aware: rank by log q + g; otherwise by q.
        clock: by which its calls are weighed against the cost curve's, which must have been measured by it.

    Raises:
        OptionError: a model that keeps no state by position, and cannot go back from a wrong guess.
    """

    top = 0

    def __init__(
        self,
        model: ReferenceModel,
        *,
        width: int = 1,
        noise_aware: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not model.config.shares_prefixes:
            raise OptionError(f"a {model.config.model_type} model cannot draft", fix="name one of attention")
        self._model, self._width, self._cache = model, width, model.new_cache()
        self._offers = Offers(noise_aware=noise_aware, width=width)
        self._readings: dict[int, _Reading] = {}
        self._clock, self._call_seconds = clock, 0.0

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
            if self._width == 1:
                self._lengthen(wanting, logits, depth)
            else:
                parts = torch.split(logits, [max(len(one.edge), 1) for one in wanting])
                for one, own in zip(wanting, parts, strict=True):
                    self._grow(one, own, depth)
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
        start, spans = self._clock(), []
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
        exact = any(span.past is None for span in spans)
        logits = self._model.logits(self._model.forward(spans, self._cache, exact=exact), exact=False)
        if not exact:  # one slow call must not end guessing for good
            seconds = self._clock() - start
            self._call_seconds = min(seconds, 1.1 * self._call_seconds) if self._call_seconds else seconds
        return logits

    def _lengthen(self, wanting: Sequence[_Growing], logits: Tensor, depth: int) -> None:
        """Add the best guess behind each sequence's one row; chains of all sequences at once.

        Under keyed noise it is the token that the draft itself would draw, over the whole vocabulary.
        """
        alike: dict[tuple[KeyedNoise | None, float], list[int]] = {}
        for row, one in enumerate(wanting):
            keyed = one.noise.keyed if self._offers.noise_aware else None
            if keyed is None and self._offers.noise_aware and one.noise.known:
                self._grow(one, logits[row : row + 1], depth)  # whole rows of noise
            else:
                alike.setdefault((keyed, one.context.temperature), []).append(row)
        for (keyed, temperature), rows in alike.items():
            own = logits if len(rows) == len(wanting) else logits[rows]
            if keyed is None:
                top = torch.topk(own / temperature, min(2, own.shape[1]))
                best, leads = top.indices[:, 0].tolist(), (top.values[:, 0] - top.values[:, -1]).tolist()
            else:
                keys = [wanting[row].noise.rows(np.array([depth])) for row in rows]
                drawn = race(
                    own.numpy(),
                    np.concatenate(cast("list[U64]", keys)),
                    own.numpy().argmax(axis=1),
                    noise=keyed,
                    temperature=temperature,
                )
                best, leads = drawn.winner.tolist(), (drawn.winner_score - drawn.runner_up_score).tolist()
            for row, token, lead in zip(rows, best, leads, strict=True):
                self._append(wanting[row], token, lead)

    def _append(self, one: _Growing, token: int, lead: float) -> None:
        """Make a chain longer by one guess, which leads the next by so much, if it is worth its row."""
        number, value = len(one.tokens) - 1, one.edge[0][2] if one.edge else 1.0
        kind = self._offers.kind(0, lead, 0)
        value *= self._offers.hits.chance(kind)
        one.edge = []
        one.take(token, number, kind, len(one.reading.read) - 1, value)

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
            if not one.take(token, number, kind, place, value):
                break

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
