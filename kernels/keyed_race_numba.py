"""The race of `keyed_race` on a CPU, compiled: never a logarithm for a token that cannot matter.

With `u = (bits + 1/2) / 2**53` (mirrored for the classic transform) token v scores above a level t exactly
when `u < 1 - exp(-exp(z_v - t))`, and that is below `exp(z_v - t)`. Every member of `keyed_noise` gives an
integer that bounds its noise in the same way. So a group of tokens is ruled out by one comparison of its
least u with the exponential of its largest logit: nearly all are, and their tokens are hashed but never
looked at one by one. A row is read in runs, so that neither its weights nor its noise are
ever in memory as a whole. Survivors are scored in float64 with the engine's own formula, so the answer does
not depend on the bound.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from auditor.kernels.keyed_noise import fill_leading, noise_of
from auditor.kernels.row_head import normaliser_of, scan_row
from auditor.kernels.splitmix import GOLDEN
from auditor.kernels.top_tokens import sorted_head, unpack
from auditor.kernels.vector_loops import GROUP, RUN, unordered, weigh


@numba.njit(cache=True, nogil=True, inline="always")
def _less(least, z, mirror):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The smaller of `least` and a token's word, of which the mixer's last step changes no leading bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return min(least, ((z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)) ^ mirror)


@numba.njit(cache=True, nogil=True)
def _least_splitmix(key, vocabulary, mirror, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """As `_least_bits`, without writing the words down."""
    whole, z = vocabulary // GROUP, key
    for g in range(whole):
        least = np.uint64(0xFFFFFFFFFFFFFFFF)
        for _ in range(GROUP):  # a fixed count, for the vectoriser
            z += GOLDEN  # stepping costs a third less than multiplying
            least = _less(least, z, mirror)
        out[g] = np.int32(least >> np.uint64(33))
    if whole < len(out):
        least = np.uint64(0xFFFFFFFFFFFFFFFF)
        for _ in range(whole * GROUP, vocabulary):
            z += GOLDEN
            least = _less(least, z, mirror)
        out[whole] = np.int32(least >> np.uint64(33))


@numba.njit(cache=True, nogil=True)
def _least_bits(kind, key, vocabulary, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Set `out[g]` to the least of the leading 31 bits of group g's tokens; winners' are near 0."""
    if kind <= 1:
        _least_splitmix(key[0], vocabulary, mirror_of(kind), out)
        return
    run = np.empty(RUN, np.int32)
    for start in range(0, vocabulary, RUN):
        leading = run[: min(RUN, vocabulary - start)]
        fill_leading(kind, key, start, leading)
        for g in range(0, len(leading), GROUP):
            out[(start + g) // GROUP] = leading[g : g + GROUP].min()


@numba.njit(cache=True, nogil=True)
def bound(shift, level):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """What a weight exp(z - shift) is multiplied by for the first 31 bits of u to be compared with it.

    Those bits round the 53 down; 1e-4 covers what float32 rounds in them and in the weight. A survivor too
    many costs only time, and so does a factor beyond float32's range, an infinite one, which all pass.
    """
    return np.float32(math.exp(min(np.float64(shift) - level, 600.0)) * 1.0001 * 2.0**31)


@numba.njit(cache=True, nogil=True, inline="always")
def mirror_of(kind):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """What turns the bits of the classic transform, whose winners are near u = 1, the other way round."""
    return np.uint64(0) if kind == 1 else np.uint64(0xFFFFFFFFFFFFFFFF)


@numba.njit(cache=True, nogil=True)
def _survivors(weights, high, factor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """How many pass the bound."""
    found = np.int32(0)
    for i in range(len(weights)):
        found += np.int32(np.float32(high[i]) < factor * weights[i])
    return found


@numba.njit(cache=True, nogil=True)
def _open_groups(group_weights, least, factor, groups, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Leave of `groups[:count]` those that a token passing the bound may be in; how many they are."""
    left = 0
    for i in range(count):
        g = groups[i]
        groups[left] = g
        left += np.float32(least[g]) < factor * group_weights[g]  # no branch: it could not be predicted
    return left


@numba.njit(cache=True, nogil=True)
def _most_promising(group_weights, least, groups, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Where in `groups[:count]` the group is whose least u is smallest beside its largest weight."""
    place, most = 0, np.float32(-1)
    for i in range(count):
        promise = group_weights[groups[i]] / (np.float32(least[groups[i]]) + np.float32(1))
        if promise > most:
            place, most = i, promise
    return place


@numba.njit(cache=True, nogil=True)
def _race_group(logits, g, row, leaders, factor, level, scratch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The leaders and the bound's factor after group `g` has run."""
    key, y, score, kind, temperature, shift = row
    best_id, best, next_best, beaten_by = leaders
    group = logits[g * GROUP : g * GROUP + GROUP]
    weights, high = scratch[0][: len(group)], scratch[1][: len(group)]
    weigh(group, np.float32(1.0 / np.float64(temperature)), shift, weights)
    fill_leading(kind, key, g * GROUP, high)
    if _survivors(weights, high, factor) == 0:
        return leaders, factor
    for i in range(len(group)):
        v = g * GROUP + i
        if v == y or not np.float32(high[i]) < factor * weights[i]:
            continue
        x = np.float64(np.float32(group[i] / temperature)) + noise_of(kind, key, v)
        beaten_by += x > score
        if x > best or (x == best and v < best_id):
            best, next_best, best_id = x, best, v
        elif x > next_best:
            next_best = x
        else:
            continue
        factor = bound(shift, max(level, min(next_best, score)))
    return (best_id, best, next_best, beaten_by), factor


@numba.njit(cache=True, nogil=True)
def _race_above(logits, row, level, group_weights, least, groups, scratch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The race among the claimed token and those that score above `level`."""
    # The claimed token leads at first: an honest row then has few survivors besides it.
    leaders, factor = (row[1], row[2], -np.inf, 0), bound(row[5], level)
    for g in range(len(groups)):
        groups[g] = g
    left = _open_groups(group_weights, least, factor, groups, len(groups))
    # Once the runner-up is known, most groups are out: two are looked at out of turn to find it.
    for _ in range(min(2, left)):
        place = _most_promising(group_weights, least, groups, left)
        leaders, factor = _race_group(logits, groups[place], row, leaders, factor, level, scratch)
        groups[place] = groups[left - 1]
        left = _open_groups(group_weights, least, factor, groups, left - 1)
    for i in range(left):
        if np.float32(least[groups[i]]) < factor * group_weights[groups[i]]:
            leaders, factor = _race_group(logits, groups[i], row, leaders, factor, level, scratch)
    return leaders


@numba.njit(cache=True, nogil=True)
def _race_row(logits, key, y, kind, temperature, scan, largest, scratch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The race of a scanned row, whose group maxima are `largest`."""
    _, shift, total = scan
    logit, least = np.empty(len(largest), np.float32), np.empty(len(largest), np.int32)
    group_weights, groups = np.empty(len(largest), np.float32), np.empty(len(largest), np.int64)
    for g in range(len(largest)):
        logit[g] = unordered(largest[g])  # not in place, or `weigh` would not be vectorised
    weigh(logit, np.float32(1.0 / np.float64(temperature)), shift, group_weights)
    _least_bits(kind, key, len(logits), least)
    score = np.float64(np.float32(logits[y] / temperature)) + noise_of(kind, key, y)
    row = (key, y, score, kind, temperature, shift)
    # The runner-up scores above this in all but 4 of 100 rows, unless one token has nearly all the mass.
    level = np.float64(shift) + math.log(total / 5.0) if total > 0.0 else -np.inf
    leaders = _race_above(logits, row, level, group_weights, least, groups, scratch)
    if not min(leaders[2], score) >= level:
        leaders = _race_above(logits, row, -np.inf, group_weights, least, groups, scratch)
    return leaders, score


@numba.njit(cache=True, nogil=True)
def race_compiled(logits, keys, claimed, kind, temperature, top):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The fields of `keyed_race.RaceRows`; keys are `keyed_noise.key_words`, uint64 [R, 3]."""
    rows, vocabulary = logits.shape
    groups, scale = (vocabulary + GROUP - 1) // GROUP, np.float32(1.0 / np.float64(temperature))
    winner, rank = np.empty(rows, np.int64), np.empty(rows, np.int64)
    first, second, score, normaliser = np.empty(rows), np.empty(rows), np.empty(rows), np.empty(rows)
    top_ids, top_logits = np.empty((rows, top), np.int64), np.empty((rows, top), np.float32)
    weights, scratch = np.empty(RUN, np.float32), (np.empty(GROUP, np.float32), np.empty(GROUP, np.int32))
    largest, head = np.empty(groups, np.int32), np.empty(vocabulary + 1 if top else 0, np.uint64)
    for r in range(rows):
        scan = scan_row(logits[r], scale, largest, weights)
        normaliser[r] = normaliser_of(scan, scale, temperature)
        key = (keys[r, 0], keys[r, 1], keys[r, 2])
        leaders, score[r] = _race_row(logits[r], key, claimed[r], kind, temperature, scan, largest, scratch)
        winner[r], first[r], second[r], rank[r] = leaders
        if top:
            unpack(sorted_head(logits[r], largest, top, head), top_ids[r], top_logits[r])
    return winner, first, second, score, rank, normaliser, top_ids, top_logits
