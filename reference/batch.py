"""One forward call's rows, packed without padding, and what each row may see.

(`tensor.shape[0]` and not `len`, which is Python code and as slow as ten slices: a decode step asks often.)

Rows of several sequences stand one after another. Each `Span` is one sequence's new rows; its keys and
values so far come from slots, and its new ones go to slots only where they are needed again.

Invariant I2: a row sees exactly its own sequence's committed positions, and of the new rows those before it
(or, in a draft tree, its ancestors). I6: what is not there is masked or cut off, never a token id.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from auditor.errors import ContextLengthError, OptionError, TokenOutOfRangeError, TraceFieldError
from auditor.reference.architecture import Rope
from auditor.reference.attention import Softmax, branching, causal, newest, rowwise, tree_mask
from auditor.reference.device import CPU, on_gpu
from auditor.reference.gpu_attention import blockwise, flash_serves, packed
from auditor.reference.layers.rotary import angles
from auditor.reference.slots import Sequence, SlotKV, as_run

KeyValueHook = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Attending:
    """One sequence's whole attention in one layer, for a provider that computes something else.

    Attributes:
        queries: [rows, heads, dim]. keys, values: [rows, key/value heads, dim], rotated, from position 0. A
            call that appends to a sequence finds the rows so far, too.
        prompt: how many of the rows are the prompt's; the others were decoded one by one.
        softmax: the layer's own.
    """

    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    prompt: int
    softmax: Softmax


AttentionHook = Callable[[Attending], Tensor]
"""What every row gathers instead, [rows, heads, value dim]."""
ResidualHook = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, hidden before it, after it, whether each row was decoded) -> hidden after it."""


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's rows in a call.

    Attributes:
        tokens: int64 [rows], not empty.
        past: the sequence's committed slots (its first `start`), None when it begins here.
        keep: slots for the new rows' keys and values, None when nobody looks at them after the call.
        wanted: index within the span of the first row whose hidden state is wanted; all from there on are.
        ancestors: boolean [rows, rows] in a draft tree, None for a chain. depth: then int64 [rows], each
            row's distance from the first new position.
        state: what layers carry (recurrent states, or queries for an `AttentionHook`), read and replaced;
            None for a sequence that begins and ends here.
        prompt: positions of the sequence's prompt, for an `AttentionHook`; None if the first wanted row is
            the prompt's last.
    """

    tokens: Tensor
    past: Tensor | None = None
    keep: Tensor | None = None
    wanted: int = 0
    ancestors: Tensor | None = None
    depth: Tensor | None = None
    state: dict[int, Any] | None = None
    prompt: int | None = None

    @property
    def start(self) -> int:
        """Position of the first new row."""
        return 0 if self.past is None else self.past.shape[0]

    @property
    def branches(self) -> bool:
        """Whether it is a draft tree of more than one row, and no chain."""
        return self.ancestors is not None and len(self.ancestors) > 1

    @property
    def positions(self) -> Tensor:
        """Absolute positions of the rows."""
        rows = torch.arange(self.tokens.shape[0]) if self.depth is None else self.depth
        return rows + self.start


def extend(
    kv: SlotKV,
    sequence: Sequence,
    tokens: Tensor,
    *,
    wanted: int = 0,
    ancestors: Tensor | None = None,
    prompt: int | None = None,
) -> Span:
    """Build a span that appends `tokens` to a sequence, with slots for them; nothing is committed yet.

    `prompt` is as `Span` has it.

    Raises:
        OptionError: no slots are left.
    """
    end = sequence.length + tokens.shape[0]
    kv.reserve(sequence, end)
    keep = sequence.table[sequence.length : end]
    depth = None if ancestors is None else torch.from_numpy(ancestors.numpy().sum(1) - 1)
    past = sequence.slots if sequence.length else None
    return Span(tokens, past, keep, wanted, ancestors, depth, sequence.state, prompt)


def check_spans(spans: SequenceOf[Span], vocab_size: int, context_length: int) -> None:
    """See that a model of these sizes can compute the spans.

    Raises:
        TraceFieldError: an empty span.
        OptionError: tokens of another type.
        TokenOutOfRangeError: an id outside the vocabulary.
        ContextLengthError: a position beyond the context.
    """
    for number, span in enumerate(spans):
        where, tokens = f"sequence {number}", span.tokens
        if tokens.dim() != 1 or tokens.shape[0] == 0:
            raise TraceFieldError("token ids must be a non-empty row", where=where)
        if tokens.dtype != torch.int64:
            raise OptionError(f"token ids are {tokens.dtype}, not int64", where=where)
        last = span.start + (tokens.shape[0] if span.depth is None else int(span.depth.max()) + 1)
        if last > context_length:
            raise ContextLengthError(f"{last} tokens; the model has {context_length} positions", where=where)
        low, high = (int(end) for end in torch.aminmax(tokens))
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            raise TokenOutOfRangeError(f"token id {bad}; the vocabulary has {vocab_size}", where=where)


@dataclass(eq=False)
class Run:
    """A call in progress, as the layers see it.

    Args:
        exact: rows are computed so that cutting a sequence elsewhere changes no bit (`attention.causal`);
            otherwise without padding, for few rows a sequence, as draft trees always are.
    """

    spans: SequenceOf[Span]
    kv: SlotKV | None
    dtype: torch.dtype
    exact: bool = True
    key_value: KeyValueHook | None = None
    attention: AttentionHook | None = None
    device: torch.device = CPU
    rows: list[slice] = field(init=False)
    positions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        ends = torch.tensor([0, *(span.tokens.shape[0] for span in self.spans)]).cumsum(0).tolist()
        self.rows = [slice(first, last) for first, last in pairwise(ends)]
        self.positions = torch.cat([span.positions for span in self.spans]).to(self.device)
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}
        self._angles: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        kept = [
            (own, span.keep) for own, span in zip(self.rows, self.spans, strict=True) if span.keep is not None
        ]
        rows = [torch.arange(own.start, own.stop) for own, _ in kept]
        self._kept = torch.cat(rows).to(self.device) if rows else None
        self._keep = torch.cat([slots for _, slots in kept]) if kept else None
        self._all_kept = self._kept is not None and len(self._kept) == len(self.positions)
        # All of a sequence in one run of slots: its keys can be seen in place.
        self._in_place = [
            None if span.past is None or span.keep is None else as_run(torch.cat([span.past, span.keep]))
            for span in self.spans
        ]
        self._runs = None
        if self._one_row_each and self.attention is None:
            self._runs = [(p.start, p.stop - p.start) for p in self._in_place if isinstance(p, slice)]

    @property
    def _one_row_each(self) -> bool:
        """Whether every sequence decodes one token, and its keys can be seen in place."""
        places = zip(self.spans, self._in_place, strict=True)
        return not self.exact and all(s.tokens.shape[0] == 1 and isinstance(p, slice) for s, p in places)

    @property
    def wanted(self) -> Tensor | None:
        """Rows whose hidden states are wanted, int64; None for all."""
        if all(span.wanted == 0 for span in self.spans):
            return None
        pairs = zip(self.rows, self.spans, strict=True)
        return torch.cat([torch.arange(own.start + span.wanted, own.stop) for own, span in pairs]).to(
            self.device
        )

    @property
    def decoded(self) -> Tensor:
        """Whether each row's token was drawn, and fed back, after the prompt; boolean [rows]."""
        decoded = [torch.arange(len(span.tokens)) > span.wanted for span in self.spans]
        return torch.cat(decoded).to(self.device)

    def angles(self, rope: Rope, dim: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rows' positions, made once a call."""
        key = (rope, dim)
        if key not in self._angles:
            if rope.rope_type == "longrope":
                parts = [
                    angles(rope, dim, span.positions.to(self.device), self.dtype, _stretched(rope, span))
                    for span in self.spans
                ]
                self._angles[key] = torch.cat([cos for cos, _ in parts]), torch.cat([sin for _, sin in parts])
            else:
                self._angles[key] = angles(rope, dim, self.positions, self.dtype)
        cos, sin = self._angles[key]
        return cos[rows], sin[rows]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, softmax: Softmax) -> Tensor:
        """Attention of every row, [rows, heads, value dim]; new keys and values go to their slots first."""
        if self.key_value is not None:
            keys, values = self.key_value(layer, keys, values)
        self._store(layer, keys, values)
        same_dim = keys.shape[-1] == values.shape[-1]
        if on_gpu(self.device) and self.attention is None and not any(span.branches for span in self.spans):
            return self._on_gpu(layer, queries, keys, values, softmax)
        if self._runs is not None and softmax.plain and same_dim:
            assert self.kv is not None, "past positions need a cache"
            return newest(queries, *self.kv.read(layer, slice(None)), self._runs, softmax)
        out = queries.new_empty(*queries.shape[:2], values.shape[-1])
        for number, (span, own, place) in enumerate(zip(self.spans, self.rows, self._in_place, strict=True)):
            seen = self._seen(layer, span, place, keys[own], values[own])
            if self.attention is not None:  # of tensors on the CPU: hooks know no other
                rows, kept, held = (part.cpu() for part in (queries[own], *seen))
                asked = Attending(
                    layer, _all_queries(layer, rows, span), kept, held, _prompt_rows(span), softmax
                )
                out[own] = self.attention(asked)[span.start :].to(self.device)
            elif self.exact and span.ancestors is None:
                causal(queries[own], *seen, span.start, softmax, out[own])
            elif not span.branches:
                out[own] = rowwise(queries[own], *seen, span.start, softmax, None)
            else:
                group = queries.shape[1] // keys.shape[1]
                mask = self._tree_mask(number, group, softmax.window)
                out[own] = branching(queries[own], *seen, mask, softmax)
        return out

    def _on_gpu(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, softmax: Softmax) -> Tensor:
        """Attention of chains on a GPU, all sequences in one call where a kernel serves them."""
        placed = zip(self.spans, self.rows, self._in_place, strict=True)
        seen = [self._seen(layer, span, place, keys[own], values[own]) for span, own, place in placed]
        if flash_serves(queries, values, softmax):
            return packed(queries, seen, [len(span.tokens) for span in self.spans], softmax)
        spans = zip(self.spans, self.rows, seen, strict=True)
        return torch.cat([blockwise(queries[own], *kv, span.start, softmax) for span, own, kv in spans])

    def _tree_mask(self, number: int, group: int, window: int | None) -> Tensor:
        """The mask of a span's draft tree, made once a call."""
        key = (number, group, window)
        if key not in self._masks:
            span = self.spans[number]
            assert span.ancestors is not None, "a tree has ancestors"
            mask = tree_mask(span.ancestors, span.start, group, window, self.dtype)
            self._masks[key] = mask.to(self.device)
        return self._masks[key]

    def _store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        if self._kept is None or self._keep is None:
            return
        assert self.kv is not None, "rows to keep need a cache"
        if not self._all_kept:
            keys, values = keys[self._kept], values[self._kept]
        self.kv.write(layer, self._keep, keys, values)

    def _seen(
        self, layer: int, span: Span, place: slice | Tensor | None, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Everything the span may look at, from position 0."""
        if span.past is None:
            return keys, values
        assert self.kv is not None, "past positions need a cache"
        if isinstance(place, slice):
            return self.kv.read(layer, place)
        past = self.kv.read(layer, as_run(span.past))
        return torch.cat([past[0], keys]), torch.cat([past[1], values])


def _all_queries(layer: int, queries: Tensor, span: Span) -> Tensor:
    """Queries from position 0 on, which the sequence keeps for its next call.

    Raises:
        OptionError: those before the span are not there.
    """
    if span.past is not None:
        before = None if span.state is None else span.state.get(layer)
        if before is None or len(before) != span.start:
            raise OptionError(
                "attention under a policy looks at all queries, and the first ones are not there",
                fix="compute the sequence from its beginning, without shared prefixes or draft trees",
            )
        queries = torch.cat([before, queries])
    if span.state is not None:
        span.state[layer] = queries
    return queries


def _prompt_rows(span: Span) -> int:
    """How many of the sequence's rows are its prompt's.

    Raises:
        OptionError: nobody said, and the prompt began in an earlier call.
    """
    if span.prompt is None and span.past is not None:
        raise OptionError("attention under a policy must know where the prompt ends")
    return span.wanted + 1 if span.prompt is None else span.prompt


def _stretched(rope: Rope, span: Span) -> int:
    """The span's length with its past, on which all of longrope's angles depend.

    Raises:
        OptionError: keys of the past were turned as those of a short sequence, which it no longer is.
    """
    length = int(span.positions.max()) + 1
    if 0 < span.start <= rope.original_context_length < length:
        raise OptionError(
            f"longrope turns every position otherwise beyond {rope.original_context_length} tokens",
            fix="compute a sequence that long from its beginning in one call",
        )
    return length
