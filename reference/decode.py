"""Seeded generation on the reference model: KV-cached decode of a batch of requests.

Used to make honest references, the demo's providers and challenges. The token chosen at a position is
the winner of the same `score_rows` that audits it, so decode and audit cannot disagree about a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from auditor.reference.batch import extend
from auditor.reference.head import NoiseRows, draw_rows, effective_sampling
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import Draws, NoiseScheme
from auditor.reference.prefix_rules import RuledRequest, resolve_for
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence
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
    emit: Callable[[int], None] = field(default=lambda _token: None, compare=False)


class _Running:
    """A request while it is decoded."""

    def __init__(self, ask: Ask, vocabulary: int) -> None:
        self.ask = ask
        self.spec = effective_sampling(ask.spec, ask.scheme)
        self.output: list[int] = []
        self.states: list[torch.Tensor] = []
        self._draws = Draws(
            ask.scheme, ask.seed, ask.noise_prompt_tokens, vocabulary, filtered=self.spec.filtered
        )
        rules = resolve_for(self.spec, ask.scheme, ask.tokenizer, vocabulary)
        self._rules = None if rules is None else RuledRequest(rules, ask.prompt)

    def draw(self) -> NoiseRows:
        return self._draws.take(1)

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
    on_hidden: Callable[[torch.Tensor], None] | None = None,
) -> Iterator[tuple[int, ...]]:
    """Output ids of each request, in order, decoded `batch_size` at a time.

    `on_hidden` is shown the hidden states [output tokens, hidden] of each request just before its ids come.

    Raises:
        ContextLengthError: a prompt and its `max_tokens` exceed the model's context.
    """
    for start in range(0, len(asks), batch_size):
        running = [_Running(ask, model.config.vocab_size) for ask in asks[start : start + batch_size]]
        _decode_batch(model, running, keep=on_hidden is not None)
        for request in running:
            if on_hidden is not None:
                on_hidden(torch.stack(request.states))
            yield tuple(request.output)


def _decode_batch(model: ReferenceModel, requests: list[_Running], *, keep: bool) -> None:
    cache = model.new_cache()
    sequences = [Sequence() for _ in requests]
    for sequence, request in zip(sequences, requests, strict=True):
        # Slots for all it may become, in one run, so that its keys are read in place.
        cache.reserve(sequence, len(request.ask.prompt) + request.ask.max_tokens)
    prompts = [torch.tensor(request.ask.prompt) for request in requests]
    spans = [
        extend(cache, sequence, prompt, wanted=len(prompt) - 1)
        for sequence, prompt in zip(sequences, prompts, strict=True)
    ]
    hidden = model.forward(spans, cache)
    alive = list(zip(sequences, requests, spans, strict=True))
    while alive:
        for sequence, _, span in alive:
            sequence.length += span.tokens.shape[0]
        if keep:
            for row, (_, request, _) in zip(hidden, alive, strict=True):
                request.states.append(row)
        _sample(model.logits(hidden), [request for _, request, _ in alive])
        running = [(sequence, request) for sequence, request, _ in alive if not request.finished]
        alive = [
            (sequence, request, extend(cache, sequence, torch.tensor(request.output[-1:])))
            for sequence, request in running
        ]
        hidden = model.forward([span for _, _, span in alive], cache, exact=False)


def _sample(logits: torch.Tensor, requests: list[_Running]) -> None:
    """Append one token to every request; rows with the same sampler are drawn together."""
    groups: dict[tuple[SamplingSpec, str], list[int]] = {}
    for row, request in enumerate(requests):
        key = (request.spec, request.ask.scheme.name)
        groups.setdefault(key, []).append(row)
    for (spec, _), rows in groups.items():
        own = logits[rows]
        if spec.ruled:
            own = torch.stack([requests[row].ruled(logits[row]) for row in rows])
        drawn = (requests[row].draw() for row in rows)
        draws: list[npt.NDArray[Any]] = [noise for noise in drawn if noise is not None]
        joined = np.concatenate(draws) if draws else None
        scheme = requests[rows[0]].ask.scheme
        winners = draw_rows(own, spec, scheme, joined)
        for row, token in zip(rows, winners.tolist(), strict=True):
            requests[row].output.append(token)
            requests[row].ask.emit(token)
