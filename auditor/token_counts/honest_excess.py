"""How far honest bills lie above the canonical count, and what that says of one bill. Pure.

Split conformal prediction (Vovk, Gammerman, Shafer 2005): if the response under audit and n calibration
responses are exchangeable, p = (1 + calibration responses with at least its excess) / (n + 1) is at most
alpha with probability at most alpha. Excess depends on model, language, temperature and constrained
decoding, so each condition has its own calibration; without one, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from auditor.errors import OptionError


@dataclass(frozen=True, slots=True)
class Condition:
    """What honest excess depends on."""

    model: str
    language: str
    temperature: float
    constrained: bool


@dataclass(frozen=True, slots=True)
class ExcessBound:
    """Honest excesses of one condition.

    Attributes:
        honest: tokens beyond the canonical number, a response each; not empty.
    """

    honest: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.honest:
            raise OptionError("no honest responses to calibrate on")

    def p_value(self, excess: float) -> float:
        """Of an excess as large as this, at least 1 / (n + 1)."""
        above = int((np.array(self.honest) >= excess).sum())
        return (1 + above) / (1 + len(self.honest))

    def quantile(self, level: float) -> float:
        """The excess that a fresh honest response exceeds with probability at most 1 - level.

        Infinite when there are too few honest responses to say.
        """
        rank = int(np.ceil(level * (len(self.honest) + 1)))
        return float("inf") if rank > len(self.honest) else float(np.sort(self.honest)[rank - 1])

    def overbilled_at_least(self, excess: float, level: float = 0.999) -> float:
        """Tokens billed too many, as far as no honest response of the condition explains them."""
        return max(0.0, excess - self.quantile(level))


def bounds_by_condition(honest: Iterable[tuple[Condition, float]]) -> Mapping[Condition, ExcessBound]:
    """Calibrations from (condition, excess) of honest responses."""
    found: dict[Condition, list[float]] = {}
    for condition, excess in honest:
        found.setdefault(condition, []).append(excess)
    return {condition: ExcessBound(tuple(values)) for condition, values in found.items()}
