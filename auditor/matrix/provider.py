"""The honest provider that deviations start from, and its logs: one to calibrate on, another to report on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from auditor.generation import Provider, generate
from auditor.preparation import prepare
from auditor.reference.demo.prompts import demo_conversations
from auditor.reference.deviations import HONEST, Deviation, Prompt
from auditor.reference.loading import ReferenceModel
from auditor.reference.request import Request
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, Scored, prompt_of, replay

TRAFFIC: dict[str, SamplingSpec] = {
    "sampled": SamplingSpec(max_tokens=200),
    "nucleus": SamplingSpec(max_tokens=200, top_p=0.9),
    "penalised": SamplingSpec(
        max_tokens=200, repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.2
    ),
}
"""Kinds of traffic; a deviation is measured on the first in which it shows."""

_SEEDS = {"calibration": 41_000_000, "report": 42_000_000}
"""Master seeds, which prompts follow too; disjoint from every seed that anything was tuned on."""

CALIBRATING = 3
"""Calibration requests for each audited one: what a profile is too small to exclude cannot be convicted."""


def traffic_of(deviation: Deviation) -> str:
    """Where a deviation shows: filters and penalties must be on for their being ignored to matter."""
    if deviation.needs_penalty:
        return "penalised"
    return "nucleus" if deviation.needs_filter else "sampled"


@dataclass(eq=False)
class Pool:
    """Honest requests of one kind of traffic, and their states by reference and provider.

    Attributes:
        scored: the log itself, as an audit scores it.
        requests, prompts: the same for simulation. states: hidden states of (reference, provider).
    """

    scored: list[Scored]
    requests: list[Request]
    prompts: list[Prompt]
    states: tuple[list[torch.Tensor], list[torch.Tensor]]

    @property
    def tokens(self) -> int:
        """Output tokens."""
        return sum(len(request.output) for request in self.requests)


@dataclass(eq=False)
class HonestProvider:
    """Serves a model in one recipe; its logs are made once.

    Attributes:
        other: what a substituting provider runs instead.
        requests: of a report log.
    """

    provider: Provider
    reference: Reference
    other: ReferenceModel
    requests: int
    _pools: dict[tuple[str, str], Pool] = field(default_factory=dict)

    def deviant(self, deviation: Deviation) -> ReferenceModel:
        """The model that the provider really runs."""
        return deviation.model(self.provider.model, self.other)

    def pool(self, use: str, traffic: str) -> Pool:
        """The `calibration` or `report` log of a kind of traffic."""
        if (use, traffic) not in self._pools:
            self._pools[use, traffic] = self._made(use, traffic)
        return self._pools[use, traffic]

    def states(self, pool: Pool, deviation: Deviation, model: ReferenceModel) -> Iterator[torch.Tensor]:
        """States of a pool's outputs on a model, after the prompts that a provider would have fed it."""
        fed = (tuple(deviation.prompt(prompt)) for prompt in pool.prompts)
        return self.reference.runner.states(zip(pool.requests, fed, strict=True), model)

    def _made(self, use: str, traffic: str) -> Pool:
        seed = _SEEDS[use] + 1_000 * list(TRAFFIC).index(traffic)
        count = self.requests * (CALIBRATING if use == "calibration" else 1)
        asked: Sequence[tuple[dict[str, object], ...]] = demo_conversations(count, seed)
        spec = TRAFFIC[traffic]
        log = list(generate(self.provider, asked, deviation=HONEST, seed=seed, sampling=spec))
        scored = list(replay(log, self.reference))
        requests = [prepare(trace, self.reference) for trace in log]
        prompts = [
            prompt_of(trace, request, self.reference) for trace, request in zip(log, requests, strict=True)
        ]
        pool = Pool(scored, requests, prompts, ([], []))
        if use == "report":
            for kept, model in zip(pool.states, (self.reference.model, self.provider.model), strict=True):
                kept.extend(self.states(pool, HONEST, model))
        return pool
