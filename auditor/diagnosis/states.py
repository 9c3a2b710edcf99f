"""What activation fingerprints say of causes: the states that were really computed lie nearest to them.

A cause that is replayed has hidden states, and the fingerprints of a request stand at some distance from
them: from the right ones as far as honest rounding moves states, from others further. That rounding differs
from recipe to recipe, so only ratios count: each request is as much evidence as a few independent numbers of
unknown common scale. Its fingerprints hold far more, but what moves one of its states moves the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from auditor.fingerprints.activation_difr import FINAL, Fingerprint, residuals
from auditor.noise_model import F64

Far = Sequence[F64 | None]
"""Of each request its fingerprints' distances, [windows]; None for one without."""

_NUMBERS = 8.0
"""Independent numbers that a request's fingerprints count as."""
_TINY = 1e-12
_UNKNOWN = np.log(2.0)
"""What states that nobody can compute save, in ln of the distance: a cause has to halve it to be named."""


def readable(fingerprints: Sequence[Fingerprint]) -> Fingerprint | None:
    """The one to compare: of the final states, the most precise."""
    final = [one for one in fingerprints if one.kind.layer == FINAL]
    return max(final, key=lambda one: one.kind.features / one.kind.window, default=None)


def distance(given: Fingerprint | None, states: torch.Tensor) -> F64 | None:
    """How far a request's fingerprints are from final states [output tokens, hidden], [windows].

    None without fingerprints, and where a smaller model's states are too narrow to have had them.
    """
    if given is None or given.kind.features > states.shape[1]:
        return None
    outside = residuals(given, states).outside
    return np.asarray(np.sqrt((outside**2).mean(axis=1)))


def state_fits(declared: Far, supposed: Mapping[str, Far]) -> tuple[dict[str, float], float]:
    """Gains in log-likelihood over the declared states: of each hypothesis, and of states that are unknown.

    Half of a hypothesis' prior is that it was at work throughout, half that it was now and then, the declared
    states being computed elsewhere.
    """
    gains = {name: _gain(declared, far) for name, far in supposed.items()}
    given = sum(far is not None for far in declared)
    return gains, min(max([0.0, *gains.values()]), _NUMBERS * given * _UNKNOWN)


def _gain(declared: Far, supposed: Far) -> float:
    throughout = partly = 0.0
    for own, other in zip(declared, supposed, strict=True):
        if own is None or other is None:
            continue
        before = np.log(own.mean() + _TINY)
        throughout += _NUMBERS * (before - np.log(other.mean() + _TINY))
        partly += _NUMBERS * (before - np.log(np.minimum(own, other).mean() + _TINY)) - np.log(2.0)
    return float(np.logaddexp(throughout, partly) - np.log(2.0))
