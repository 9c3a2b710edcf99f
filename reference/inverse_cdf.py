"""Draws from a cumulative distribution, and how far a claimed token's interval is from the draw.

Distances are in log-odds: the tilt of logits that would carry an interval's border to the draw.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from auditor.kernels.splitmix import F64, LARGEST_UNIFORM
from auditor.reference.support import Support

# Log-odds beyond which an inverse CDF cannot tell two borders apart: float32 weights underflow below the
# first; next to the last, a float64 sum no longer grows.
_FIRST_ODDS = -104.0
_LAST_ODDS = 53.0 * np.log(2.0)


def _cumulated(
    logits: npt.NDArray[np.float32], uniforms: F64, temperature: float, *, float32_sums: bool
) -> tuple[F64, npt.NDArray[np.int64]]:
    """Upper borders of the columns' intervals, float64 [R, C], and the column drawn, int64 [R].

    llama.cpp: float32 exponentials, summed in float64, the first border not below the draw. OpenVINO: float32
    probabilities, summed one after another in float32, the first border above the draw.
    """
    top = logits.max(axis=1, keepdims=True)
    if not float32_sums:
        scaled = logits / np.float32(temperature)
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        upper = np.cumsum(weights, axis=1, dtype=np.float64)
        return upper, (upper < (uniforms * upper[:, -1])[:, None]).sum(axis=1)
    weights = np.exp((logits - top) * (np.float32(1) / np.float32(temperature)))
    shares = weights / np.cumsum(weights, axis=1, dtype=np.float32)[:, -1:]
    borders = np.cumsum(shares, axis=1, dtype=np.float32)
    drawn = (borders <= (borders[:, -1] * uniforms.astype(np.float32))[:, None]).sum(axis=1)
    last = logits.shape[1] - 1 - np.isfinite(logits)[:, ::-1].argmax(axis=1)
    return borders.astype(np.float64), np.minimum(drawn, last)


def draw_columns(
    logits: npt.NDArray[np.float32],
    places: npt.NDArray[np.int64],
    uniforms: F64,
    temperature: float,
    *,
    float32_sums: bool,
) -> tuple[npt.NDArray[np.int64], F64, F64]:
    """Inverse CDF over the columns of `logits` ([R, C], -inf excludes) in their order.

    Returns the column drawn, and in logits (T times log-odds) the distance of the draw to column `places`
    (inf for an excluded one and for -1, nowhere) and to the nearest border of the column drawn (inf if it
    stands alone). A column whose weight is lost in rounding lies at the last log-odds that the arithmetic
    resolves.
    """
    uniforms = np.clip(uniforms, 2.0**-65, LARGEST_UNIFORM)
    upper, column = _cumulated(logits, uniforms, temperature, float32_sums=float32_sums)
    total = upper[:, -1]
    here = np.arange(len(places))

    def border(index: npt.NDArray[np.int64]) -> F64:
        """Log-odds of the border below column `index`."""
        mass = np.where(index <= 0, 0.0, upper[here, np.maximum(index, 1) - 1])
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(mass) - np.log(np.maximum(total - mass, 0.0)))

    odds = np.log(uniforms) - np.log1p(-uniforms)
    alive = ~np.isneginf(logits)
    first, last = alive.argmax(axis=1), alive.shape[1] - 1 - alive[:, ::-1].argmax(axis=1)
    to_lower = np.where(column > first, odds - np.maximum(border(column), _FIRST_ODDS), np.inf)
    to_upper = np.where(column < last, np.minimum(border(column + 1), _LAST_ODDS) - odds, np.inf)
    slack = np.maximum(np.minimum(to_lower, to_upper), 0.0)
    below = np.minimum(border(places), _LAST_ODDS) - odds
    above = odds - np.maximum(border(places + 1), _FIRST_ODDS)
    distance = np.where(column == places, 0.0, np.maximum(np.maximum(below, above), 0.0))
    nowhere = (places < 0) | ~alive[here, places]
    return column, np.where(nowhere, np.inf, distance * temperature), slack * temperature


def draw_from_support(
    support: Support, uniforms: F64, temperature: float, *, by_id: bool, float32_sums: bool
) -> tuple[npt.NDArray[np.int64], F64, F64]:
    """Inverse CDF over the kept prefix; tokens at the edge move every border, so other lengths are tried too.

    Candidates stand by falling logit, or by id. By logit, two of them may change places: then each is drawn
    where the other was, at the cost of their gap and however wide their intervals are. The column returned is
    the support's own.
    """
    rows, columns = support.logits.shape
    here = np.arange(rows)
    order = support.ids.argsort(axis=1) if by_id else np.tile(np.arange(columns), (rows, 1))
    logits = np.take_along_axis(support.logits, order, axis=1)
    claimed = np.where(
        support.claimed_column < 0, -1, (order == support.claimed_column[:, None]).argmax(axis=1)
    )

    def cut(kept: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return np.where(order < kept[:, None], logits, -np.inf).astype(np.float32)

    def swapped(column: npt.NDArray[np.int64]) -> F64:
        """Cost of the claimed token's changing places with the one drawn."""
        if by_id:
            return np.full(rows, np.inf)
        gap = np.abs(logits[here, claimed] - logits[here, column])
        cost = np.maximum(gap, np.maximum(-support.claimed_edge, 0.0))
        return np.where(claimed < 0, np.inf, cost)

    column, margin, slack = draw_columns(
        cut(support.kept), claimed, uniforms, temperature, float32_sums=float32_sums
    )
    margin = np.minimum(margin, swapped(column))
    if not by_id:
        away = np.abs(logits - logits[here, column][:, None])
        away[here, column] = np.inf
        slack = np.minimum(slack, np.where(order < support.kept[:, None], away, np.inf).min(axis=1))
    for step in (-3, -2, -1, 1, 2, 3):
        kept = np.clip(support.kept + step, 1, columns)
        # The edge's costs fall along the row: the farthest token that crosses it costs the most.
        at_edge = kept if step < 0 else kept - 1
        moved = np.where(kept == support.kept, np.inf, np.abs(support.edge[here, at_edge % columns]))
        other, distance, _ = draw_columns(
            cut(kept), claimed, uniforms, temperature, float32_sums=float32_sums
        )
        margin = np.minimum(margin, np.maximum(moved, np.minimum(distance, swapped(other))))
        slack = np.where(other != column, np.minimum(slack, moved), slack)
    return order[here, column], np.where(np.isfinite(margin), margin, 0.0), slack
