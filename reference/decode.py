"""Seeded generation on the reference model: KV-cached decode of a batch of requests.

Used to make honest references, the demo's providers and challenges. The token chosen at a position is
the winner of the same `score_rows` that audits it, so decode and audit cannot disagree about a rule.

A request with a `speculation` rule plays a provider that decodes speculatively: a drafter runs along, its
likeliest token is the draft at each position, and the rule decides. It takes as long as plain decoding; what
it is for is the tokens and the drafts in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from auditor.errors import OptionError
from auditor.kernels.splitmix import U64
from auditor.reference.batch import Span, extend
from auditor.reference.head import NoiseRows, draw_rows, effective_sampling
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import Draws, NoiseScheme
from auditor.reference.prefix_rules import RuledRequest, resolve_for
from auditor.reference.sampling import SamplingSpec
from auditor.reference.shape_filters import check_shape
from auditor.reference.slots import Sequence
from auditor.reference.speculation import (
    NO_DRAFT,
    SpeculatedRows,
    SpeculationRule,
    draw_speculated,
)
from auditor.reference.stop_strings import stop_string_place
from auditor.reference.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Ask:
    """One generation to run.

    Attributes:
        prompt: ids fed to the model.
        noise_prompt_tokens: prompt length as far as the noise is concerned. A provider that feeds hidden text
            can keep the noise of the prompt it declares; the simulated one does, which is the harder case.
        max_tokens: most output tokens.
        stop_ids: the model's own ids that end the output, unless the request ignores them; those of the
            request always do. The one sampled is kept.
        tokenizer: what stop strings, and rules about texts and end ids, need.
        speculation: judges a drafter's tokens, `draft_tokens` a step; None draws every token plainly.
        emit: told every token as it is drawn.
    """

    prompt: tuple[int, ...]
    noise_prompt_tokens: int
    spec: SamplingSpec
    seed: int
    scheme: NoiseScheme
    max_tokens: int
    stop_ids: frozenset[int]
    tokenizer: Tokenizer | None = None
    speculation: SpeculationRule | None = None
    draft_tokens: int = 4
    emit: Callable[[int], None] = field(default=lambda _token: None, compare=False)


Steps = tuple[tuple[int, ...], ...]


class _Running:
    """A request while it is decoded."""

    def __init__(self, ask: Ask, vocabulary: int) -> None:
        self.ask = ask
        self.spec = effective_sampling(ask.spec, ask.scheme)
        self.output: list[int] = []
        self._steps: list[list[int]] = [[]]  # the first token comes of the prompt, without a draft
        self._step_ended = False
        self.states: list[torch.Tensor] = []
        check_shape(ask.spec, ask.scheme, speculated=ask.speculation is not None)
        self._draws = Draws(ask.scheme, ask.seed, ask.noise_prompt_tokens, vocabulary, self.spec)
        rules = resolve_for(self.spec, ask.scheme, ask.tokenizer, vocabulary)
        self._rules = None if rules is None else RuledRequest(rules, ask.prompt)

    def draw(self) -> NoiseRows:
        return self._draws.take(1)

    def judged(self, proposed: int) -> int:
        """The draft judged at the next position: the proposed token, unless this step has had all of its."""
        if self._step_ended:
            self._steps.append([])
        return NO_DRAFT if self._is_bonus else proposed

    @property
    def _is_bonus(self) -> bool:
        return len(self._steps) == 1 or len(self._steps[-1]) == self.ask.draft_tokens

    def append(self, token: int, draft: int = NO_DRAFT) -> None:
        """Take the next token, and the draft it was judged by."""
        self.output.append(token)
        if draft != NO_DRAFT:
            self._steps[-1].append(draft)
        self._step_ended = token != draft
        self.ask.emit(token)

    @property
    def steps(self) -> Steps:
        """The drafts that each step judged."""
        return tuple(map(tuple, self._steps))

    def ruled(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token's logits [V] under the request's rules: the very code that audits it."""
        if self._rules is None:
            return logits
        return self._rules.apply(logits[None], np.asarray(self.output, np.int64), len(self.output)).logits[0]

    @property
    def finished(self) -> bool:
        if not self.output or len(self.output) >= self.ask.max_tokens:
            return len(self.output) >= self.ask.max_tokens
        last, spec, tokenizer = self.output[-1], self.spec, self.ask.tokenizer
        if last in spec.stop_token_ids or (last in self.ask.stop_ids and not spec.ignore_eos):
            return True
        if not spec.stop or tokenizer is None:
            return False
        return stop_string_place(tokenizer, self.output, spec.stop, min_tokens=spec.min_tokens) is not None


def generate(
    model: ReferenceModel,
    asks: SequenceOf[Ask],
    *,
    batch_size: int = 32,
    drafter: ReferenceModel | None = None,
    on_hidden: Callable[[torch.Tensor], None] | None = None,
    on_steps: Callable[[Steps], None] = lambda _steps: None,
) -> Iterator[tuple[int, ...]]:
    """Output ids of each request, in order, decoded `batch_size` at a time.

    `drafter` proposes for the asks with a `speculation` rule; it shares the vocabulary. Just before its ids
    come, `on_hidden` is shown the hidden states [output tokens, hidden] of each request, and `on_steps` the
    drafts that each of its steps judged.

    Raises:
        ContextLengthError: a prompt and its `max_tokens` exceed the model's context.
        OptionError: speculation without a drafter.
    """
    if drafter is None and any(ask.speculation is not None for ask in asks):
        raise OptionError("speculation needs a model that drafts")
    for start in range(0, len(asks), batch_size):
        running = [_Running(ask, model.config.vocab_size) for ask in asks[start : start + batch_size]]
        _decode_batch(model, running, drafter, keep=on_hidden is not None)
        for request in running:
            if on_hidden is not None:
                on_hidden(torch.stack(request.states))
            on_steps(request.steps)
            yield tuple(request.output)


class _Stream:
    """One model's keys and values of a batch, and the hidden state of each running request's last token."""

    def __init__(self, model: ReferenceModel, requests: list[_Running]) -> None:
        self._model, self._cache = model, model.new_cache()
        self._sequences = {request: Sequence() for request in requests}
        spans = []
        for request, sequence in self._sequences.items():
            prompt = torch.tensor(request.ask.prompt)
            # Slots for all it may become, in one run, so that its keys are read in place.
            self._cache.reserve(sequence, len(prompt) + request.ask.max_tokens)
            spans.append(extend(self._cache, sequence, prompt, wanted=len(prompt) - 1))
        self.hidden = self._forward(requests, spans, exact=True)

    def advance(self, requests: list[_Running]) -> None:
        """Take in the token that each of these requests, the ones still running, was given last."""
        spans = [
            extend(self._cache, self._sequences[request], torch.tensor(request.output[-1:]))
            for request in requests
        ]
        self.hidden = self._forward(requests, spans, exact=False)

    def logits(self) -> torch.Tensor:
        return self._model.logits(self.hidden)

    def _forward(self, requests: list[_Running], spans: list[Span], *, exact: bool) -> torch.Tensor:
        hidden = self._model.forward(spans, self._cache, exact=exact)
        for request, span in zip(requests, spans, strict=True):
            self._sequences[request].length += span.tokens.shape[0]
        return hidden


def _decode_batch(
    model: ReferenceModel, requests: list[_Running], drafter: ReferenceModel | None, *, keep: bool
) -> None:
    target = _Stream(model, requests)
    draft = None if drafter is None else _Stream(drafter, requests)
    alive = requests
    while True:
        if keep:
            for row, request in zip(target.hidden, alive, strict=True):
                request.states.append(row)
        _sample(target.logits(), alive, None if draft is None else draft.logits().argmax(dim=1).tolist())
        alive = [request for request in alive if not request.finished]
        if not alive:
            return
        target.advance(alive)
        if draft is not None:
            draft.advance(alive)


def _sample(logits: torch.Tensor, requests: list[_Running], proposed: list[int] | None) -> None:
    """Append one token to every request; rows with the same sampler are drawn together."""
    groups: dict[tuple[SamplingSpec, str, SpeculationRule | None], list[int]] = {}
    for row, request in enumerate(requests):
        key = (request.spec, request.ask.scheme.name, request.ask.speculation)
        groups.setdefault(key, []).append(row)
    for (spec, _, rule), rows in groups.items():
        own = logits[rows]
        if spec.ruled:
            own = torch.stack([requests[row].ruled(logits[row]) for row in rows])
        drawn = (requests[row].draw() for row in rows)
        draws: list[npt.NDArray[Any]] = [noise for noise in drawn if noise is not None]
        joined = np.concatenate(draws) if draws else None
        members = [requests[row] for row in rows]
        if rule is None or proposed is None:
            for request, token in zip(members, _plain(own, members, joined), strict=True):
                request.append(token)
            continue
        drafts = [request.judged(proposed[row]) for row, request in zip(rows, members, strict=True)]
        tokens = _speculative(own, members, joined, rule, drafts)
        for request, token, draft in zip(members, tokens, drafts, strict=True):
            request.append(token, draft)


def _plain(logits: torch.Tensor, requests: list[_Running], draws: NoiseRows) -> list[int]:
    winners: list[int] = draw_rows(logits, requests[0].spec, requests[0].ask.scheme, draws).tolist()
    return winners


def _speculative(
    logits: torch.Tensor,
    requests: list[_Running],
    draws: NoiseRows,
    rule: SpeculationRule,
    drafts: list[int],
) -> list[int]:
    asks = [request.ask for request in requests]
    coins = [
        rule.row_coins(ask.seed, ask.noise_prompt_tokens, at, at + 1)
        for ask, at in zip(asks, (len(request.output) for request in requests), strict=True)
    ]
    rows = SpeculatedRows(np.concatenate(coins), np.array(drafts, np.int64), rule.doubt)
    tokens: list[int] = draw_speculated(
        logits, requests[0].spec, asks[0].scheme, cast("U64", draws), rows
    ).tolist()
    return tokens
