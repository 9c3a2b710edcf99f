"""Providers that cheat now and then: in some requests, late, where it hardly shows, or disguised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from auditor.reference.deviations import sampler, weights
from auditor.reference.deviations.base import Deviation, Served, Timing

Where = Callable[[Served], npt.NDArray[np.bool_]]

_INT4 = next(d for d in weights.DEVIATIONS if d.name == "weights/int4")
_SEED = next(d for d in sampler.DEVIATIONS if d.name == "seed/wrong")


def _some_requests(one_in: int) -> Where:
    return lambda served: np.full(len(served.position), served.number % one_in == 0)


def _off_peak(served: Served) -> npt.NDArray[np.bool_]:
    """Runs of 16 requests of 64: the provider cheats while the machines are full."""
    return np.full(len(served.position), served.number % 64 < 16)


def _from_token(first: int) -> Where:
    return lambda served: served.position >= first


def _close_calls(served: Served) -> npt.NDArray[np.bool_]:
    """Where the two likeliest tokens are within half a logit: there, noise is a ready excuse."""
    best = served.honest.topk(2, dim=1).values
    return np.asarray((best[:, 0] - best[:, 1] < 0.5).numpy())


def _certain(served: Served) -> npt.NDArray[np.bool_]:
    """Where one token has nearly all the mass: a small model says the same."""
    return np.asarray((served.honest.softmax(dim=1).amax(dim=1) > 0.95).numpy())


def _partly(base: Deviation, name: str, where: Where, *, timing: Timing = "periodic") -> Deviation:
    return replace(
        base, name=f"partly/{name}", gain=f"most of what {base.name} gains, less of its risk", applies=where,
        source="deviations.md (adaptive providers)", timing=timing, decodes=False,
    )  # fmt: skip


_SUBSTITUTED = Deviation(
    name="partly/draft-when-certain",
    gain="easy tokens from a small model",
    source="R2R, arXiv 2505.21600 (routing by token)",
    model=lambda model, other: other or model,
    applies=_certain,
    needs_other_model=True,
    timing="periodic",
    decodes=False,
)

DEVIATIONS = (
    _partly(_INT4, "int4-in-half", _some_requests(2)),
    _partly(_INT4, "int4-in-a-tenth", _some_requests(10)),
    _partly(_INT4, "int4-at-peak-hours", _off_peak),
    _partly(_INT4, "int4-from-token-64", _from_token(64), timing="after-trigger"),
    _partly(_INT4, "int4-from-token-128", _from_token(128), timing="after-trigger"),
    _partly(_INT4, "int4-in-close-calls", _close_calls),
    _partly(_SEED, "seed-in-a-tenth", _some_requests(10)),
    _SUBSTITUTED,
    replace(
        _INT4,
        name="partly/int4-cooled",
        source="temperature tuned to hide quantization (DiFR, arXiv 2511.20621)",
        sampling=lambda spec: replace(spec, temperature=0.97 * spec.temperature),
        decodes=True,
    ),
)
