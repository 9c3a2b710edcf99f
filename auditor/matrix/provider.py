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


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The report log of one kind of traffic as deviations are simulated on it.

    Attributes:
        asked: request and prompt of each trace. states: hidden states of (reference, provider).
    """

    asked: list[tuple[Request, Prompt]]
    states: tuple[list[torch.Tensor], list[torch.Tensor]]


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
    _scored: dict[tuple[str, str], list[Scored]] = field(default_factory=dict)
    _pools: dict[str, Pool] = field(default_factory=dict)

    def deviant(self, deviation: Deviation) -> ReferenceModel:
        """The model that the provider really runs."""
        return deviation.model(self.provider.model, self.other)

    def scored(self, use: str, traffic: str) -> list[Scored]:
        """The `calibration` or `report` log of a kind of traffic, as an audit scores it."""
        if (use, traffic) not in self._scored:
            self._scored[use, traffic] = self._served(use, traffic)
        return self._scored[use, traffic]

    def pool(self, traffic: str) -> Pool:
        """The report log of a kind of traffic, for simulation."""
        if traffic not in self._pools:
            self._pools[traffic] = self._prepared(traffic)
        return self._pools[traffic]

    def states(
        self, asked: Sequence[tuple[Request, Prompt]], deviation: Deviation, model: ReferenceModel
    ) -> Iterator[torch.Tensor]:
        """States of logged outputs on a model, after the prompts that a provider would have fed it."""
        fed = ((request, tuple(deviation.prompt(prompt))) for request, prompt in asked)
        return self.reference.runner.states(fed, model)

    def _served(self, use: str, traffic: str) -> list[Scored]:
        seed = _SEEDS[use] + 1_000 * list(TRAFFIC).index(traffic)
        asked = demo_conversations(self.requests * (CALIBRATING if use == "calibration" else 1), seed)
        log = generate(self.provider, asked, deviation=HONEST, seed=seed, sampling=TRAFFIC[traffic])
        return list(replay(log, self.reference))

    def _prepared(self, traffic: str) -> Pool:
        asked = []
        for scored in self.scored("report", traffic):
            request = prepare(scored.trace, self.reference)
            asked.append((request, prompt_of(scored.trace, request, self.reference)))
        models = (self.reference.model, self.provider.model)
        reference, honest = (list(self.states(asked, HONEST, model)) for model in models)
        return Pool(asked, (reference, honest))
