"""What the filters need of each row: the log of its summed exponentials, and its largest logits in order.

A row streams by once, run by run, for its largest logit, its sum and its group maxima; the head is then
sorted out of the few groups that can hold it (`top_tokens`). Rows whose filters reach beyond a short head
get a longer one: of the next fixed length, or of as many tokens as a bar lets pass, halved for over the mass
or set by min-p. Both functions have one signature; `row_heads(..., backend=)` chooses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels.splitmix import F64
from auditor.kernels.top_tokens import falling, gather_above, logit_of, sorted_head, unpack
from auditor.kernels.vector_loops import (
    GROUP,
    LOWEST,
    NOTHING,
    RUN,
    add_up,
    maxima,
    ordered,
    unordered,
    weigh,
)

if TYPE_CHECKING:
    import torch

Backend = Literal["reference", "compiled", "triton"]

# What float32 weights may misplace: a share of the mass, and logits over the temperature.
_MASS_SLACK, _REACH_SLACK = 2e-6, 1e-4
# How a nucleus' edge is searched: halvings, where the interval ends, what is added to be on the safe side.
_HALVINGS, _DEEPEST, _SAFELY = 12, 80.0, 0.05


@dataclass(frozen=True, slots=True)
class RowHeads:
    """Sorted heads of R rows, one after another.

    Attributes:
        start: int64 [R + 1]; row r's head is `start[r] : start[r + 1]` of the two arrays below.
        ids: int64 [N], by falling logit and then rising id. logits: float32 [N], as they were given.
        log_normaliser: float64 [R], log of the summed exponentials of the row's logits / temperature.
    """

    start: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    log_normaliser: F64


def row_heads(
    logits: npt.NDArray[np.float32] | torch.Tensor,
    lengths: tuple[int, ...],
    *,
    temperature: float = 1.0,
    mass: float = 0.0,
    reach: float = -1.0,
    beyond: int = 1,
    margin: float = 0.0,
    backend: Backend = "compiled",
) -> RowHeads:
    """Scan every row once and sort its head.

    Needed are all tokens of which each has less than `mass` of the row's probability before it *and* lies
    within `reach` of the largest, and `beyond` more; one in doubt by rounding counts as needed. A head has
    the first of `lengths` that is enough, or, if none is, all that is needed and whatever lies within
    `margin` of the last of those that are not merely beyond. No head is longer than its row.

    Args:
        logits: float32 [R, V]; -inf excludes a token, a NaN makes the row's normaliser NaN. For `triton` a
            tensor on any device (`row_head_torch`).
        lengths: rising; with neither `mass` nor `reach` the first is enough.
        temperature: what logits are divided by before they are weighed.
        mass: within [0, 1]; 0 asks nothing. reach: in logits / temperature; negative asks nothing.
        beyond: at least 1. margin: in logits / temperature.
    """
    wanted = np.array([min(length, logits.shape[1]) for length in lengths], np.int64)
    mass_bound = mass + _MASS_SLACK if 0.0 < mass < 1.0 - _MASS_SLACK else 2.0
    asked = (mass_bound, reach + _REACH_SLACK if reach >= 0.0 else math.inf, beyond, margin)
    if mass <= 0.0 and reach < 0.0:
        wanted = wanted[:1]
    if backend == "triton":
        from auditor.kernels.row_head_torch import heads_on_device  # noqa: PLC0415 - the others need only numpy

        return RowHeads(*heads_on_device(logits, wanted, np.float32(temperature), asked))
    scan = _heads_reference if backend == "reference" else heads_compiled
    return RowHeads(*scan(np.ascontiguousarray(logits), wanted, np.float32(temperature), asked))


def _heads_reference(
    logits: npt.NDArray[np.float32],
    lengths: npt.NDArray[np.int64],
    temperature: np.float32,
    asked: tuple[float, float, int, float],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32], F64]:
    mass, reach, beyond, margin = asked
    ids, values, normalisers, start = [], [], [], [0]
    for row in logits:
        order = np.argsort(-row, kind="stable")
        x = row[order].astype(np.float64) / np.float64(temperature)
        with np.errstate(invalid="ignore", divide="ignore"):
            weights = np.exp(x - x[0])
            normalisers.append(x[0] + np.log(weights.sum()))
            before = (np.cumsum(weights) - weights) / weights.sum()
        inside = max(1, int(((before < mass) & (x >= x[0] - reach)).sum()))
        long = min(len(row), max(inside + beyond, int((x >= x[inside - 1] - margin).sum())))
        length = next((int(n) for n in lengths if n >= inside + beyond or len(lengths) == 1), long)
        start.append(start[-1] + length)
        ids.append(order[:length])
        values.append(row[order[:length]])
    return np.array(start), np.concatenate(ids), np.concatenate(values), np.array(normalisers)


@numba.njit(cache=True, nogil=True)
def scan_row(logits, scale, largest, weights):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """One pass over a row: its largest logit (`ordered`), that one's exponent, the sum of weights beside it.

    Args:
        scale: float32; exponents are logits * scale.
        largest: int32 [groups], set to the group maxima. weights: float32 scratch [RUN].
    """
    top, shift, total = LOWEST, np.float32(-np.inf), 0.0
    for start in range(0, len(logits), RUN):
        run = logits[start : start + RUN]
        best = maxima(run, largest[start // GROUP : (start + len(run) + GROUP - 1) // GROUP])
        if best > top:
            before, top = shift, best
            shift = np.float32(unordered(top) * scale)
            if top != NOTHING:
                total *= math.exp(np.float64(before) - np.float64(shift))
        if top != NOTHING:  # a row of nothing but -inf so far has no weight
            weigh(run, scale, shift, weights[: len(run)])
            total += add_up(weights[: len(run)])
    return top, shift, total


@numba.njit(cache=True, nogil=True)
def normaliser_of(scan, scale, temperature):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The log-normaliser of a scanned row; `lost` is what float32 rounded away in 1 / temperature."""
    top, shift, total = scan
    if top == NOTHING:
        return -np.inf
    lost = 1.0 / np.float64(temperature) - np.float64(scale)
    return np.float64(shift) + np.float64(unordered(top)) * lost + math.log(total)


@numba.njit(cache=True, nogil=True)
def _needed(head, scan, scale, asked):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """How many tokens of a sorted head are needed, those beyond the edge too; more than it has if unsure."""
    _, shift, total = scan
    mass, reach, beyond, _ = asked
    logits, weights = np.empty(len(head), np.float32), np.empty(len(head), np.float32)
    for j in range(len(head)):
        logits[j] = logit_of(head[j])
    weigh(logits, scale, shift, weights)
    before, enough = 0.0, mass * total
    lowest = (np.float64(shift) - reach) / np.float64(scale)
    for j in range(len(head)):
        if before >= enough or np.float64(logits[j]) < lowest:
            return j + beyond
        before += np.float64(weights[j])
    return len(head) + beyond


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})
def _total_from(weights, floor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = np.float32(0)
    for i in range(len(weights)):
        total += weights[i] if weights[i] >= floor else np.float32(0)
    return np.float64(total)


@numba.njit(cache=True, nogil=True)
def _depth(logits, scan, scale, asked):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """How far below the largest exponent a head must go to hold all that is needed, within a few per cent."""
    _, shift, total = scan
    mass, reach, _, _ = asked
    low, high = 0.0, min(reach, _DEEPEST)
    if mass > 1.0:
        return high
    weights = np.empty(len(logits), np.float32)
    for start in range(0, len(logits), RUN):
        weigh(logits[start : start + RUN], scale, shift, weights[start : start + RUN])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = 0.0
        for start in range(0, len(logits), RUN):
            above += _total_from(weights[start : start + RUN], np.float32(math.exp(-middle)))
        if above >= mass * total:
            high = middle
        else:
            low = middle
    return high


@numba.njit(cache=True, nogil=True)
def _long_head(logits, largest, scan, scale, asked, keys):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """A head as long as needed, sorted out of what a bar lets pass."""
    _, _, beyond, margin = asked
    depth = _depth(logits, scan, scale, asked) + margin + _SAFELY
    while True:
        bar = LOWEST
        if depth < _DEEPEST:
            bar = np.int32(ordered(np.float32(unordered(scan[0]) - depth / np.float64(scale))) - 1)
        found = gather_above(logits, largest, bar, keys)
        head = falling(keys[:found])
        needed = min(_needed(head, scan, scale, asked), len(logits))
        if needed <= found:
            floor = np.float64(logit_of(head[max(needed - beyond, 1) - 1])) - margin / np.float64(scale)
            if bar == LOWEST or floor > np.float64(unordered(bar)):
                while needed < found and np.float64(logit_of(head[needed])) >= floor:
                    needed += 1
                return head[:needed]
        depth *= 1.25


@numba.njit(cache=True, nogil=True)
def _head(logits, largest, lengths, scan, scale, asked, keys):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """A head of the first length that is enough, else as long as needed."""
    mass, reach, _, margin = asked
    for length in lengths:
        head = sorted_head(logits, largest, length, keys)
        if len(lengths) == 1 or len(head) == len(logits) or _needed(head, scan, scale, asked) <= length:
            return head
        if _needed(head, scan, scale, (mass / 2, reach / 2, 1, margin)) > length:
            break  # not even half of what is needed is in view: no fixed length is likely to be enough
    head = _long_head(logits, largest, scan, scale, asked, keys)
    if _needed(head, scan, scale, asked) > lengths[-1]:
        return head
    return sorted_head(logits, largest, lengths[-1], keys)


@numba.njit(cache=True, nogil=True)
def _moved(filled, count, room):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    wide = np.empty(room, filled.dtype)
    wide[:count] = filled[:count]
    return wide


@numba.njit(cache=True, nogil=True)
def heads_compiled(logits, lengths, temperature, asked):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The fields of `RowHeads`."""
    rows, vocabulary = logits.shape
    scale = np.float32(1.0 / np.float64(temperature))
    largest = np.empty((vocabulary + GROUP - 1) // GROUP, np.int32)
    weights, keys = np.empty(RUN, np.float32), np.empty(vocabulary + 1, np.uint64)
    start, normaliser = np.zeros(rows + 1, np.int64), np.empty(rows)
    ids, values = np.empty(rows * lengths[0], np.int64), np.empty(rows * lengths[0], np.float32)
    for r in range(rows):
        scan = scan_row(logits[r], scale, largest, weights)
        normaliser[r] = normaliser_of(scan, scale, temperature)
        head = _head(logits[r], largest, lengths, scan, scale, asked, keys)
        here, there = start[r], start[r] + len(head)
        if there > len(ids):
            room = here + (there - here) * (rows - r)  # as much for every row to come
            ids, values = _moved(ids, here, room), _moved(values, here, room)
        unpack(head, ids[here:there], values[here:there])
        start[r + 1] = there
    return start, ids[: start[rows]], values[: start[rows]], normaliser
