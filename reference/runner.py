"""The trusted runner: teacher-forced replay of logged requests, one packed prefill for many.

Everything the sampler saw is a function of the logged prefix, so one causal forward over prompt + output
gives every row of logits at once. Prompts' common beginnings are computed once; only output positions reach
the head, a tile of rows at a time: no [tokens, vocabulary] array larger than `tile_bytes` ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from threading import RLock
from typing import TypeVar

import numpy as np
import torch

from auditor.reference.batch import Span, extend
from auditor.reference.block_replay import branch_hidden, score_steps, step_logits
from auditor.reference.deviations import Deviation, Prompt
from auditor.reference.device import on_gpu
from auditor.reference.head import RowStats, effective_sampling
from auditor.reference.layers.linear import ROW_QUANTUM, ROW_TILE, even_runs
from auditor.reference.loading import ReferenceModel
from auditor.reference.prefix import PrefixTree, shared_prefixes
from auditor.reference.request import Replayed, Request, Shadow, shadow_steps
from auditor.reference.row_law import RowLaw, row_law
from auditor.reference.side_by_side import side_by_side
from auditor.reference.slots import Sequence, SlotKV
from auditor.reference.speculation import Step

T = TypeVar("T")
R = TypeVar("R")
Under = tuple[dict[str, RowStats], torch.Tensor]

# Requests looked at together when prefixes are shared.
WINDOW = 64
# Shorter common beginnings cost more to look after than to compute again.
LEAST_SHARED = 32


class Runner:
    """Scores requests on one model; keep it, for it remembers the prompts' common beginnings.

    Args:
        token_budget: rows in one forward, None for what suits the model. A longer request is cut, and its
            keys and values carried over.
        tile_bytes: most that one tile of float32 logits may take, None for what suits the model's device; on
            a CPU more than `ROW_TILE` rows gain nothing.
        prefix_bytes: keys and values of common beginnings kept; 0 shares nothing.

    Attributes:
        prefixes: what is kept, with its hit rate.
    """

    def __init__(
        self,
        model: ReferenceModel,
        *,
        token_budget: int | None = None,
        tile_bytes: int | None = None,
        prefix_bytes: int = 256 << 20,
    ) -> None:
        self.model = self._showing = model
        self._token_budget = max(token_budget or model.pack_tokens, 1)
        gpu = on_gpu(model.device)
        tile_bytes = tile_bytes or (1 << 30 if gpu else 128 << 20)
        tile_rows = min(tile_bytes // (4 * model.config.vocab_size), self._token_budget if gpu else ROW_TILE)
        self._tile_rows = max(tile_rows // ROW_QUANTUM, 1) * ROW_QUANTUM
        self._cache = model.new_cache()
        self._shares = prefix_bytes > 0 and model.config.shares_prefixes and not model.from_the_beginning
        self.prefixes = PrefixTree(self._cache, prefix_bytes if self._shares else 0)
        # Slots are handed out, and written to, by one call at a time: they move when the storage grows.
        self._slots = RLock()

    def score(
        self,
        requests: Iterable[Request],
        *,
        on_hidden: Callable[[Request, torch.Tensor], None] | None = None,
        layers: tuple[int, ...] = (),
    ) -> Iterator[RowStats]:
        """Statistics of every output token, request by request, in order.

        `on_hidden` is shown the hidden states [output tokens, hidden] of each request just before its
        statistics come, followed by the residual streams after `layers` (`Model.showing`); they are not kept.
        """
        model = self._showing = self.model.showing(layers) if layers else self.model

        def work(batch: list[Request]) -> list[tuple[torch.Tensor | None, RowStats]]:
            hidden = self._hidden(model, batch, [r.prompt for r in batch])
            return [
                (None if on_hidden is None else rows[: len(request.output)], self._score_one(request, rows))
                for request, rows in zip(batch, hidden, strict=True)
            ]

        stream = iter(requests)
        while window := list(islice(stream, WINDOW)):
            self._store_shared([request.prompt for request in window])
            for request, (rows, stats) in self._each(window, self._unstored, work):
                if on_hidden is not None and rows is not None:
                    on_hidden(request, rows.cpu())
                yield stats

    def laws(self, requests: Iterable[Request]) -> Iterator[RowLaw]:
        """How every output token stands in its own distribution, request by request; no seed is used."""

        def work(batch: list[Request]) -> list[RowLaw]:
            hidden = self._hidden(self.model, batch, [r.prompt for r in batch])
            return [self._law(request, rows) for request, rows in zip(batch, hidden, strict=True)]

        return (law for _, law in self._each(requests, _rows, work))

    def shadow(
        self,
        requests: Iterable[tuple[Mapping[str, Request], Prompt]],
        deviation: Deviation,
        deviant: ReferenceModel,
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

        def work(batch: list[tuple[Mapping[str, Request], Prompt]]) -> list[dict[str, RowStats]]:
            honest = [max(variants.values(), key=lambda r: len(r.steps)) for variants, _ in batch]
            hidden = self._hidden(self.model, honest, [r.prompt for r in honest])
            prompts = [tuple(deviation.prompt(prompt)) for _, prompt in batch]
            other = self._hidden(deviant, honest, prompts)
            return [
                self._shadow_one(variants, own_rows, other_rows, deviation, deviant)
                for (variants, _), own_rows, other_rows in zip(batch, hidden, other, strict=True)
            ]

        for _, scored in self._each(requests, _rows_of_variants, work):
            yield from scored.items()

    def under(
        self, items: Iterable[tuple[Mapping[str, Request], tuple[int, ...]]], deviant: ReferenceModel
    ) -> Iterator[Under]:
        """Scores of logged outputs as if another model had been served on other prompts by other samplers.

        Args:
            items: the same prompt and output under several named samplers, and the ids fed in the prompt's
                place. Noise stays at the positions that the declared prompt gives it.

        Yields:
            The scores by sampler, and the hidden states [output tokens, hidden] that they are of.
        """

        def work(batch: list[tuple[Mapping[str, Request], tuple[int, ...]]]) -> list[Under]:
            logged = [next(iter(variants.values())) for variants, _ in batch]
            hidden = self._hidden(deviant, logged, [fed for _, fed in batch])
            return [
                (self._score_variants(variants, rows, deviant), rows[: len(request.output)].cpu())
                for (variants, _), request, rows in zip(batch, logged, hidden, strict=True)
            ]

        return (scored for _, scored in self._each(items, _rows_of_variants, work))

    def states(
        self, items: Iterable[tuple[Request, tuple[int, ...]]], model: ReferenceModel
    ) -> Iterator[torch.Tensor]:
        """Hidden states [output tokens, hidden] of logged outputs on a model, after prompts really fed."""

        def work(batch: list[tuple[Request, tuple[int, ...]]]) -> list[torch.Tensor]:
            hidden = self._hidden(model, [request for request, _ in batch], [fed for _, fed in batch])
            pairs = zip(hidden, batch, strict=True)
            return [rows[: len(request.output)].clone().cpu() for rows, (request, _) in pairs]

        return (rows for _, rows in self._each(items, lambda item: _rows(item[0]), work))

    def _each(
        self, items: Iterable[T], rows_of: Callable[[T], int], work: Callable[[list[T]], list[R]]
    ) -> Iterator[tuple[T, R]]:
        """Work on packs of items, as many side by side as the model allows; (item, result) in order."""
        lanes = self.model.calls_at_once
        packs = self._packs(items, rows_of, lanes)
        for batch, done in side_by_side(work, packs, lanes):
            yield from zip(batch, done, strict=True)

    def _packs(self, items: Iterable[T], rows_of: Callable[[T], int], lanes: int) -> Iterator[list[T]]:
        """Runs of items, about equal, and of each window as many as all lanes finish together."""
        stream = iter(items)
        while window := list(islice(stream, WINDOW)):
            lengths = [rows_of(item) for item in window]
            rounds = -(-sum(lengths) // (lanes * self._token_budget))
            target = sum(lengths) / (lanes * rounds)
            pack: list[T] = []
            before, used, number = 0, 0, 0
            for item, length in zip(window, lengths, strict=True):
                own = int((before + length / 2) / target)
                if pack and (own != number or used + length > self._token_budget):
                    yield pack
                    pack, used = [], 0
                pack.append(item)
                before, used, number = before + length, used + length, own
            yield pack

    def _store_shared(self, prompts: list[tuple[int, ...]]) -> None:
        """Compute the beginnings that these prompts share, each on top of the longest one stored so far."""
        if not self._shares:
            return
        for prefix in shared_prefixes(prompts, LEAST_SHARED):
            past = self.prefixes.match(prefix, count=False)
            sequence = Sequence(past, len(past))
            if len(past) < len(prefix):
                for _ in self._chunks(self.model, sequence, prefix[len(past) :], len(prefix)):
                    pass
                self.prefixes.insert(prefix, sequence.slots)
            self._cache.release(sequence)

    def _hidden(
        self, model: ReferenceModel, requests: list[Request], prompts: list[tuple[int, ...]]
    ) -> list[torch.Tensor]:
        """Hidden states [output tokens, hidden] of each request, the given prompt in place of its own.

        Those of branches, where it has any, stand behind them (`block_replay.py`).
        """
        own = self._is_own(model)
        with self._slots:
            past = [self._stored(prompt) if own else self._cache.alloc(0) for prompt in prompts]
        tokens = [(*prompt, *request.output[:-1]) for prompt, request in zip(prompts, requests, strict=True)]
        if len(tokens) == 1 and len(tokens[0]) - len(past[0]) > self._token_budget:
            with self._slots:
                return [self._in_chunks(model, tokens[0], past[0], len(prompts[0]) - 1, requests[0].steps)]
        spans = [
            Span(
                torch.tensor(ids[len(slots) :]),
                past=slots if len(slots) else None,
                wanted=len(prompt) - 1 - len(slots),
            )
            for ids, slots, prompt in zip(tokens, past, prompts, strict=True)
        ]
        if any(step.branch for request in requests for step in request.steps):
            with self._slots:
                rows = self._with_branches(model, spans, requests, prompts)
        else:
            rows = _split(model.forward(spans, self._cache), spans)
        with self._slots:
            for slots in past:
                self._cache.free(slots)
        return rows

    def _with_branches(
        self,
        model: ReferenceModel,
        spans: list[Span],
        requests: list[Request],
        prompts: list[tuple[int, ...]],
    ) -> list[torch.Tensor]:
        cache = self._cache if self._is_own(model) else model.new_cache()
        branched = [any(step.branch for step in request.steps) for request in requests]
        spans = [
            replace(span, keep=cache.alloc(len(span.tokens)) if own else None)
            for span, own in zip(spans, branched, strict=True)
        ]
        rows = _split(model.forward(spans, cache), spans)
        for number, span in enumerate(spans):
            if span.keep is not None:
                slots = span.keep if span.past is None else torch.cat([span.past, span.keep])
                length, steps = len(prompts[number]), requests[number].steps
                behind = branch_hidden(model, cache, slots, length, steps, self._token_budget)
                rows[number] = torch.cat([rows[number], behind])
                cache.free(span.keep)
        return rows

    def _is_own(self, model: ReferenceModel) -> bool:
        return model is self.model or model is self._showing

    def _unstored(self, request: Request) -> int:
        """Rows of a request that are left to compute on the runner's own model."""
        return _rows(request) - (self.prefixes.known(request.prompt[:-1]) if self._shares else 0)

    def _stored(self, prompt: tuple[int, ...]) -> torch.Tensor:
        return self.prefixes.match(prompt[:-1]) if self._shares else self._cache.alloc(0)

    def _in_chunks(
        self,
        model: ReferenceModel,
        tokens: tuple[int, ...],
        past: torch.Tensor,
        first_wanted: int,
        steps: tuple[Step, ...],
    ) -> torch.Tensor:
        cache = self._cache if self._is_own(model) else model.new_cache()
        sequence = Sequence(past, len(past))
        hidden = list(self._chunks(model, sequence, tokens[len(past) :], first_wanted, cache))
        if any(step.branch for step in steps):
            prompt = first_wanted + 1
            hidden.append(branch_hidden(model, cache, sequence.slots, prompt, steps, self._token_budget))
        cache.release(sequence)
        return torch.cat(hidden)

    def _chunks(
        self,
        model: ReferenceModel,
        sequence: Sequence,
        tokens: tuple[int, ...],
        first_wanted: int,
        cache: SlotKV | None = None,
    ) -> Iterator[torch.Tensor]:
        """Append tokens to a sequence, a budget at a time; hidden states from position `first_wanted` on."""
        cache = self._cache if cache is None else cache
        for start in range(0, len(tokens), self._token_budget):
            chunk = torch.tensor(tokens[start : start + self._token_budget])
            wanted = min(max(first_wanted - sequence.length, 0), len(chunk))
            span = extend(cache, sequence, chunk, wanted=wanted, prompt=first_wanted + 1)
            yield model.forward([span], cache)
            sequence.length += len(chunk)

    def _tiles(self, rows: int) -> Iterator[slice]:
        """Rows whose logits are held at a time."""
        return even_runs(rows, self._tile_rows)

    def _score_one(self, request: Request, hidden: torch.Tensor) -> RowStats:
        return self._score_variants({"declared": request}, hidden, self.model)["declared"]

    def _law(self, request: Request, hidden: torch.Tensor) -> RowLaw:
        spec = effective_sampling(request.spec, request.scheme)
        claimed = np.asarray(request.output, np.int64)
        rows = hidden[: len(claimed)]
        tiles = [
            row_law(self.model.logits(rows[part]), claimed[part], spec, request.scheme.filters)
            for part in self._tiles(len(claimed))
        ]
        return RowLaw.concatenate(tiles)

    def _score_variants(
        self, variants: Mapping[str, Request], hidden: torch.Tensor, model: ReferenceModel
    ) -> dict[str, RowStats]:
        vocabulary = model.config.vocab_size
        plain = {
            name: Replayed(request, vocabulary) for name, request in variants.items() if not request.steps
        }
        rows = len(next(iter(variants.values())).output)
        for part in self._tiles(rows if plain else 0):
            logits = model.logits(hidden[:rows][part], fetch=False)
            for sampler in plain.values():
                sampler.score(logits, part)
        found = {name: RowStats.concatenate(sampler.tiles) for name, sampler in plain.items()}
        for name, request in variants.items():
            if request.steps:
                spec = effective_sampling(request.spec, request.scheme)
                judge = request.block_sampler(spec, request.seed, vocabulary)
                steps = self._step_logits(model, request, hidden)
                found[name] = score_steps(judge, steps, np.asarray(request.output, np.int64))
        return found

    def _shadow_one(
        self,
        variants: Mapping[str, Request],
        hidden: torch.Tensor,
        other: torch.Tensor,
        deviation: Deviation,
        deviant: ReferenceModel,
    ) -> dict[str, RowStats]:
        plain = {name: request for name, request in variants.items() if not request.steps}
        samplers = {name: Shadow(request, deviation, self.model) for name, request in plain.items()}
        rows = len(next(iter(variants.values())).output)
        for part in self._tiles(rows):
            # Branches' rows stand behind.
            logits = self.model.logits(hidden[:rows][part])
            wrong_logits = deviant.logits(other[:rows][part])
            for sampler in samplers.values():
                sampler.score(logits, wrong_logits, part)
        found = {name: RowStats.concatenate(sampler.tiles) for name, sampler in samplers.items()}
        for name in variants.keys() - plain.keys():
            steps = self._step_logits(self.model, variants[name], hidden)
            other_steps = self._step_logits(deviant, variants[name], other)
            found[name] = shadow_steps(variants[name], deviation, self.model, steps, other_steps)
        return found

    def _step_logits(
        self, model: ReferenceModel, request: Request, hidden: torch.Tensor
    ) -> Iterator[tuple[Step, torch.Tensor]]:
        return step_logits(model.logits, hidden, request.steps, len(request.output), self._tile_rows)


def _split(hidden: torch.Tensor, spans: list[Span]) -> list[torch.Tensor]:
    return list(torch.split(hidden, [len(span.tokens) - span.wanted for span in spans]))


def _rows(request: Request) -> int:
    return len(request.prompt) + len(request.output)


def _rows_of_variants(item: tuple[Mapping[str, Request], object]) -> int:
    return _rows(next(iter(item[0].values())))
