"""Power of `audit verify` against a simulated provider, at growing sizes. Pure.

Audited logs are drawn by request from what a provider was simulated to return, and judged by the test that
judges real ones. What was simulated is a sample too: `power_interval` says how far off that puts the power.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr, ndtri

from auditor.evidence import Calibration, margin_log_e
from auditor.noise_model import F64, I64, RequestCounts, log_likelihoods

DRAWS = 200
"""Simulated audits of each curve: a power's standard error is at most 0.035, and 0.021 at 0.9."""

_RESAMPLINGS = 40  # of the profile's requests, for the interval around a planned power
_EDGE = 0.002  # powers are kept this far from 0 and 1 where their normal score is taken
_GROWTH = 1.3  # from one size looked at to the next
MOST_REQUESTS = 2048
"""Largest log simulated."""


@dataclass(frozen=True, slots=True)
class PowerCurve:
    """Power of `audit verify` against one cause at growing sizes.

    Attributes:
        requests, tokens: sizes looked at; tokens are means over the simulated audits.
        power: share of audits whose e-value at that size convicts.
        stopped: share convicted at that size or at an earlier one: power with a look after each size.
        stopping_tokens: tokens at the first conviction of each simulated audit, inf if there was none.
    """

    requests: I64
    tokens: F64
    power: F64
    stopped: F64
    stopping_tokens: F64

    def tokens_for(self, power: float) -> float:
        """Smallest size from which the power stays at least this; infinite if the curve does not get there.

        Between two sizes looked at it is read on the line of the power's normal score over log size.
        """
        short = np.flatnonzero(self.power < power)
        if not len(short):
            return float(self.tokens[0])
        at = int(short[-1])
        if at + 1 == len(self.power):
            return math.inf
        low, high = np.clip(self.power[at : at + 2], _EDGE, 1 - _EDGE)
        share = (ndtri(power) - ndtri(low)) / (ndtri(high) - ndtri(low)) if high > low else 1.0
        start, end = np.log(self.tokens[at : at + 2])
        return float(np.exp(start + min(max(float(share), 0.0), 1.0) * (end - start)))

    def power_at(self, tokens: float) -> float | None:
        """Power at a size, read in the same way.

        None below the smallest size looked at, and above the largest unless the power was 1 there.
        """
        if tokens < self.tokens[0]:
            return None
        if tokens > self.tokens[-1]:
            return 1.0 if self.power[-1] == 1.0 else None
        score = np.interp(np.log(tokens), np.log(self.tokens), ndtri(np.clip(self.power, _EDGE, 1 - _EDGE)))
        return float(ndtr(score))

    @property
    def expected_tokens(self) -> float:
        """Mean tokens until a conviction with a look after each size; infinite if an audit had none."""
        return float(self.stopping_tokens.mean())


@dataclass(frozen=True, slots=True)
class Simulated:
    """A provider that cheats on some of its requests, as a pool to draw audited logs from.

    Attributes:
        grids: log likelihoods of each request, [R, S, PI]. lengths: tokens, [R]. chances: of each, [R].
        cheating: how many of the requests, the first ones, are dishonest.
    """

    grids: F64
    lengths: F64
    chances: F64
    cheating: int

    @classmethod
    def of(
        cls, cheating: Sequence[RequestCounts], honest: Sequence[RequestCounts], fraction: float
    ) -> Simulated:
        """A provider that treats each request dishonestly with probability `fraction`."""
        pool = [*cheating, *(honest if fraction < 1.0 else ())]
        chances = np.full(len(pool), fraction / len(cheating))
        if fraction < 1.0:
            chances[len(cheating) :] = (1.0 - fraction) / len(honest)
        lengths = np.array([r.tokens for r in pool], np.float64)
        return cls(log_likelihoods(pool), lengths, chances, len(cheating))

    def resampled(self, generator: np.random.Generator) -> Simulated:
        """The same provider had it been simulated on other requests: a bootstrap of the dishonest ones."""
        chances = self.chances.copy()
        share = chances[: self.cheating].sum()
        picked = generator.multinomial(self.cheating, np.full(self.cheating, 1.0 / self.cheating))
        chances[: self.cheating] = share * picked / self.cheating
        return replace(self, chances=chances)

    def power(
        self,
        calibration: Calibration,
        bar: float,
        requests: int,
        generator: np.random.Generator,
        *,
        draws: int = DRAWS,
    ) -> float:
        """Share of `draws` logs of so many requests whose log e-value reaches `bar`."""
        drawn = generator.multinomial(requests, self.chances, size=draws).astype(np.float64)
        logs = np.asarray(np.tensordot(drawn, self.grids, axes=1), np.float64)
        return float((margin_log_e(calibration, logs) >= bar).mean())


def power_curve(
    provider: Simulated,
    calibration: Calibration,
    bar: float,
    generator: np.random.Generator,
    *,
    draws: int = DRAWS,
    most_requests: int = MOST_REQUESTS,
) -> PowerCurve:
    """Simulate audits of a provider.

    Each simulated audit is one growing log; it ends early once every audit convicts at two sizes running.

    Args:
        calibration: the profile's honest requests.
        bar: log e-value that convicts.
    """
    total, tokens = np.zeros((draws, *calibration.grid.shape)), np.zeros(draws)
    first = np.full(draws, np.inf)
    sizes: list[tuple[int, float, float, float]] = []
    size = 0
    while size < most_requests:
        step = max(1, math.ceil(size * (_GROWTH - 1.0)))
        size += step
        drawn = generator.multinomial(step, provider.chances, size=draws).astype(np.float64)
        total += np.tensordot(drawn, provider.grids, axes=1)
        tokens += drawn @ provider.lengths
        convicts = margin_log_e(calibration, total) >= bar
        first = np.where(convicts & np.isinf(first), tokens, first)
        sizes.append((size, float(tokens.mean()), float(convicts.mean()), float(np.isfinite(first).mean())))
        if len(sizes) > 1 and sizes[-1][2] == sizes[-2][2] == 1.0:
            break
    columns = np.array(sizes).T
    return PowerCurve(columns[0].astype(np.int64), columns[1], columns[2], columns[3], first)


def power_interval(
    provider: Simulated,
    calibration: Calibration,
    bar: float,
    requests: float,
    generator: np.random.Generator,
) -> tuple[float, float] | None:
    """95 % interval of the power at a size, over which requests the provider happened to be simulated on.

    None when the size is infinite. By request; the simulation's own spread is taken off the variance.
    """
    if not math.isfinite(requests):
        return None
    powers = [
        provider.resampled(generator).power(calibration, bar, int(requests), generator)
        for _ in range(_RESAMPLINGS)
    ]
    centre = provider.power(calibration, bar, int(requests), generator, draws=5 * DRAWS)
    noise = centre * (1.0 - centre) / DRAWS
    spread = 1.96 * math.sqrt(max(float(np.var(powers, ddof=1)) - noise, 0.0) + noise / 5)
    return max(0.0, centre - spread), min(1.0, centre + spread)
