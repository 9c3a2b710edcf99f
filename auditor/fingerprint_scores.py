"""From a trace's fingerprints to one distance a kind: what was sent beside what the reference computed.

Steps, each with its own refusal: 1. every entry can be read; 2. its layer is one that the reference shows,
and no kind comes twice; 3. it was made for this request; 4. it covers the output exactly. What is refused
makes the verdict inconclusive; the trace's tokens are judged all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from auditor.errors import FingerprintError, FingerprintReplayedError, FingerprintUnsupportedError
from auditor.fingerprints.activation_difr import FINAL, request_binding, residuals
from auditor.fingerprints.wire import from_entry, to_payload
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
        distance: mean over windows of the relative distance (`activation_difr.Residuals.plain`), at least 0.
        windows: how many.
        payload_bytes: what they cost, serialised, before base64.
    """

    kind: str
    distance: float
    windows: int
    payload_bytes: int


def measure(trace: Trace, request: Request, hidden: torch.Tensor) -> tuple[FingerprintScore, ...]:
    """Distances of a trace's fingerprints from the reference's hidden states [output tokens, hidden].

    Raises:
        FingerprintError: an entry cannot be read or used (a subclass says why).
    """
    if len(trace.fingerprints) > MOST_ENTRIES:
        raise FingerprintError(f"{len(trace.fingerprints)} fingerprint entries", where=trace.where)
    binding = request_binding(request.prompt, request.output, request.seed)
    scores: dict[str, FingerprintScore] = {}
    for entry in trace.fingerprints:
        given = from_entry(entry, where=trace.where)
        if given.kind.layer != FINAL:
            raise FingerprintUnsupportedError(
                f"layer {given.kind.layer}; only the states after the final norm are compared yet",
                where=trace.where,
            )
        if given.kind.name in scores:
            raise FingerprintError(f"two fingerprints of kind {given.kind.name}", where=trace.where)
        if given.kind.features > hidden.shape[1]:
            raise FingerprintError(
                f"{given.kind.features} features of a width of {hidden.shape[1]}", where=trace.where
            )
        if given.binding != binding:
            raise FingerprintReplayedError("the fingerprint belongs to another request", where=trace.where)
        try:
            distances = residuals(given, hidden).plain
        except FingerprintError as error:
            raise type(error)(error.message, where=trace.where) from error
        scores[given.kind.name] = FingerprintScore(
            given.kind.name, float(np.mean(distances)), len(distances), len(to_payload(given))
        )
    return tuple(scores.values())
