"""Decoding with block verification: a drafter proposes a step's tokens, the target judges them together.

All requests of a batch take their steps at the same time: the drafter reads its own likeliest tokens one
after another, the target reads the last token and all drafts in one forward, and the keys and values of
drafts that were turned down are written over by what follows (I3: what lies before a sequence's length was
computed under its own prefix).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from auditor.errors import OptionError
from auditor.reference.batch import extend
from auditor.reference.loading import ReferenceModel
from auditor.reference.running import Running
from auditor.reference.slots import Sequence as Slots


class _Reader:
    """One model that reads every request's text, and goes back to where the text was when drafts fell."""

    def __init__(self, model: ReferenceModel, requests: Sequence[Running]) -> None:
        if not model.config.shares_prefixes:
            raise OptionError(
                f"a {model.config.model_type} model keeps no state by position to go back to",
                fix="speculate with another rule",
            )
        self._model, self._cache = model, model.new_cache()
        self._sequences = {request: Slots() for request in requests}
        self._texts: dict[Running, Sequence[int]] = dict.fromkeys(requests, ())
        for request, sequence in self._sequences.items():
            self._cache.reserve(sequence, len(request.ask.prompt) + request.ask.max_tokens)

    def read(
        self, texts: Mapping[Running, Sequence[int]], rows: Mapping[Running, int]
    ) -> dict[Running, Tensor]:
        """Read each text on from where it agrees with what was read; hidden states of its last rows."""
        spans = []
        for request, text in texts.items():
            sequence = self._sequences[request]
            sequence.length = min(_agreed(self._texts[request], text), len(text) - rows[request])
            new = torch.tensor(text[sequence.length :])
            spans.append(extend(self._cache, sequence, new, wanted=len(new) - rows[request]))
        first = any(span.start == 0 for span in spans)
        hidden = self._model.forward(spans, self._cache, exact=first)
        for request, text in texts.items():
            self._sequences[request].length = len(text)
            self._texts[request] = text
        return dict(zip(texts, torch.split(hidden, [rows[request] for request in texts]), strict=True))

    def logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)


def _agreed(old: Sequence[int], new: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    differ = (place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    return next(differ, min(len(old), len(new)))


def decode_steps(
    model: ReferenceModel, requests: Sequence[Running], drafter: ReferenceModel, *, keep: bool
) -> None:
    """Decode requests whose rule judges a step's drafts together, to their ends.

    Raises:
        OptionError: a recurrent layer, or longrope, does not let a sequence go back.
        SamplingUnsupportedError: a request has a grammar.
        ContextLengthError: a prompt and its `max_tokens` exceed a model's context.
    """
    samplers = {request: request.block_sampler() for request in requests}
    target, proposer = _Reader(model, requests), _Reader(drafter, requests)
    alive = list(requests)
    while alive:
        drafts = _propose(proposer, alive)
        texts = {r: [*r.ask.prompt, *r.output, *drafts[r]] for r in alive}
        hidden = target.read(texts, {r: len(drafts[r]) + 1 for r in alive})
        logits = target.logits(torch.cat([hidden[r] for r in alive]))
        for request, rows in zip(alive, torch.split(logits, [len(hidden[r]) for r in alive]), strict=True):
            own = tuple(drafts[request])
            kept, token = samplers[request].draw(rows, np.asarray(request.output, np.int64), own)
            assert token is not None, "there is a row for the bonus token"
            states = hidden[request] if keep else None
            request.append_step([*own[:kept], token], own, states)
        alive = [request for request in alive if not request.finished]


def _propose(proposer: _Reader, requests: Sequence[Running]) -> dict[Running, list[int]]:
    """Each request's drafts: the drafter's likeliest tokens. None come before the first token."""
    drafts: dict[Running, list[int]] = {request: [] for request in requests}
    while True:
        wanting = [r for r in requests if len(drafts[r]) < _most_drafts(r)]
        if not wanting:
            return drafts
        texts = {r: [*r.ask.prompt, *r.output, *drafts[r]] for r in wanting}
        hidden = proposer.read(texts, dict.fromkeys(wanting, 1))
        likeliest = proposer.logits(torch.cat([hidden[r] for r in wanting])).argmax(dim=1).tolist()
        for request, token in zip(wanting, likeliest, strict=True):
            drafts[request].append(token)


def _most_drafts(request: Running) -> int:
    """Drafts of the next step: with its own token it does not pass the end."""
    if not request.output:
        return 0
    return min(request.ask.draft_tokens, request.ask.max_tokens - len(request.output) - 1)
