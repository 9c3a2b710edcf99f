"""Seeded generation on the reference model: KV-cached decode of a batch of requests.

Used to make honest references, the demo's providers and challenges. The token chosen at a position is
the winner of the same `score_rows` that audits it, so decode and audit cannot disagree about a rule.

A request with a `speculation` rule plays a provider that decodes speculatively: a drafter runs along, its
likeliest token is the draft at each position, and the rule decides. It takes as long as plain decoding; what
it is for is the tokens and the drafts in the log. Rules that judge a step's drafts together need them all
first (`block_decode.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from auditor.errors import OptionError
from auditor.kernels.splitmix import U64
from auditor.reference.batch import Span, extend
from auditor.reference.block_decode import decode_steps
from auditor.reference.head import NoiseRows, draw_rows
from auditor.reference.loading import ReferenceModel
from auditor.reference.running import Ask, Running, Steps
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence
from auditor.reference.speculation import SpeculatedRows, SpeculationRule, draw_speculated

__all__ = ["Ask", "Steps", "generate"]


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
        OptionError: speculation without a drafter; block verification by a model that cannot go back.
        SamplingUnsupportedError: block verification under a grammar.
    """
    if drafter is None and any(ask.speculation is not None for ask in asks):
        raise OptionError("speculation needs a model that drafts")
    for start in range(0, len(asks), batch_size):
        running = [Running(ask, model.config.vocab_size) for ask in asks[start : start + batch_size]]
        by_step = [request for request in running if request.by_step]
        singly = [request for request in running if not request.by_step]
        if singly:
            _decode_batch(model, singly, drafter, keep=on_hidden is not None)
        if by_step and drafter is not None:
            decode_steps(model, by_step, drafter, keep=on_hidden is not None)
        for request in running:
            if on_hidden is not None:
                on_hidden(torch.stack(request.states))
            on_steps(request.steps)
            yield tuple(request.output)


class _Stream:
    """One model's keys and values of a batch, and the hidden state of each running request's last token."""

    def __init__(self, model: ReferenceModel, requests: list[Running]) -> None:
        self._model, self._cache = model, model.new_cache()
        self._sequences = {request: Sequence() for request in requests}
        spans = []
        for request, sequence in self._sequences.items():
            prompt = torch.tensor(request.ask.prompt)
            # Slots for all it may become, in one run, so that its keys are read in place.
            self._cache.reserve(sequence, len(prompt) + request.ask.max_tokens)
            spans.append(extend(self._cache, sequence, prompt, wanted=len(prompt) - 1))
        self.hidden = self._forward(requests, spans, exact=True)

    def advance(self, requests: list[Running]) -> None:
        """Take in the token that each of these requests, the ones still running, was given last."""
        spans = [
            extend(self._cache, self._sequences[request], torch.tensor(request.output[-1:]))
            for request in requests
        ]
        self.hidden = self._forward(requests, spans, exact=False)

    def logits(self) -> torch.Tensor:
        return self._model.logits(self.hidden)

    def _forward(self, requests: list[Running], spans: list[Span], *, exact: bool) -> torch.Tensor:
        hidden = self._model.forward(spans, self._cache, exact=exact)
        for request, span in zip(requests, spans, strict=True):
            self._sequences[request].length += span.tokens.shape[0]
        return hidden


def _decode_batch(
    model: ReferenceModel, requests: list[Running], drafter: ReferenceModel | None, *, keep: bool
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


def _sample(logits: torch.Tensor, requests: list[Running], proposed: list[int] | None) -> None:
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


def _plain(logits: torch.Tensor, requests: list[Running], draws: NoiseRows) -> list[int]:
    winners: list[int] = draw_rows(logits, requests[0].spec, requests[0].ask.scheme, draws).tolist()
    return winners


def _speculative(
    logits: torch.Tensor,
    requests: list[Running],
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
