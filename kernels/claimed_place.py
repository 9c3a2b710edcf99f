"""What stands above a claimed token in its row: how many tokens, and how much of the mass.

One pass over a row each. All backends have one signature; `backend=` chooses.
"""

from __future__ import annotations

import math
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels.splitmix import F64
from auditor.kernels.vector_loops import RUN, weigh

Backend = Literal["reference", "compiled"]


def odds_above(
    logits: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    *,
    temperature: float,
    backend: Backend = "compiled",
) -> F64:
    """Log-odds of the probability of all tokens with larger logits than each row's `tokens[r]`, float64 [R].

    Both sides are added up, since what is below an unlikely token is lost in 1 minus what is above it.

    Args:
        logits: float32 [R, V]. tokens: int64 [R].
        temperature: what logits are divided by.
    """
    if backend == "compiled":
        return np.asarray(_odds_compiled(logits, tokens, np.float32(temperature)))
    z = logits.astype(np.float64)
    own = z[np.arange(len(tokens)), tokens][:, None]
    p = np.exp((z - z.max(axis=1, keepdims=True)) / np.float64(np.float32(temperature)))
    with np.errstate(divide="ignore"):
        above, below = (np.log(np.where(side, p, 0.0).sum(axis=1)) for side in (z > own, z <= own))
    return np.asarray(above - below)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})
def _sums_about(logits, from_top, from_own, own):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The weights of logits above `own`, and of the others."""
    above, below = np.float32(0), np.float32(0)
    for i in range(len(logits)):
        above += from_top[i] if logits[i] > own else np.float32(0)
        below += np.float32(0) if logits[i] > own else from_own[i]
    return np.float64(above), np.float64(below)


@numba.njit(cache=True, nogil=True)
def _odds_compiled(logits, tokens, temperature):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    scale, odds = np.float32(1.0 / np.float64(temperature)), np.full(len(tokens), np.inf)
    from_top, from_own = np.empty(RUN, np.float32), np.empty(RUN, np.float32)
    for r in range(len(tokens)):
        row = logits[r]
        own, top = row[tokens[r]], row.max()
        if own == -np.inf:
            continue
        above = below = 0.0  # each beside its own largest, so that neither underflows
        for start in range(0, len(row), RUN):
            run = row[start : start + RUN]
            weigh(run, scale, np.float32(top * scale), from_top[: len(run)])
            weigh(run, scale, np.float32(own * scale), from_own[: len(run)])
            sums = _sums_about(run, from_top, from_own, own)
            above += sums[0]
            below += sums[1]
        odds[r] = (np.float64(top) - np.float64(own)) / np.float64(temperature) - math.log(below)
        odds[r] += math.log(above) if above > 0.0 else -np.inf
    return odds


def count_above(
    logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], *, backend: Backend = "compiled"
) -> npt.NDArray[np.int64]:
    """How many tokens have larger logits than each row's `tokens[r]`, int64 [R].

    Args:
        logits: float32 [R, V]. tokens: int64 [R].
    """
    if backend == "compiled":
        return np.asarray(_count_compiled(logits, tokens))
    return np.asarray((logits > logits[np.arange(len(tokens)), tokens][:, None]).sum(axis=1))


@numba.njit(cache=True, nogil=True)
def _count_above(logits, level):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    found = np.int32(0)
    for i in range(len(logits)):
        found += np.int32(logits[i] > level)
    return found


@numba.njit(cache=True, nogil=True)
def _count_compiled(logits, tokens):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    count = np.empty(len(tokens), np.int64)
    for r in range(len(tokens)):
        count[r] = _count_above(logits[r], logits[r, tokens[r]])
    return count
