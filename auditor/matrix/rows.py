"""One row of the matrix: a deviation simulated on the report log, reduced to what power needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from auditor.errors import CannotScoreError
from auditor.matrix.provider import HonestProvider, traffic_of
from auditor.noise_model import RequestCounts, count_request
from auditor.reference.deviations import HONEST, Deviation
from auditor.reference.head import RowStats
from auditor.reference.simulated import Views, served, simulate
from auditor.replay import Scored

BUCKETS = (0, 16, 64, 128, 1 << 30)
"""Positions in the output: mismatches are counted apart, for many deviations show late or never early."""
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reduced:
    """One request under a provider.

    Attributes:
        counts: of all tokens. margins: of its mismatches, logits.
        missed, seen: by position bucket. outside, filtered: tokens outside their filters, of how many.
    """

    counts: RequestCounts
    margins: tuple[float, ...]
    missed: tuple[int, ...]
    seen: tuple[int, ...]
    outside: int
    filtered: int

    @classmethod
    def of(cls, stats: RowStats) -> Reduced:
        """Reduce a request's rows; forced and unmodelled positions say nothing."""
        says = np.flatnonzero(stats.evidence)
        matched = stats.matched[says]
        place = np.digitize(says, BUCKETS[1:])
        counts = count_request(stats.slack[says], stats.margin[says], matched)
        missed, seen = (np.bincount(p, minlength=len(BUCKETS) - 1) for p in (place[~matched], place))
        margins = tuple(float(m) for m in stats.margin[says][~matched])
        outside, filtered = int(stats.outside[says].sum()), int(stats.filtered[says].sum())
        return cls(counts, margins, tuple(missed.tolist()), tuple(seen.tolist()), outside, filtered)

    @classmethod
    def of_scored(cls, scored: Scored) -> Reduced:
        """The same of a real trace that could be scored, as honest ones can.

        Raises:
            AuditError: what kept it from being scored.
        """
        if scored.scores is None or scored.counts is None:
            raise scored.problem or CannotScoreError("nothing to measure", where=scored.trace.where)
        places = [position for position, _, _ in scored.scores.misses]
        missed = np.bincount(np.digitize(places, BUCKETS[1:]), minlength=len(BUCKETS) - 1)
        tokens = np.arange(scored.scores.tokens)
        seen = np.bincount(np.digitize(tokens, BUCKETS[1:]), minlength=len(BUCKETS) - 1)
        margins = tuple(margin for _, margin, _ in scored.scores.misses)
        edges = scored.scores.outside, scored.scores.filtered
        return cls(scored.counts, margins, tuple(missed.tolist()), tuple(seen.tolist()), *edges)


@dataclass(frozen=True, slots=True)
class Row:
    """A deviation's requests."""

    name: str
    traffic: str
    requests: tuple[Reduced, ...]

    @property
    def tokens(self) -> int:
        """Tokens that could have shown it."""
        return sum(r.counts.tokens for r in self.requests)

    @property
    def mismatches(self) -> int:
        """Of these, how many the reference would not have returned."""
        return sum(r.counts.mismatches for r in self.requests)

    def by_position(self) -> list[float | None]:
        """Mismatch rate in each bucket of positions; None where no output is that long."""
        missed, seen = (
            np.sum([getattr(r, name) for r in self.requests], axis=0) for name in ("missed", "seen")
        )
        return [float(m / n) if n else None for m, n in zip(missed, seen, strict=True)]


def measure_row(provider: HonestProvider, deviation: Deviation) -> Row:
    """Simulate a deviation on the report log of the traffic in which it shows.

    A provider that decodes by itself answers the same requests, and its own log is scored.
    """
    traffic = traffic_of(deviation)
    pool = provider.pool(traffic)
    if deviation.serves is not None:
        log = served(pool.asked, deviation, (provider.provider.model, provider.other))
        returned = tuple(map(Reduced.of, provider.reference.runner.score(log)))
        return Row(deviation.name, traffic, returned)
    model = provider.deviant(deviation)
    unchanged = deviation.prompt is HONEST.prompt and model is provider.provider.model
    states = pool.states[1] if unchanged else list(provider.states(pool.asked, deviation, model))
    found = []
    for number, ((request, _), reference, honest, deviant) in enumerate(
        zip(pool.asked, *pool.states, states, strict=True)
    ):
        views = Views(
            (provider.reference.model, reference), (provider.provider.model, honest), (model, deviant)
        )
        found.append(Reduced.of(simulate(request, number, deviation, views)))
    return Row(deviation.name, traffic, tuple(found))
