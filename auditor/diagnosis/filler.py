"""A cause that only the order of tokens shows: in each answer, one stretch that is not the model's.

Padded reasoning looks like this: tokens of the model, then filler of any kind, then the model again, which
goes on from what stands there. So before the stretch and behind it is honest noise, and inside gross misses
at some rate, one for garbage and another for fluent text. Where it lies in a request is not known: every
place is summed over. A stretch has to end before the answer does: what begins and stays has other names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from auditor.evidence import Calibration
from auditor.noise_model import (
    F64,
    GROSS_FROM,
    I64,
    Bools,
    RequestCounts,
    bin_centres,
    bin_of,
    log_likelihoods,
)
from auditor.reference.head import RowStats

InOrder = tuple[I64, I64, Bools]
"""Bins of slack and margin, and whether it matched, of every token of a request that says anything."""

FILLER = "accounting/filler"

_RATES: F64 = np.array([0.25, 0.5, 0.75, 0.95])
"""Misses inside: fluent text under the noise of its places, or garbage."""
_SIZES = (2.0, 6.0, 20.0)
"""Logits of a miss's margin, about: an infinite one is in the last bin, where any size puts some."""
_NEVER = -100.0
_LEAST = 8
"""Tokens of a stretch, and of what stands behind it."""
_BEHIND = 0.25
"""Least share of the answer that stands behind it."""


def filler_fit(requests: Sequence[RowStats], calibration: Calibration) -> float:
    """Log-likelihood of requests if half of them hold a stretch of filler, with honest noise around it.

    All stretches are of one kind: a rate of misses, and a size of their margins.
    """
    told = [_in_order(stats) for stats in requests]
    total = np.zeros(len(_RATES) * (1 + len(_SIZES)))
    for (slack, margin, matched), own in zip(told, _honest(told, calibration), strict=True):
        missed = np.log(_RATES)[:, None, None] + _margins(slack, margin)
        inside = np.where(matched, np.log1p(-_RATES)[:, None, None], missed).reshape(len(total), -1)
        stretch = [stretch_gain(gain) for gain in inside - own]
        total += own.sum() + np.logaddexp(0.0, stretch) - np.log(2.0)
    return float(logsumexp(total) - np.log(len(total)))


def stretch_gain(gain: F64) -> float:
    """Log of the mean, over every place where a stretch may lie, of its likelihood ratio; -inf without any.

    Args:
        gain: log-likelihood ratio of each token, filler to honest, [n].
    """
    behind = max(_LEAST, int(np.ceil(_BEHIND * len(gain))))
    places = len(gain) - behind - _LEAST + 1  # where it may end: behind token _LEAST or later
    if places < 1:
        return -np.inf
    upto = np.concatenate([[0.0], np.cumsum(gain)])
    begun = np.logaddexp.accumulate(-upto[:places])
    return float(logsumexp(upto[_LEAST : _LEAST + places] + begun) - np.log(places * (places + 1) / 2))


def _in_order(stats: RowStats) -> InOrder:
    says = stats.evidence
    slack, margin = bin_of(stats.slack[says]), bin_of(stats.margin[says])
    return slack, np.maximum(slack, margin), stats.matched[says]


def _honest(told: Sequence[InOrder], calibration: Calibration) -> list[F64]:
    """Log-likelihood of each token of each request under the calibrated noise."""
    rows = [np.stack([d, np.where(matched, -1, m)]) for d, m, matched in told]
    kinds, which = np.unique(np.concatenate(rows, axis=1), axis=1, return_inverse=True)
    alone = [
        RequestCounts(1, {d: 1}, {}) if m < 0 else RequestCounts(1, {}, {(d, m): 1})
        for d, m in kinds.T.tolist()
    ]
    each = logsumexp(calibration.posterior + log_likelihoods(alone), axis=(1, 2))
    ends = np.cumsum([row.shape[1] for row in rows])[:-1]
    return np.split(np.asarray(each)[which.reshape(-1)], ends)


def _margins(slack: I64, margin: I64) -> F64:
    """Log-density of the margins of gross misses, [kinds of them, n]: any size, or about one of `_SIZES`."""
    centre = bin_centres()
    sizes = [
        (centre >= GROSS_FROM).astype(np.float64),
        *(centre * np.exp(-centre / size) for size in _SIZES),
    ]
    found = []
    for each in sizes:
        above = np.cumsum(each[::-1])[::-1]
        with np.errstate(divide="ignore"):
            found.append(np.log(each[margin]) - np.log(above[slack]))
    return np.asarray(np.nan_to_num(np.stack(found), nan=_NEVER, neginf=_NEVER))
