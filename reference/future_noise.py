"""A request's noise ahead of its output: one row for each position that a tree reaches.

Noise belongs to a position: all nodes at a depth share a row, and it is the same whether its position is
reached by a guess or by plain decoding. Generators with a state are read ahead; what was not used stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from auditor.kernels.keyed_noise import KeyedNoise, keyed_noise
from auditor.kernels.splitmix import gumbel_of
from auditor.reference.head import NoiseRows
from auditor.reference.noise import Draws, KeyedScheme, NoiseScheme
from auditor.reference.sampling import SamplingSpec


class FutureNoise:
    """Rows of the next output token (depth 0), the one after it, and so on.

    Args:
        draws: hands out the request's rows in order.
        spec: as the scheme's engine takes it.
    """

    def __init__(self, draws: Draws, scheme: NoiseScheme, spec: SamplingSpec) -> None:
        self._draws, self._rows = draws, cast("npt.NDArray[Any] | None", None)
        self._keyed = cast("KeyedScheme", scheme).noise if hasattr(scheme, "noise") else None
        self._races = scheme.family == "race" and not spec.greedy
        self._dense = self._keyed is None and not spec.filtered
        self._none = spec.greedy or scheme.family == "greedy"

    def rows(self, depths: npt.NDArray[np.int64]) -> NoiseRows:
        """Noise of rows at these depths, in the form `head.score_rows` takes; None where nothing is drawn."""
        if self._none:
            return None
        self._read(int(depths.max(initial=-1)) + 1)
        return None if self._rows is None else self._rows[depths]

    def advance(self, tokens: int) -> None:
        """So many tokens were added to the output."""
        if not self._none:
            self._read(tokens)
            self._rows = None if self._rows is None else self._rows[tokens:]

    @property
    def known(self) -> bool:
        """Whether a token's Gumbel noise can be told ahead: a race, keyed or by whole rows."""
        return self._races and (self._keyed is not None or self._dense)

    @property
    def keyed(self) -> KeyedNoise | None:
        """Which noise keys make, of a race with keys; None for anything else."""
        return self._keyed if self._races else None

    def gumbel(self, depth: int, tokens: Sequence[int]) -> list[float]:
        """Noise of tokens that may be drawn at a depth; zeros where it is not `known`."""
        if not self.known or not tokens:
            return [0.0] * len(tokens)
        self._read(depth + 1)
        assert self._rows is not None, "races have noise"
        row = self._rows[depth]
        if self._keyed is None:
            return cast("list[float]", row[list(tokens)].tolist())
        if self._keyed <= KeyedNoise.SPLITMIX_TAIL_SAFE:  # compiled: a few tokens at a time are asked for
            tail_safe = bool(self._keyed)
            return [gumbel_of(row, token, tail_safe) for token in tokens]
        noise = keyed_noise(self._keyed, self._rows[depth : depth + 1], np.array([tokens], np.int64))
        return cast("list[float]", noise[0].tolist())

    def _read(self, count: int) -> None:
        missing = count - (0 if self._rows is None else len(self._rows))
        if missing > 0 and not self._none:
            # Generators with a state make whole rows: no more of them than are asked for.
            more = self._draws.take(missing if self._keyed is None else max(missing, 16))
            if more is not None:
                self._rows = more if self._rows is None else np.concatenate([self._rows, more])
