"""The trusted runner: teacher-forced replay of logged requests, one packed prefill for many.

Everything the sampler saw is a function of the logged prefix, so one causal forward over prompt + output
gives every row of logits at once. Only output positions reach the head, a tile of rows at a time: no
[tokens, vocabulary] array larger than `tile_bytes` ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from auditor.reference.deviations import Deviation, Prompt
from auditor.reference.head import RowStats, effective_sampling, score_rows
from auditor.reference.model import Model
from auditor.reference.noise import Draws, NoiseScheme
from auditor.reference.sampling import SamplingSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """What a replay needs of one logged request; ids are checked against the vocabulary by the caller.

    Attributes:
        spec: as declared; the scheme's engine rules are applied here.
        seed: None only for greedy requests.
    """

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    spec: SamplingSpec
    seed: int | None
    scheme: NoiseScheme


class Runner:
    """Scores requests on one model.

    Args:
        token_budget: prompt + output tokens in one forward. A longer request runs alone.
        tile_bytes: size of one tile of float32 logits.
    """

    def __init__(self, model: Model, *, token_budget: int = 2048, tile_bytes: int = 8 << 20) -> None:
        self.model = model
        self._token_budget = token_budget
        self._tile_rows = max(1, tile_bytes // (4 * model.config.vocab_size))

    def score(self, requests: Iterable[Request]) -> Iterator[RowStats]:
        """Statistics of every output token, request by request, in order."""
        for batch in self._batches(requests, lambda request: request):
            hidden = self._hidden(self.model, batch, [r.prompt for r in batch])
            for request, rows in zip(batch, hidden, strict=True):
                yield self._score_one(request, rows)

    def shadow(
        self,
        requests: Iterable[tuple[Mapping[str, Request], Prompt]],
        deviation: Deviation,
        deviant: Model,
    ) -> Iterator[tuple[str, RowStats]]:
        """What a dishonest provider would have left behind at each position of an honest log.

        At every logged prefix the deviant draws its own token (from the same noise, unless the deviation is
        about the seed); that token is then scored as if it had been claimed. The prefixes stay the honest
        ones, so nothing is decoded, and what shows is the evidence per token, not the drift of the text.

        Args:
            requests: the same prompt and output under several named samplers, and the prompt's origin.

        Yields:
            (name, statistics) for each sampler of each request.
        """
        for batch in self._batches(requests, lambda item: next(iter(item[0].values()))):
            honest = [next(iter(variants.values())) for variants, _ in batch]
            hidden = self._hidden(self.model, honest, [r.prompt for r in honest])
            prompts = [tuple(deviation.prompt(prompt)) for _, prompt in batch]
            other = self._hidden(deviant, honest, prompts)
            for (variants, _), own_rows, other_rows in zip(batch, hidden, other, strict=True):
                yield from self._shadow_one(variants, own_rows, other_rows, deviation, deviant)

    def _batches(self, items: Iterable[T], request_of: Callable[[T], Request]) -> Iterator[list[T]]:
        batch: list[T] = []
        used = 0
        for item in items:
            request = request_of(item)
            length = len(request.prompt) + len(request.output)
            if batch and used + length > self._token_budget:
                yield batch
                batch, used = [], 0
            batch.append(item)
            used += length
        if batch:
            yield batch

    @staticmethod
    def _hidden(
        model: Model, requests: list[Request], prompts: list[tuple[int, ...]]
    ) -> Iterator[torch.Tensor]:
        """Hidden states [output tokens, hidden] of each request, the given prompt in place of its own."""
        sequences = [
            torch.tensor(prompt + request.output[:-1])
            for prompt, request in zip(prompts, requests, strict=True)
        ]
        packed = model.prefill(sequences)
        start = 0
        for prompt, sequence in zip(prompts, sequences, strict=True):
            yield packed[start + len(prompt) - 1 : start + len(sequence)]
            start += len(sequence)

    def _score_one(self, request: Request, hidden: torch.Tensor) -> RowStats:
        spec = effective_sampling(request.spec, request.scheme)
        draws = Draws(request.scheme, request.seed, len(request.prompt), self.model.config.vocab_size)
        claimed = np.asarray(request.output, np.int64)
        tiles = []
        for start in range(0, len(claimed), self._tile_rows):
            part = slice(start, start + self._tile_rows)
            logits = self.model.logits(hidden[part])
            tiles.append(score_rows(logits, claimed[part], spec, request.scheme, draws.take(len(logits))))
        return RowStats.concatenate(tiles)

    def _shadow_one(
        self,
        variants: Mapping[str, Request],
        hidden: torch.Tensor,
        other: torch.Tensor,
        deviation: Deviation,
        deviant: Model,
    ) -> Iterator[tuple[str, RowStats]]:
        samplers = {name: _Shadow(request, deviation, self.model) for name, request in variants.items()}
        for start in range(0, len(hidden), self._tile_rows):
            part = slice(start, start + self._tile_rows)
            logits, wrong_logits = self.model.logits(hidden[part]), deviant.logits(other[part])
            for sampler in samplers.values():
                sampler.score(logits, wrong_logits)
        for name, sampler in samplers.items():
            yield name, RowStats.concatenate(sampler.tiles)


class _Shadow:
    """One request under one sampler, run honestly and by a deviant, tile by tile."""

    def __init__(self, request: Request, deviation: Deviation, model: Model) -> None:
        seed, scheme = request.seed, request.scheme
        wrong_seed = None if seed is None else deviation.seed(seed)
        self.tiles: list[RowStats] = []
        self._scheme = scheme
        self._spec = effective_sampling(request.spec, scheme)
        self._wrong_spec = effective_sampling(deviation.sampling(request.spec), scheme)
        self._draws = Draws(scheme, seed, len(request.prompt), model.config.vocab_size)
        self._wrong_draws = Draws(scheme, wrong_seed, len(request.prompt), model.config.vocab_size)

    def score(self, logits: torch.Tensor, wrong_logits: torch.Tensor) -> None:
        rows = len(logits)
        likeliest = wrong_logits.argmax(dim=1).numpy()
        wrong_draws = self._wrong_draws.take(rows)
        drawn = score_rows(wrong_logits, likeliest, self._wrong_spec, self._scheme, wrong_draws).winner
        self.tiles.append(score_rows(logits, drawn, self._spec, self._scheme, self._draws.take(rows)))
