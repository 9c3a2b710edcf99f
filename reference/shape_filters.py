"""Filters that keep no prefix of the row by falling logit, and the chain they stand in: one row at a time.

typical-p keeps a band of surprises around the entropy, top-n-sigma a distance below the largest logit that
the whole row's spread decides, XTC drops the likeliest. `support.py`, which knows prefixes, has no part in a
request that sets one of them. As there, every token carries a signed *edge cost* in logits: by how much
logits would have to move, against each other, to put it out (positive, inside) or in (negative, outside).
Costs are from below: where several things move at once, each is given the whole movement. What later filters
make of an early one's near misses is tried out, token by token.

Order of the chains:

* transformers: divide by T, top-k, top-p, min-p, typical-p;
* llama.cpp, on unscaled logits: top-n-sigma, top-k, typical-p, top-p, min-p, XTC; then T and the draw. It is
  its server's default; llama-cpp-python's own chain has top-k, typical-p, top-p and min-p in the same places.

llama.cpp adds up float32 one value after another, and on a large vocabulary an entropy notices.

Sources: transformers 5.19 and 5.23, `generation/logits_process.py` and `generation/utils.py`; llama.cpp as
llama-cpp-python 0.3.36 vendors it, `src/llama-sampler.cpp` and `common/common.h`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from auditor.errors import SamplingUnsupportedError
from auditor.kernels.filter_edges import log_odds
from auditor.kernels.splitmix import F64
from auditor.reference.noise import FilterOrder, NoiseScheme
from auditor.reference.sampling import SamplingSpec

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

FAR = 1e30
"""Logits that no movement reaches: edge cost of a token that the model itself excludes."""

_TINY = float(np.finfo(np.float64).tiny)
# Tokens on either side of an early cut's edge that are tried the other way for what later cuts make of it.
_NEAR = 2
_OFFERED: dict[str, frozenset[str]] = {  # by how names of schemes begin
    "torch-": frozenset({"typical_p"}),
    "llama.cpp/": frozenset({"typical_p", "top_n_sigma", "xtc_probability"}),
}


def check_shape(spec: SamplingSpec, scheme: NoiseScheme, *, speculated: bool = False) -> None:
    """Refuse a shape filter that the scheme's engine does not offer, or whose outcome cannot be replayed.

    Raises:
        SamplingUnsupportedError: which and why.
    """
    on = {
        "typical_p": spec.typical_p < 1.0,
        "top_n_sigma": spec.top_n_sigma > 0.0,
        "xtc_probability": spec.crossed,
    }
    named = ", ".join(name for name, is_on in on.items() if is_on)
    if named and spec.greedy:
        # llama.cpp's server filters before it takes the likeliest, llama-cpp-python does not filter at all.
        raise SamplingUnsupportedError(f"{named} at temperature 0 cannot be replayed: engines differ")
    if named and speculated:
        raise SamplingUnsupportedError(f"{named} under speculation cannot be replayed")
    offered = [name for prefix, names in _OFFERED.items() if scheme.name.startswith(prefix) for name in names]
    for name, is_on in on.items():
        if is_on and name not in offered:
            raise SamplingUnsupportedError(f"{name} of a {scheme.name} sampler cannot be replayed")
    if on["typical_p"] and on["top_n_sigma"]:
        raise SamplingUnsupportedError(
            "typical_p after top_n_sigma cannot be replayed: llama.cpp's entropy of a row with excluded "
            "tokens is not a number"
        )
    if on["xtc_probability"] and (on["typical_p"] or spec.top_p < 1.0 or spec.min_p > 0.0):
        raise SamplingUnsupportedError(
            "xtc_probability with typical_p, top_p or min_p cannot be replayed: XTC draws no coin where they "
            "leave one token, so a rounding error there would move all later coins"
        )
    if on["xtc_probability"] and spec.xtc_threshold == 0.0:
        raise SamplingUnsupportedError(
            "xtc_threshold 0 cannot be replayed: excluded tokens would reach it too"
        )


@dataclass(frozen=True, slots=True)
class ShapedRow:
    """What a chain of filters leaves of one row.

    Attributes:
        edge: float64 [V], signed edge cost in logits; >= 0 inside, < 0 outside.
        place: float64 [V], candidates stand by rising place, equal ones by falling logit; two may change
            places at the cost of the difference. None: they stand by id, and never do.
        modelled: False where the engine's own arithmetic comes to nothing.
    """

    edge: F64
    place: F64 | None
    modelled: bool


def shape_row(logits: F32, spec: SamplingSpec, order: FilterOrder, coin: float = 1.0) -> ShapedRow:
    """Run one row, float32 [V], through an engine's chain; `coin` is XTC's number for it, in [0, 1).

    Parameters are those of `effective_sampling`, checked by `check_shape`.
    """
    assert order in ("transformers", "llama.cpp"), "no other engine is let through"
    scale = spec.temperature if order == "transformers" else 1.0

    def run(flipped: _Flip | None) -> _Chain:
        chain = _Chain(
            logits / np.float32(scale), np.float64 if order == "transformers" else np.float32, flipped
        )
        chain.top_n_sigma(spec.top_n_sigma)
        if order == "transformers":
            chain.top_k(spec.top_k)
            chain.top_p(spec.top_p)
            chain.min_p(spec.min_p)
            chain.typical_p(spec.typical_p)
            return chain
        chain.top_k(spec.top_k)
        chain.typical_p(spec.typical_p)
        chain.top_p(spec.top_p)
        chain.min_p(spec.min_p)
        if spec.crossed and coin <= float(np.float32(spec.xtc_probability)):
            chain.cross_out(spec.xtc_threshold)
        return chain

    chain = run(None)
    edge = chain.edge
    for flipped in chain.near_an_early_edge():
        edge = _or_otherwise(edge, run(flipped).edge, abs(float(chain.edge[flipped.token])))
    return ShapedRow(edge * scale, chain.place, chain.modelled)


def _or_otherwise(edge: F64, other: F64, movement: float) -> F64:
    """Edge costs where a movement makes them `other`."""
    across = np.where((edge >= 0) == (other >= 0), np.maximum(np.abs(other), movement), movement)
    return np.asarray(np.where(edge >= 0, 1.0, -1.0) * np.minimum(np.abs(edge), across))


@dataclass(frozen=True, slots=True)
class _Flip:
    """A token that one of the cuts of a chain, counted from 0, takes the other way."""

    cut: int
    token: int


class _Chain:
    """One row on its way through the filters, in the units they see.

    Args:
        z: float32 [V]. real: in which the engine adds up; float32 means llama.cpp.
    """

    def __init__(self, z: F32, real: type[np.float32 | np.float64], flipped: _Flip | None) -> None:
        self.z: F64 = np.maximum(z.astype(np.float64), -FAR)
        self._real: Any = real
        self._sorts = real is np.float32  # and cuts within equals, where torch compares with the last one
        self.edge: F64 = np.where(np.isfinite(z), np.inf, -FAR)
        self.place: F64 | None = None
        self.modelled = True
        self._flipped, self._cuts = flipped, 0
        self._decided = np.full(len(z), -1)  # by which cut

    def _falling(self) -> I64:
        """Ids of the tokens left, by falling logit, then by id."""
        left = np.flatnonzero(self.edge >= 0)
        return left[np.argsort(-self.z[left], kind="stable")]

    def _masses(self, falling: I64) -> npt.NDArray[Any]:
        """Probabilities of the tokens left, in the engine's arithmetic."""
        weights = np.exp(self.z[falling].astype(self._real) - self._real(self.z[falling[0]]))
        return np.asarray(weights / np.cumsum(weights, dtype=self._real)[-1])

    def _cut(self, cost: F64) -> None:
        self._decided[cost < self.edge] = self._cuts
        self.edge = np.minimum(self.edge, cost)
        if self._flipped is not None and self._flipped.cut == self._cuts:
            token = self._flipped.token
            outside = self.edge[token] < 0
            if outside or np.count_nonzero(self.edge >= 0) > 1:
                self.edge[token] = -self.edge[token] if outside else -_TINY
        self._cuts += 1

    def near_an_early_edge(self) -> list[_Flip]:
        """Of the tokens that a cut decides which others follow, the nearest to its edge on either side."""
        early = (self._decided >= 0) & (self._decided < self._cuts - 1)
        sides = (early & (self.edge >= 0), early & (self.edge < 0))
        found = []
        for side in sides:
            ids = np.flatnonzero(side)
            nearest = ids[np.argsort(np.abs(self.edge[ids]), kind="stable")[:_NEAR]]
            found += [_Flip(int(self._decided[token]), int(token)) for token in nearest]
        return found

    def _sorted(self) -> None:
        self.place = -self.z if self._sorts else None

    def top_k(self, k: int) -> None:
        """Keep the k largest; in torch those equal to the last one too."""
        if k <= 0:
            return
        falling = self._falling()
        self._sorted()
        if k >= len(falling):
            return
        last, following = self.z[falling[k - 1]], self.z[falling[k]]
        inside = self.z >= last
        if self._sorts:
            inside[falling[k:]] = False
        self._cut(np.where(inside, self.z - following, np.minimum(self.z - last, -_TINY)))

    def top_p(self, mass: float) -> None:
        """Keep from the largest on until their mass reaches `mass`."""
        if mass >= 1.0:
            return
        falling = self._falling()
        self._cut(_by_mass(falling, -self.z, self._masses(falling), mass, np.less))
        self._sorted()

    def min_p(self, share: float) -> None:
        """Keep what is at least `share` times as likely as the likeliest, which always stays."""
        if share <= 0.0:
            return
        top, *others = self._falling()[:2]
        cost = self.z - (self.z[top] + np.log(share))
        cost[top] += self.z[top] - self.z[others[0]] if others else np.inf
        self._cut(cost)

    def typical_p(self, mass: float) -> None:
        """Keep the tokens whose surprise is nearest the entropy, until their mass reaches `mass`.

        Two distances |surprise - entropy| move against each other by at most 2 + E|surprise - entropy| times
        a movement of logits: each surprise by that movement, the entropy by half of E|...| times it.
        """
        if mass >= 1.0:
            return
        falling = self._falling()
        p = self._masses(falling)
        some = p > 0
        if self._sorts and not some.all():
            # 0 * log 0 in its entropy: what it keeps then hangs on how its sort treats NaN.
            self.modelled = False
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise = -np.log(p)
            entropy = np.cumsum(np.where(some, p * surprise, 0), dtype=self._real)[-1]
        largest = self.z[falling[0]]
        distance = np.abs(largest - np.log(float(p[0])) - self.z - float(entropy))
        distance[falling] = np.where(some, np.abs(surprise - entropy), distance[falling])
        near = np.argsort(distance[falling], kind="stable")
        rate = 2.0 + float((p * distance[falling]).sum())
        order = falling[near]
        reached: Callable[..., Any] = np.less_equal if self._sorts else np.less
        cost = _by_mass(order, distance / rate, p[near], mass, reached, equals=not self._sorts)
        self._cut(cost)
        if self._sorts:
            self.place = distance / rate

    def top_n_sigma(self, sigmas: float) -> None:
        """Keep logits within `sigmas` standard deviations of the largest.

        A movement of logits carries the largest against a token by itself, the deviation by half of it.
        """
        left = self.z[self.edge >= 0].astype(self._real)
        if sigmas <= 0.0 or len(left) < 2:
            return
        second, largest = np.partition(left, len(left) - 2)[-2:]
        mean = np.cumsum(left, dtype=self._real)[-1] / self._real(len(left))
        squares = (left - mean).astype(np.float64) ** 2
        deviation = np.sqrt(np.cumsum(squares, dtype=self._real)[-1] / self._real(len(left)))
        distance = self.z - float(largest - self._real(sigmas) * deviation)
        distance[self.z == float(largest)] += float(largest - second)
        self._cut(distance / (1.0 + sigmas / 2.0))

    def cross_out(self, threshold: float) -> None:
        """Drop, of the tokens at least as likely as `threshold`, all but the least likely.

        One logit's movement is its log-odds': those count against the threshold's.
        """
        falling = self._falling()
        self._sorted()
        if len(falling) < 2:
            return
        p, z = self._masses(falling), self.z[falling]
        count = int((p >= self._real(threshold)).sum())
        last = max(count - 1, 0)
        with np.errstate(divide="ignore", over="ignore"):
            log_p = self.z - z[0] + np.log(float(p[0]))
            over = log_p - np.log1p(-np.exp(np.minimum(log_p, -_TINY)))
            over -= np.log(threshold) - np.log1p(-threshold)
        # Tokens after the last one leave by rising to the threshold, with one at least as likely as they are.
        cost = np.maximum(-over, 0.0)
        lead = over[falling]
        rises = max(-lead[last + 1], 0.0) if last + 1 < len(z) else np.inf
        cost[falling[last]] = min(rises, z[last - 1] - z[last] if last else np.inf)
        # Those before it come back where all that follow sink below the threshold, or lie above them.
        sinks = np.maximum(np.append(0.0, lead[last:0:-1]), 0.0)
        dropped = self.z > z[last]
        dropped[falling[:last]] = True
        back = -np.maximum(_least_of_larger(z[last::-1], sinks, self.z), _TINY)
        self._cut(np.where(dropped, back, cost))


def _by_mass(
    order: I64,
    place: F64,
    p: npt.NDArray[Any],
    mass: float,
    lacking: Callable[..., Any],
    *,
    equals: bool = False,
) -> F64:
    """Edge costs, float64 [V], of keeping tokens by rising place until their mass reaches `mass`.

    A token crosses the edge by trading places with others, at the difference of places; by the mass before
    it, whose log-odds a tilt of logits moves by as much; or part of the way by each.

    Args:
        order: int64 [N], the tokens left by rising place. place: float64 [V], in logits.
        p: [N], masses in that order, in the engine's arithmetic.
        lacking: whether a cumulated mass is still too little.
        equals: tokens in the same place as the last one stay too.
    """
    real: Any = p.dtype.type
    cumulated = np.cumsum(p, dtype=real)
    last = min(int(lacking(cumulated, real(mass)).sum()), len(p) - 1)
    before = np.append(0.0, cumulated[:-1].astype(np.float64))
    wanted, odds, keys = log_odds(np.float64(mass)), log_odds(before), place[order]
    enter = _least_of_larger(
        keys[last:], np.maximum(np.append(wanted, odds[last + 1 :]) - wanted, 0.0), place
    )
    # Out by mass, or behind others as far as their mass reaches: behind the first one out, behind the last
    # one kept if that has mass enough without the token itself, or behind an earlier one.
    own = np.zeros(len(place))
    own[order] = p
    without = log_odds(np.maximum(float(cumulated[last]) - own, 0.0))
    behind_last = np.maximum(keys[last] - place, wanted - without)
    behind_last[order[last]] = np.inf
    leave = np.minimum(behind_last, keys[last + 1] - place if last + 1 < len(p) else np.inf)
    fees = np.maximum(wanted - odds[1 : last + 1], 0.0)
    leave = np.minimum(leave, _least_of_larger(-keys[:last][::-1], fees[::-1], -place))
    inside = place <= keys[last]
    if not equals:
        inside[order[last + 1 :]] = False
    return np.where(inside, np.maximum(leave, 0.0), -np.maximum(enter, _TINY))


def _least_of_larger(keys: F64, fees: F64, at: F64) -> F64:
    """For each of `at`, the least over k of max(fees[k], at - keys[k]); keys and fees rise."""
    both = keys + fees
    k = np.searchsorted(both, at)
    padded_fees, padded_keys = np.append(fees, np.inf), np.append(-np.inf, keys)
    return np.asarray(np.minimum(padded_fees[k], np.maximum(at - padded_keys[k], 0.0)))
