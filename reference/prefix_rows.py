"""A model's rows after many token contexts of one prompt, sharing what they have in common.

The longest context of the first call is forwarded once; every other is read on from where it leaves that
chain. What is asked of the model is counted, for "one pass and a little" is a claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from auditor.errors import ContextLengthError, TraceFieldError
from auditor.reference.batch import Span
from auditor.reference.byte_level import F64, Ids
from auditor.reference.head import effective_sampling
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import NoiseScheme
from auditor.reference.sampling import SamplingSpec
from auditor.reference.support import find_support

_TILE = 64  # rows of logits at a time


@dataclass(eq=False)
class PrefixRows:
    """Rows of a model behind one prompt; a `byte_level.Rows`.

    Args:
        prompt: ids, not empty.
        spec: how tokens are drawn (temperature and filters), None for the model's own distribution.
        scheme: whose order the filters have; needed where `spec` filters.

    Attributes:
        computed: token positions forwarded so far, those of the prompt included.
    """

    model: ReferenceModel
    prompt: Ids
    spec: SamplingSpec | None = None
    scheme: NoiseScheme | None = None
    computed: int = 0
    _main: Ids = ()
    _slots: torch.Tensor | None = None
    _hidden: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise TraceFieldError("a model's distribution begins behind at least one token")
        self._cache = self.model.new_cache()

    def __call__(self, contexts: Sequence[Ids]) -> Iterator[tuple[Ids, F64]]:
        """Log probabilities of the next token, float64 [V], for each context.

        Raises:
            TokenOutOfRangeError, ContextLengthError: as `Model.forward`.
        """
        longest = max(contexts, key=len)
        limit = self.model.config.context_length
        if len(self.prompt) + len(longest) > limit:
            raise ContextLengthError(
                f"{len(self.prompt) + len(longest)} tokens; the model has {limit} positions"
            )
        chain = self._chain(longest)
        on_main = [c for c in contexts if self._main[: len(c)] == c]
        yield from zip(on_main, self._laws(chain[[len(c) for c in on_main]]), strict=True)
        yield from self._branches([c for c in contexts if self._main[: len(c)] != c])

    def _chain(self, longest: Ids) -> torch.Tensor:
        """Hidden states behind the prompt and behind each token of the main chain, which is kept."""
        if self._hidden is None:
            ids = torch.tensor([*self.prompt, *longest])
            # A model that keeps no state by position reads each branch from the start instead.
            self._slots = self._cache.alloc(len(ids)) if self.model.config.shares_prefixes else None
            span = Span(ids, keep=self._slots, wanted=len(self.prompt) - 1)
            self._main, self._hidden = longest, self.model.forward([span], self._cache)
            self.computed += len(ids)
        return self._hidden

    def _branches(self, contexts: Sequence[Ids]) -> Iterator[tuple[Ids, F64]]:
        if not contexts:
            return
        spans, names = [], []
        for context in _longest(contexts):
            shared = _common(self._main, context)
            if self._slots is None:
                spans.append(Span(torch.tensor([*self.prompt, *context]), wanted=len(self.prompt) + shared))
            else:
                past = self._slots[: len(self.prompt) + shared]
                spans.append(Span(torch.tensor(context[shared:]), past=past))
            names += [context[:n] for n in range(shared + 1, len(context) + 1)]
        hidden = self.model.forward(spans, self._cache)
        self.computed += sum(len(span.tokens) for span in spans)
        place_of = {name: place for place, name in enumerate(names)}
        yield from zip(contexts, self._laws(hidden[[place_of[c] for c in contexts]]), strict=True)

    def _laws(self, hidden: torch.Tensor) -> Iterator[F64]:
        for start in range(0, len(hidden), _TILE):
            yield from self._law(self.model.logits(hidden[start : start + _TILE]).cpu())

    def _law(self, logits: torch.Tensor) -> F64:
        if self.spec is None:
            return np.asarray(torch.log_softmax(logits.double(), dim=1).numpy())
        if self.scheme is None or not self.spec.filtered:
            return np.asarray(torch.log_softmax(logits.double() / self.spec.temperature, dim=1).numpy())
        spec = effective_sampling(self.spec, self.scheme)
        support = find_support(logits, np.zeros(len(logits), np.int64), spec, self.scheme.filters)
        inside = np.arange(support.ids.shape[1]) < support.kept[:, None]
        law = np.full(tuple(logits.shape), -np.inf)
        values = np.where(inside, support.logits / spec.temperature, -np.inf)
        values = values - np.logaddexp.reduce(values, axis=1, keepdims=True)
        rows = np.broadcast_to(np.arange(len(law))[:, None], support.ids.shape)
        law[rows[inside], support.ids[inside]] = values[inside]
        return law


def _longest(contexts: Sequence[Ids]) -> list[Ids]:
    """Those that no other one begins with."""
    kept: list[Ids] = []
    for context in sorted(contexts, reverse=True):
        if not kept or kept[-1][: len(context)] != context:
            kept.append(context)
    return kept


def _common(first: Ids, second: Ids) -> int:
    for n, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return n
    return min(len(first), len(second))
