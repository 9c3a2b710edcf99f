"""Score a tile under a request's own rules: masks, bias and penalties first, then `head.score_rows`.

A token that a rule excludes cannot be explained by rounding: no movement of logits lifts a mask. Its margin
is `FORBIDDEN_MARGIN`, a gross miss that still has a size, so that one such token in a long log (a lost byte,
a mistaken join of two logs) accuses nobody by itself and many do. Where one token alone is left, it says
nothing about the provider: such a position is `forced`, and nobody counts it as a match.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from auditor.kernels.splitmix import U64
from auditor.reference.head import NoiseRows, RowStats, draw_rows, score_rows
from auditor.reference.noise import NoiseScheme
from auditor.reference.prefix_rules import Ruled, RuledRequest
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation import SpeculatedRows, draw_speculated, score_speculated
from auditor.reference.support import backend_of

FORBIDDEN_MARGIN = 100.0
"""Logits by which a token that a rule excludes counts as missed: beyond any margin of a real row."""


def score_ruled(
    logits: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    scheme: NoiseScheme,
    draws: NoiseRows,
    request: RuledRequest | None,
    output: npt.NDArray[np.int64],
    start: int,
    speculated: SpeculatedRows | None = None,
) -> RowStats:
    """Score the output tokens start, start + 1, ... of one request.

    Args:
        logits, claimed, spec, scheme, draws: as `score_rows` takes them. Logits on a GPU are scored there,
            but for requests with rules or drafts.
        request: the request's rules, None when it has none.
        output: int64, the logged output: what the rules have seen before each row.
        speculated: coins and drafts of these rows, None when tokens were drawn one by one.
    """
    if request is None:
        return _score_allowed(logits, claimed, spec, scheme, draws, speculated)
    return _score(request.apply(logits.cpu(), output, start), claimed, spec, scheme, draws, speculated)


def draw_ruled(
    logits: torch.Tensor,
    spec: SamplingSpec,
    scheme: NoiseScheme,
    draws: NoiseRows,
    request: RuledRequest | None,
    output: npt.NDArray[np.int64],
    start: int,
    speculated: SpeculatedRows | None = None,
) -> npt.NDArray[np.int64]:
    """The token each row samples, int64 [R]; arguments as `score_ruled` has them."""
    allowed = logits if request is None else request.apply(logits, output, start).logits
    if speculated is not None:
        return draw_speculated(allowed, spec, scheme, cast("U64", draws), speculated)
    return draw_rows(allowed, spec, scheme, draws)


def _score_allowed(
    logits: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    scheme: NoiseScheme,
    draws: NoiseRows,
    speculated: SpeculatedRows | None,
) -> RowStats:
    if speculated is not None:
        return score_speculated(logits.cpu(), claimed, spec, scheme, cast("U64", draws), speculated)
    backend = backend_of(logits)
    own = logits if backend == "triton" else logits.cpu()
    return score_rows(own, claimed, spec, scheme, draws, backend=backend)


def _score(
    ruled: Ruled,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    scheme: NoiseScheme,
    draws: NoiseRows,
    speculated: SpeculatedRows | None,
) -> RowStats:
    here = np.arange(len(claimed))
    nowhere = np.zeros(len(claimed), np.bool_)
    forbidden = nowhere if ruled.masked is None else ruled.masked[here, claimed]
    # A stand-in that is allowed keeps every figure of the row finite; who wins does not depend on it.
    likeliest = ruled.logits.argmax(dim=1).numpy()
    allowed = np.where(forbidden, likeliest, claimed)
    stats = _score_allowed(ruled.logits, allowed, spec, scheme, draws, speculated)
    forced = ruled.forced & ~forbidden
    return replace(
        stats,
        claimed=claimed,
        margin=np.where(forbidden, FORBIDDEN_MARGIN, stats.margin),
        slack=np.where(ruled.forced, np.inf, stats.slack),
        outside=stats.outside & ~forbidden,
        edge=np.where(forbidden, 0.0, stats.edge),
        forced=forced,
        forbidden=forbidden & ~ruled.unmodelled,
        unmodelled=stats.unmodelled | ruled.unmodelled,
    )
