"""From a trace's fingerprints to one distance a kind: what was sent beside what the reference computed.

Steps, each with its own refusal: 1. every entry can be read; 2. its layer is one that the reference shows,
and no kind comes twice; 3. it was made for this request; 4. it covers the output exactly. What is refused
makes the verdict inconclusive; the trace's tokens are judged all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from auditor.errors import FingerprintError, FingerprintReplayedError, FingerprintUnsupportedError
from auditor.fingerprints.activation_difr import FINAL, Fingerprint, request_binding, residuals
from auditor.fingerprints.wire import from_entry, to_payload
from auditor.reference.loading import Sizes
from auditor.reference.request import Request
from auditor.trace import Trace

MOST_ENTRIES = 8

KNOWN_BEFOREHAND = (
    "fingerprints under a projection that the provider knew when it answered: "
    "they show what it computed only if it did not forge them"
)


@dataclass(frozen=True, slots=True)
class FingerprintScore:
    """One kind of fingerprint of one request.

    Attributes:
        kind: `FingerprintKind.name`.
        distance: mean over windows of `activation_difr.Residuals.distance`, at least 0.
        windows: how many.
        payload_bytes: what they cost, serialised, before base64.
    """

    kind: str
    distance: float
    windows: int
    payload_bytes: int


def read(trace: Trace, request: Request, sizes: Sizes) -> tuple[Fingerprint, ...]:
    """A trace's fingerprints, as far as they can be held against a model of these sizes (steps 1 to 3).

    Raises:
        FingerprintError: an entry cannot be read or used (a subclass says why).
    """
    if len(trace.fingerprints) > MOST_ENTRIES:
        raise FingerprintError(f"{len(trace.fingerprints)} fingerprint entries", where=trace.where)
    binding = request_binding(request.prompt, request.output, request.seed)
    found: dict[str, Fingerprint] = {}
    for entry in trace.fingerprints:
        given = from_entry(entry, where=trace.where)
        if given.kind.layer >= sizes.num_hidden_layers:
            raise FingerprintUnsupportedError(
                f"layer {given.kind.layer} of a model of {sizes.num_hidden_layers}", where=trace.where
            )
        if given.kind.name in found:
            raise FingerprintError(f"two fingerprints of kind {given.kind.name}", where=trace.where)
        if given.kind.features > sizes.hidden_size:
            raise FingerprintError(
                f"{given.kind.features} features of a width of {sizes.hidden_size}", where=trace.where
            )
        if given.binding != binding:
            raise FingerprintReplayedError("the fingerprint belongs to another request", where=trace.where)
        found[given.kind.name] = given
    return tuple(found.values())


def layers_needed(given: Iterable[Fingerprint], sizes: Sizes) -> tuple[int, ...]:
    """Layers whose residual stream `measure` wants: for final states the last, which the norm takes."""
    last = sizes.num_hidden_layers - 1
    return tuple(sorted({last if g.kind.layer == FINAL else g.kind.layer for g in given}))


def measure(
    given: Iterable[Fingerprint], states: Mapping[int, torch.Tensor], *, where: str
) -> tuple[FingerprintScore, ...]:
    """Distances from the reference's hidden states (step 4).

    Args:
        states: [output tokens, hidden] after the final norm (`FINAL`), and the residual stream after each
            layer in `layers_needed`.

    Raises:
        FingerprintLengthError: a fingerprint covers another number of tokens.
        FingerprintValueError: the reference's own states are not finite.
    """
    scores = []
    for one in given:
        before_norm = states[max(states)] if one.kind.layer == FINAL else None
        try:
            distances = residuals(one, states[one.kind.layer], before_norm).distance
        except FingerprintError as error:
            raise type(error)(error.message, where=where) from error
        size = len(to_payload(one))
        scores.append(FingerprintScore(one.kind.name, float(np.mean(distances)), len(distances), size))
    return tuple(scores)
