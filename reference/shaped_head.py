"""Score rows whose filters keep no prefix (`shape_filters.py`): the plain form, a row at a time.

Margin and slack mean what they mean in `head.py`. A race is `filtered_race`'s: rivals that are ahead are
overtaken or cut off, and an outsider is let in besides.

An inverse CDF is asked at once about everything a movement of logits by x can do: tokens whose edge costs at
most x come or go, candidates whose places differ by at most x stand either way, and log-odds tilt by x / T. A
token costs the least x at which its interval can reach the draw; the slack is the least x at which the
interval of the token drawn can miss it, and nothing else can be drawn before. The cost is from below, as each
of the three is given the whole movement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from auditor.kernels.keyed_noise import keyed_noise
from auditor.kernels.mersenne import U32, gumbel_rows
from auditor.kernels.splitmix import F64, LARGEST_UNIFORM, U64
from auditor.reference.noise import KeyedScheme, NoiseScheme
from auditor.reference.sampling import SamplingSpec
from auditor.reference.shape_filters import FAR, ShapedRow, shape_row

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

# A movement below this is a tie (`auditor/noise_model.py` counts from 1e-6), and halvings of a bracket of 8.
_LEAST_MOVEMENT = 1e-7
_HALVINGS = 12
# Logarithm of the largest and least weights told apart; a token beyond is a gross miss already.
_LAST_WEIGHT = 300.0


@dataclass(frozen=True, slots=True)
class ShapedRows:
    """Per row, arrays [R]; fields as `head.RowStats` has them."""

    winner: I64
    margin: F64
    slack: F64
    rank: I64
    edge: F64
    unmodelled: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Found:
    winner: int
    margin: float
    slack: float
    rank: int


def score_shaped(
    logits: F32, claimed: I64, spec: SamplingSpec, scheme: NoiseScheme, draws: U64 | U32 | F64
) -> ShapedRows:
    """Score a tile.

    Args:
        logits: float32 [R, V]. claimed: int64 [R].
        spec, scheme: as `shape_filters.check_shape` passed them.
        draws: a race's noise in any form that `head.score_rows` takes; for an inverse CDF uniform numbers
            float64 [R], or with XTC's coins beside them [R, 2].
    """
    found, edges, lost = [], np.empty(len(claimed)), np.zeros(len(claimed), np.bool_)
    uniforms = None
    if scheme.family == "icdf":
        uniforms = np.asarray(draws, np.float64).reshape(len(claimed), -1)
    for r, token in enumerate(claimed.tolist()):
        coin = float(uniforms[r, 1]) if uniforms is not None and spec.crossed else 1.0
        row = shape_row(logits[r], spec, scheme.filters, coin)
        edges[r], lost[r] = row.edge[token], not row.modelled
        if uniforms is None:
            noise = _noise_of(scheme, draws[r : r + 1], logits.shape[1])
            found.append(_race(row, logits[r], noise, spec.temperature, token))
        else:
            found.append(_inverse_cdf(row, logits[r], float(uniforms[r, 0]), spec.temperature, token))
    return ShapedRows(
        np.array([f.winner for f in found], np.int64),
        np.minimum([f.margin for f in found], FAR),
        np.array([f.slack for f in found], np.float64),
        np.array([f.rank for f in found], np.int64),
        np.minimum(edges, FAR),
        lost,
    )


def _noise_of(scheme: NoiseScheme, draw: U64 | U32 | F64, vocabulary: int) -> F64:
    """One row's Gumbel noise, float64 [V]."""
    if draw.dtype == np.uint64:
        ids = np.arange(vocabulary)[None]
        return np.asarray(keyed_noise(cast("KeyedScheme", scheme).noise, cast("U64", draw), ids)[0])
    if draw.dtype == np.uint32:
        return np.asarray(gumbel_rows(cast("U32", draw), vocabulary)[0])
    return np.asarray(draw[0], np.float64)


def _race(row: ShapedRow, logits: F32, noise: F64, temperature: float, claimed: int) -> _Found:
    inside, entrance = row.edge >= 0, np.maximum(-row.edge, 0.0)
    scores = np.maximum(logits.astype(np.float64), -FAR) + temperature * noise
    running = np.where(inside, scores, -np.inf)
    winner = int(running.argmax())
    best, bound = scores[winner], row.edge[winner]
    running[winner] = -np.inf
    second = running.max()
    # Before the second one wins, only outsiders above it can: they have the winner alone to get past.
    outsiders = ~inside & (scores > second)
    past = np.minimum(np.maximum(best - scores[outsiders], 0.0), bound)
    slack = min(best - second, bound, np.maximum(past, entrance[outsiders]).min(initial=np.inf))
    ahead = inside & (scores > scores[claimed])
    rank = int(ahead.sum())
    if claimed == winner:
        return _Found(winner, 0.0, float(slack), rank)
    beaten = np.minimum(scores - scores[claimed], row.edge)[ahead].max(initial=0.0)
    return _Found(winner, float(max(beaten, entrance[claimed])), float(slack), rank)


def _inverse_cdf(row: ShapedRow, logits: F32, uniform: float, temperature: float, claimed: int) -> _Found:
    """llama.cpp's draw: float32 exponentials, added up in float64; the first border not below the draw."""
    uniform = min(max(uniform, 2.0**-65), LARGEST_UNIFORM)
    kept = np.flatnonzero(row.edge >= 0)
    if row.place is not None:
        kept = kept[np.lexsort((-logits[kept], row.place[kept]))]
    scaled = logits / np.float32(temperature)
    largest = scaled[kept].max()
    upper = np.cumsum(np.exp(scaled[kept] - largest), dtype=np.float64)
    winner = int(kept[(upper < uniform * upper[-1]).sum()])
    odds = float(np.log(uniform) - np.log1p(-uniform))
    weights = np.exp(np.clip(scaled.astype(np.float64) - float(largest), -_LAST_WEIGHT, _LAST_WEIGHT))
    line = _Line(weights, row.edge, row.place, temperature, odds)
    slack = line.slack(winner)
    if claimed == winner:
        return _Found(winner, 0.0, slack, -1)
    return _Found(winner, max(line.margin(claimed), slack), slack, -1)


@dataclass(frozen=True, slots=True)
class _Line:
    """Candidates of one draw, side by side.

    Attributes:
        weights: float64 [V], unnormalised. edge, place: as `ShapedRow` has them.
        odds: log-odds of the uniform number.
    """

    weights: F64
    edge: F64
    place: F64 | None
    temperature: float
    odds: float

    def _borders(self, token: int, movement: float) -> tuple[float, float, float, float]:
        """Log-odds of the token's interval: lower border least and most, upper border least and most."""
        sure, possible = self.edge > movement, self.edge >= -movement
        if self.place is None:
            first = last = np.arange(len(self.edge)) < token
        else:
            gap = self.place - self.place[token]
            first, last = gap < -movement, gap <= movement
        others, own = self.weights.copy(), self.weights[token]
        others[token] = 0.0
        sure_before, sure_after = others[sure & first].sum(), others[sure & ~last].sum()
        possible_before, possible_after = others[possible & last].sum(), others[possible & ~first].sum()
        tilt = movement / self.temperature
        with np.errstate(divide="ignore"):
            return (
                float(np.log(sure_before) - np.log(own + possible_after)) - tilt,
                float(np.log(possible_before) - np.log(own + sure_after)) + tilt,
                float(np.log(sure_before + own) - np.log(possible_after)) - tilt,
                float(np.log(possible_before + own) - np.log(sure_after)) + tilt,
            )

    def margin(self, token: int) -> float:
        """Least movement at which the token can be drawn."""
        entrance = max(-float(self.edge[token]), 0.0)

        def reached(movement: float) -> bool:
            least, _, _, most = self._borders(token, movement)
            return movement >= entrance and least <= self.odds <= most

        return _least(reached, entrance)

    def slack(self, winner: int) -> float:
        """Least movement at which another token can be drawn; inf where there is none."""
        if np.count_nonzero(self.edge > -FAR) == 1:
            return np.inf

        def uncertain(movement: float) -> bool:
            _, lower, upper, _ = self._borders(winner, movement)
            return not (self.edge[winner] > movement and lower <= self.odds <= upper)

        return _least(uncertain, 0.0)


def _least(true_from: Callable[[float], bool], start: float) -> float:
    """About the least movement, from `start` on, at which a condition holds that then holds for good."""
    low, high = start, max(start, _LEAST_MOVEMENT)
    while not true_from(high):
        low, high = high, 8.0 * high
        if high > FAR:
            return FAR
    if low in (high, 0.0):
        return high
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if true_from(middle) else (middle, high)
    return high
