"""What an audit sees of requests, token by token, and of a log that is cut after so many tokens of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from auditor.noise_model import RequestCounts, count_request, log_likelihoods
from auditor.reference.head import RowStats

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PUBLISHED_CLIP = 0.5
"""Logits at which the published mean margin is clipped."""

BUCKETS = (0, 16, 64, 128, 1 << 30)
"""Positions in the output: mismatches are counted apart, for many deviations show late or never early."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One request; arrays [n] over its output tokens.

    Attributes:
        slack, margin, matched, outside, filtered: as `RowStats` has them.
        says: where the token is evidence: neither forced nor unmodelled.
        distance: of the activation fingerprint from the reference's states.
        differs: whether the honest provider would have returned another token.
        acted: where the deviation was at work.
        claimed: int64, what is claimed.
    """

    slack: F64
    margin: F64
    matched: Bools
    outside: Bools
    filtered: Bools
    says: Bools
    distance: F64
    differs: Bools
    acted: Bools
    claimed: npt.NDArray[np.int64]

    @classmethod
    def of(cls, stats: RowStats, distance: F64, differs: Bools, acted: Bools) -> Seen:
        """From the reference's scores."""
        says = stats.evidence
        rows = (stats.slack, stats.margin, stats.matched, stats.outside, stats.filtered)
        return cls(*rows, says, distance, differs, acted, stats.claimed)

    @property
    def tokens(self) -> int:
        """Output tokens."""
        return len(self.claimed)

    def counts(self, most: int) -> RequestCounts:
        """Its first `most` tokens, reduced."""
        says = np.flatnonzero(self.says[:most])
        return count_request(self.slack[says], self.margin[says], self.matched[says])

    def missed_and_seen(self) -> tuple[list[int], list[int]]:
        """Mismatches, and evidence, in each bucket of positions."""
        says = np.flatnonzero(self.says)
        place = np.digitize(says, BUCKETS[1:])
        both = (np.bincount(p, minlength=len(BUCKETS) - 1) for p in (place[~self.matched[says]], place))
        missed, seen = (counted.tolist() for counted in both)
        return missed, seen

    def misses(self) -> tuple[tuple[int, float, float], ...]:
        """(position, margin, slack) of every token that does not match."""
        places = np.flatnonzero(self.says & ~self.matched)
        return tuple((int(t), float(self.margin[t]), float(self.slack[t])) for t in places)


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Requests cut after so many output tokens each; arrays [R, ...].

    Attributes:
        grids: log-likelihoods [R, S, PI] of their tokens. clipped: summed margins, clipped.
        tokens, outside, filtered: counts. distance: mean. differs: whether any token does.
    """

    grids: F64
    clipped: F64
    tokens: F64
    outside: F64
    filtered: F64
    distance: F64
    differs: Bools

    @classmethod
    def of(cls, requests: Sequence[Seen], most: int) -> Cut:
        """The first `most` tokens of each."""
        found = log_likelihoods(r.counts(most) for r in requests)
        clipped = [np.minimum(r.margin[:most], PUBLISHED_CLIP)[~r.matched[:most]].sum() for r in requests]
        return cls(
            found,
            np.array(clipped, np.float64),
            np.array([r.says[:most].sum() for r in requests], np.float64),
            np.array([(r.says & r.outside)[:most].sum() for r in requests], np.float64),
            np.array([(r.says & r.filtered)[:most].sum() for r in requests], np.float64),
            np.array([r.distance[:most].mean() for r in requests]),
            np.array([bool(r.differs[:most].any()) for r in requests]),
        )
