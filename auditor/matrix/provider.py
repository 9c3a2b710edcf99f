"""The honest provider that deviations start from, and its logs: one to calibrate on, another to report on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from auditor.calibration import SHADOW_TOKENS, calibrate
from auditor.fingerprint_scores import layers_needed, read
from auditor.fingerprints.activation_difr import (
    BINDING_BYTES,
    Fingerprint,
    FingerprintKind,
    fingerprint,
    residuals,
)
from auditor.generation import Provider, derived_projection_seed, generate
from auditor.matrix.seen import F64, Seen
from auditor.preparation import prepare
from auditor.profile import Profile
from auditor.reference.demo.prompts import demo_conversations
from auditor.reference.deviations import HONEST, Deviation, Prompt
from auditor.reference.loading import ReferenceModel
from auditor.reference.request import Request
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, prompt_of
from auditor.trace import Trace

TRAFFIC: dict[str, SamplingSpec] = {
    "sampled": SamplingSpec(max_tokens=200),
    "nucleus": SamplingSpec(max_tokens=200, top_p=0.9),
    "penalised": SamplingSpec(
        max_tokens=200, repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.2
    ),
}
"""Kinds of traffic; a deviation is measured on the first in which it shows."""

SEEDS = {"calibration": 41_000_000, "report": 42_000_000, "development": 44_000_000}
"""Master seeds, which prompts follow too. No figure is from development ones; diagnoses were tuned there."""

SHADOWED = "sampled, simulated"

CALIBRATING = 3
"""Calibration requests for each audited one: what a profile is too small to exclude cannot be convicted."""

KIND = FingerprintKind("int8", 16)
"""The fingerprints that every log carries: 17 bytes a token, of the states after the final norm."""


def traffic_of(deviation: Deviation) -> str:
    """Where a deviation shows: filters and penalties must be on for their being ignored to matter."""
    if deviation.needs_penalty:
        return "penalised"
    return "nucleus" if deviation.needs_filter else "sampled"


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The report log of one kind of traffic as deviations are simulated on it.

    Attributes:
        asked: request and prompt of each trace.
        reference: the reference's states, final and before the norm, [n, 2 x hidden] each.
        honest: the honest provider's, [n, hidden]. distances: of its fingerprints, [n].
        log: the requests as they were really decoded.
    """

    asked: list[tuple[Request, Prompt]]
    reference: list[torch.Tensor]
    honest: list[torch.Tensor]
    distances: list[F64]
    log: list[Seen]


@dataclass(eq=False)
class HonestProvider:
    """Serves a model in one recipe; its logs are made once.

    Attributes:
        other: what a substituting provider runs instead.
        requests: of a report log.
        use: which log deviations are simulated on, a key of `SEEDS`.
        shadow_tokens: on which a diagnosis' simulated causes rest.
    """

    provider: Provider
    reference: Reference
    other: ReferenceModel
    requests: int
    use: str = "report"
    shadow_tokens: int = SHADOW_TOKENS
    _traces: dict[tuple[str, str], list[Trace]] = field(default_factory=dict)
    _pools: dict[str, Pool] = field(default_factory=dict)
    _profiles: dict[str, Profile] = field(default_factory=dict)
    _calibrations: dict[str, list[Seen]] = field(default_factory=dict)

    def deviant(self, deviation: Deviation) -> ReferenceModel:
        """The model that the provider really runs."""
        return deviation.model(self.provider.model, self.other)

    def traces(self, use: str, traffic: str) -> list[Trace]:
        """A log, decoded, with fingerprints."""
        if (use, traffic) not in self._traces:
            count = self.requests * (CALIBRATING if use == "calibration" else 1)
            seed = SEEDS[use] + 1_000 * list(TRAFFIC).index(traffic)
            self._traces[use, traffic] = self.serve(count, seed, TRAFFIC[traffic])
        return self._traces[use, traffic]

    def serve(self, count: int, seed: int, sampling: SamplingSpec) -> list[Trace]:
        """So many fresh honest requests."""
        asked = demo_conversations(count, seed)
        log = generate(
            self.provider, asked, deviation=HONEST, seed=seed, sampling=sampling, fingerprints=KIND
        )
        return list(log)

    def profile(self, traffic: str) -> Profile:
        """What is calibrated on a kind of traffic, without simulated deviations."""
        if traffic not in self._profiles:
            traces = self.traces("calibration", traffic)
            self._profiles[traffic] = calibrate(traces, self.reference, keep_suspects=True, shadow_tokens=0)
        return self._profiles[traffic]

    @property
    def shadowed(self) -> Profile:
        """That of plain sampling with simulated deviations, in every mode: what a diagnosis knows."""
        if SHADOWED not in self._profiles:
            traces = self.traces("calibration", "sampled")
            few = traces[: max(1, self.shadow_tokens // 100)]  # no more requests than those tokens need
            self._profiles[SHADOWED] = replace(
                calibrate(few, self.reference, keep_suspects=True, shadow_tokens=self.shadow_tokens),
                honest=self.profile("sampled").honest,
            )
        return self._profiles[SHADOWED]

    def calibration(self, traffic: str) -> list[Seen]:
        """The calibration log, token by token."""
        if traffic not in self._calibrations:
            self._calibrations[traffic] = self._decoded(self.traces("calibration", traffic))[0]
        return self._calibrations[traffic]

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

    def distances(self, number: int, own: torch.Tensor, reference: torch.Tensor) -> F64:
        """How far fingerprints of a provider's states of request `number` are from the reference, [n]."""
        seed = derived_projection_seed(SEEDS[self.use], number)
        given = fingerprint(own, KIND, projection_seed=seed, binding=bytes(BINDING_BYTES))
        return self._distances(given, reference)

    def _distances(self, given: Fingerprint, reference: torch.Tensor) -> F64:
        width = self.reference.model.config.hidden_size
        return residuals(given, reference[:, :width], reference[:, width:]).distance

    def _decoded(self, traces: Sequence[Trace]) -> tuple[list[Seen], list[torch.Tensor]]:
        """Honest requests as they were served, and the reference's states of them."""
        model = self.reference.model
        requests = [prepare(trace, self.reference) for trace in traces]
        given = [
            next(iter(read(trace, request, model.config)))
            for trace, request in zip(traces, requests, strict=True)
        ]
        states: list[torch.Tensor] = []
        rows = self.reference.runner.score(
            requests,
            on_hidden=lambda _request, hidden: states.append(hidden.clone()),
            layers=layers_needed(given[:1], model.config),
        )
        seen: list[Seen] = []
        for own, stats in zip(given, rows, strict=True):
            nowhere = np.zeros(len(stats.claimed), np.bool_)
            seen.append(Seen.of(stats, self._distances(own, states[len(seen)]), nowhere, nowhere))
        return seen, states

    def _prepared(self, traffic: str) -> Pool:
        traces = self.traces(self.use, traffic)
        log, reference = self._decoded(traces)
        asked = []
        for trace in traces:
            request = prepare(trace, self.reference)
            asked.append((request, prompt_of(trace, request, self.reference)))
        honest = list(self.states(asked, HONEST, self.provider.model))
        far = [self.distances(n, *pair) for n, pair in enumerate(zip(honest, reference, strict=True))]
        return Pool(asked, reference, honest, far, log)
