"""Noise schemes: what an engine adds to, or draws against, its logits for a given seed.

A scheme is named and versioned; its name is what a trace declares. Each engine has a file here; `registry`
says which scheme an engine draws by, and what is not replayable.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from auditor.reference.noise.gumbel_position import DRAFTS_AHEAD, GumbelPosition
from auditor.reference.noise.llama_cpp import LlamaCppInverseCdf
from auditor.reference.noise.registry import (
    REFUSED,
    SCHEMES,
    Refused,
    check_engine,
    noise_of_recipe,
    noise_scheme,
)
from auditor.reference.noise.scheme import (
    Declared,
    Evidence,
    Family,
    FilterOrder,
    KeyedScheme,
    NoiseScheme,
    Served,
    Tolerant,
    UniformScheme,
)
from auditor.reference.sampling import SamplingSpec

_UNFILTERED = SamplingSpec()

__all__ = [
    "DRAFTS_AHEAD",
    "REFUSED",
    "SCHEMES",
    "Declared",
    "Draws",
    "Evidence",
    "Family",
    "FilterOrder",
    "GumbelPosition",
    "KeyedScheme",
    "NoiseScheme",
    "Refused",
    "Served",
    "Tolerant",
    "UniformScheme",
    "check_engine",
    "noise_of_recipe",
    "noise_scheme",
]


class Draws:
    """One request's noise, handed out in order of its output tokens, in the form `head.score_rows` takes.

    Args:
        spec: the request's parameters. Under top-k, top-p or min-p only tokens that they keep will be asked
            for, so a sequential generator hands out its states in place of whole rows. Under XTC its coins
            stand beside the uniform numbers, float64 [rows, 2].
    """

    def __init__(
        self,
        scheme: NoiseScheme,
        seed: int | None,
        prompt_tokens: int,
        vocabulary: int,
        spec: SamplingSpec = _UNFILTERED,
    ) -> None:
        self._reader = (
            None if seed is None else scheme.draws(seed, prompt_tokens, vocabulary, filtered=spec.filtered)
        )
        self._coins = None
        if spec.crossed and seed is not None:
            self._coins = partial(cast("LlamaCppInverseCdf", scheme).coins, seed)
        self._next = 0

    def take(self, rows: int) -> npt.NDArray[Any] | None:
        """Noise of the next `rows` output tokens; None for a scheme or request that draws nothing."""
        start, self._next = self._next, self._next + rows
        drawn = None if self._reader is None else self._reader.take(start, self._next)
        if drawn is None or self._coins is None:
            return drawn
        return np.stack([drawn, self._coins(start, self._next)], axis=1)
