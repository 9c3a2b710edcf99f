"""Many requests decoded at once: each step is one call that verifies a tree of guesses for every sequence.

A step: (1) sequences that lack the keys and values of nothing but their newest token, the root, get a tree
from the drafter; (2) trees, and chunks of prompts, are packed in one call; (3) a row sees its sequence's
committed slots and its ancestors; (4) each row is drawn with the noise of its position; (5) the walk follows
what was drawn for as long as it was guessed; (6) slots on that path are linked behind the sequence's table,
the others are free again, and no data moves; (7) the drafter sees what became of its tree.

Invariants: (I1) a sequence's table holds positions 0..length-1; (I2) `batch.py`; (I3) each committed slot was
computed under its committed prefix; (I4) after a step a decoding sequence has exactly one token without keys
and values; (I5) what was freed is in no table; (I6) nothing is padded. Tokens are those of plain decoding,
which is the empty tree, whatever the drafter, the batch, chunks and preemption (`choice.py` on ties).

A full cache preempts the newest sequence: its slots go, its tokens stay, and it is read again later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

from auditor.errors import OptionError
from auditor.reference.batch import Span, extend
from auditor.reference.choice import Walked, walk_trees
from auditor.reference.drafters.cost import Budget, Call, CostCurve, Payback
from auditor.reference.drafters.drafter import Context, Drafter, NoDrafts, Verified, propose_all
from auditor.reference.drafters.tree import EMPTY, DraftTree
from auditor.reference.layers.mamba2 import Branches
from auditor.reference.loading import ReferenceModel
from auditor.reference.running import Ask, Running
from auditor.reference.slots import Sequence

_KEYS = count()  # a drafter may serve one engine after another
_ALONE = torch.ones(1, 1, dtype=torch.bool)


@dataclass(eq=False, slots=True)
class _Live:
    """A request and its place in the cache; `rows` and `tree` are of the step in the making."""

    context: Context
    sequence: Sequence
    tree: DraftTree = EMPTY
    rows: int = 0

    @property
    def request(self) -> Running:
        return self.context.request

    @property
    def missing(self) -> int:
        """Tokens without keys and values; one while it decodes."""
        return len(self.context.tokens) - self.sequence.length

    @property
    def draws(self) -> bool:
        """Whether this step reaches its newest token."""
        return self.rows - len(self.tree) == self.missing


class Engine:
    """A scheduler and the verify step.

    Args:
        drafter: guesses; None decodes plainly.
        cost: what rows cost here; None takes every guess up to `nodes`.
        slots: most positions in the cache, None for as many as it takes.
        token_budget: rows of a call, None for what suits the model.
        nodes: most guesses of a sequence in a step.
        keep_states: whether hidden states of output tokens are kept with their request.
    """

    def __init__(
        self,
        model: ReferenceModel,
        *,
        drafter: Drafter | None = None,
        cost: CostCurve | None = None,
        batch_size: int = 32,
        slots: int | None = None,
        token_budget: int | None = None,
        nodes: int = 64,
        keep_states: bool = False,
    ) -> None:
        self.model, self.drafter = model, NoDrafts() if drafter is None else drafter
        self.cache = model.new_cache(limit=slots)
        self.live: list[_Live] = []
        self.steps = self.rows = self.tokens = 0
        self._waiting: deque[_Live] = deque()
        self._cost, self._batch_size, self._nodes, self._keep_states = cost, batch_size, nodes, keep_states
        self._smooth = None if cost is None else cost.smooth
        self._token_budget = max(token_budget or model.pack_tokens, batch_size + 1)
        trees = model.config.follows_trees and not model.from_the_beginning
        self._drafts = drafter is not None and trees
        self._payback = None if cost is None or not self._drafts else Payback(cost)

    def add(self, ask: Ask, sequence: Sequence | None = None) -> Running:
        """Queue a request; `sequence` is the beginning of its prompt, where this cache has it already.

        Raises:
            SamplingUnsupportedError: a rule that its scheme's engine does not offer.
            OptionError: block verification by a model that cannot go back; drafts judged under a policy.
        """
        if ask.speculation is not None and self.model.from_the_beginning:
            raise OptionError("speculation by a provider whose attention is changed", fix="decode plainly")
        request = Running(ask, self.model.config.vocab_size)
        if request.by_step:
            if not self.model.config.shares_prefixes:
                raise OptionError(
                    f"a {self.model.config.model_type} model keeps no state by position to go back to",
                    fix="speculate with another rule",
                )
            request.block_sampler()
        context = Context(next(_KEYS), list(ask.prompt), len(ask.prompt), request)
        self._waiting.append(_Live(context, Sequence() if sequence is None else sequence))
        return request

    def step(self) -> None:
        """Take one step with every sequence that there is room for.

        Raises:
            ContextLengthError: a sequence exceeds the model's context.
            OptionError: the cache is too small for one sequence.
        """
        if self._payback is None:
            self._take()
            return
        clock, before = self._payback.cost.clock, self.tokens
        start = clock()
        sequences = self._take()
        if sequences:
            self._payback.note(sequences, self.tokens - before, clock() - start)

    def _take(self) -> int:
        """Take a step; how many sequences were decoded if none was read, else 0."""
        self._admit()
        packed = self._packed()
        spans = [self._span(live) for live in packed]
        exact = any(live.rows > len(live.tree) + 1 or not live.draws for live in packed)
        if exact:  # rows that decode keep the shape, and the bits, that they have alone
            spans = [self._kept_apart(live, span) for live, span in zip(packed, spans, strict=True)]
        hidden = self.model.forward(spans, self.cache, exact=exact)
        self.steps += 1
        self.rows += sum(live.rows for live in packed)
        drawing = [live for live in packed if live.draws]
        for live in packed:
            if not live.draws:
                live.sequence.length += live.rows
        if drawing:
            self._verify(drawing, hidden)
        self.live = [live for live in self.live if not live.request.finished]
        return 0 if exact else len(packed)

    @property
    def _asks(self) -> bool:
        """Whether the drafter is asked in this step."""
        return self._drafts and (self._payback is None or self._payback.asks)

    def _admit(self) -> None:
        while self._waiting and len(self.live) < self._batch_size:
            live = self._waiting[0]
            wanted = len(live.context.tokens) + 1
            if self.cache.limit is not None and self.live and self.cache.free_slots < wanted:
                return
            self.live.append(self._waiting.popleft())
            if self.cache.limit is None:
                # Slots for all it may become, in one run, so that its keys are read in place.
                most = live.context.prompt_tokens + live.request.ask.max_tokens
                self.cache.reserve(live.sequence, most + (self._nodes if self._drafts else 0))

    def _packed(self) -> list[_Live]:
        """The sequences of this step, with their rows and trees; newest ones give way if slots are few."""
        room = self._token_budget
        decoding = [live for live in self.live if live.missing == 1]
        reading = [live for live in self.live if live.missing > 1]
        if not self.model.config.shares_prefixes and reading:
            decoding = []  # recurrent layers know one exactness a call
        room -= len(decoding)
        for live in reading:
            live.rows, live.tree = min(live.missing, room), EMPTY
            room -= live.rows
        self._draft(decoding, sum(live.rows for live in reading), room)
        wanting = [live for live in (*decoding, *reading) if live.rows]
        packed = [live for live in wanting if live in self.live and self._make_room(live)]
        return [live for live in packed if live in self.live]

    def _draft(self, decoding: SequenceOf[_Live], other_rows: int, room: int) -> None:
        for live in decoding:
            live.tree, live.rows = EMPTY, 1
        if not (self._asks and decoding):
            return
        call = Call(self._smooth, room, other_rows + len(decoding), float(len(decoding)))
        asked = []
        for live in decoding:
            request, position = live.request, len(live.context.tokens)
            left = request.ask.max_tokens - len(request.output) - 1
            depth = min(left, self.model.config.context_length - position)
            most = self._nodes if request.ask.speculation is None else request.ask.draft_tokens
            asked.append((live.context, Budget(min(most, room), depth, call), request.noise))
        before = call.rows, call.expected
        limits = [(budget.depth, min(budget.nodes, budget.left)) for _, budget, _ in asked]
        vocabulary = self.model.config.vocab_size
        trees = propose_all(self.drafter, asked)
        if (
            self._cost is not None
            and self._cost(call.rows) * before[1] > self._cost(before[0]) * call.expected
        ):
            return
        for live, tree, (depth, nodes) in zip(decoding, trees, limits, strict=True):
            live.tree = tree.pruned(vocabulary, depth, min(nodes, room))
            live.rows = 1 + len(live.tree)
            room -= len(live.tree)

    def _make_room(self, live: _Live) -> bool:
        """See that there are slots for its rows: without its tree, or without the newest sequences."""
        if self.cache.limit is None:
            return True
        while self.cache.free_slots + len(live.sequence.table) - live.sequence.length < live.rows:
            if len(live.tree):
                live.tree, live.rows = EMPTY, 1
                continue
            newest = self.live[-1]
            if newest is live and len(self.live) == 1:
                raise OptionError(
                    f"{live.sequence.length + live.rows} positions do not fit the {self.cache.limit} of the "
                    "key/value cache",
                    fix="raise the cache's size",
                )
            self._preempt(newest)
            if newest is live:
                return False
        self.cache.reserve(live.sequence, live.sequence.length + live.rows)
        return True

    def _preempt(self, live: _Live) -> None:
        self.live.remove(live)
        self.cache.release(live.sequence)
        self._waiting.appendleft(live)

    def _span(self, live: _Live) -> Span:
        start, chunk = live.sequence.length, live.rows - len(live.tree)
        tokens = torch.tensor([*live.context.tokens[start : start + chunk], *live.tree.tokens])
        seen = live.tree.ancestors() if len(live.tree) else None
        wanted = chunk - 1 if live.draws else chunk
        prompt = live.context.prompt_tokens
        return extend(self.cache, live.sequence, tokens, wanted=wanted, ancestors=seen, prompt=prompt)

    @staticmethod
    def _kept_apart(live: _Live, span: Span) -> Span:
        if live.missing > 1 or span.ancestors is not None:
            return span
        return replace(span, ancestors=_ALONE, depth=torch.zeros(1, dtype=torch.int64))

    def _verify(self, drawing: SequenceOf[_Live], hidden: Tensor) -> None:
        logits = self.model.logits(hidden, exact=False)
        sizes = [1 + len(live.tree) for live in drawing]
        own_logits = torch.split(logits, sizes)
        own_hidden = torch.split(hidden.cpu(), sizes) if self._keep_states else [None] * len(sizes)
        judged = [(live.request, live.tree, rows) for live, rows in zip(drawing, own_logits, strict=True)]
        walks = walk_trees(self.model, judged, logits)
        shown = self._shown(drawing, logits, sizes)
        for live, states, walked, verified in zip(drawing, own_hidden, walks, shown, strict=True):
            self._commit(live, states, walked, verified)

    def _shown(self, drawing: SequenceOf[_Live], logits: Tensor, sizes: list[int]) -> list[Verified | None]:
        if not (self.drafter.top and self._asks):
            return [None] * len(drawing)
        top = torch.topk(logits, min(self.drafter.top, logits.shape[1]), dim=1)
        parts = zip(torch.split(top.indices, sizes), torch.split(top.values, sizes), strict=True)
        return [
            Verified(np.array([live.context.tokens[-1], *live.tree.tokens]), ids.numpy(), values.numpy())
            for live, (ids, values) in zip(drawing, parts, strict=True)
        ]

    def _commit(self, live: _Live, states: Tensor | None, walked: Walked, verified: Verified | None) -> None:
        nodes, tokens = walked
        request, context, sequence = live.request, live.context, live.sequence
        drafts = live.tree.tokens if request.ask.speculation is not None else ()
        rows = [0, *(node + 1 for node in nodes)]
        kept = None if states is None else states[rows[: len(tokens)]]
        emitted = tokens[: request.append(tokens, kept, drafts)]
        self.tokens += len(emitted)
        chunk = live.rows - len(live.tree)
        sequence.length += chunk - 1  # a prompt's rows before the root
        if rows[-1] == len(rows) - 1:  # the first guesses: their slots are in their places
            sequence.length += len(rows)
        else:
            self.cache.keep(sequence, torch.tensor(rows))
        for layer, carried in sequence.state.items():
            if isinstance(carried, Branches):
                sequence.state[layer] = carried.taken(rows)
        context.tokens.extend(emitted)
        if self._drafts:
            self.drafter.observe(context, emitted, verified)
        if request.finished:
            self.drafter.forget(context)
            self.cache.release(sequence)
        elif self.cache.limit is not None:
            self.cache.trim(sequence)
