"""One row of the matrix: a deviation simulated on the report log, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from auditor.matrix.provider import HonestProvider, traffic_of
from auditor.matrix.seen import Seen
from auditor.reference.deviations import HONEST, Deviation
from auditor.reference.simulated import Simulated, Views, served, simulate

_BEYOND_ROUNDING = 3.0


@dataclass(frozen=True, slots=True)
class Row:
    """A deviation's requests.

    Attributes:
        has_states: whether its forward differs at all, so that a fingerprint could tell.
    """

    name: str
    traffic: str
    requests: tuple[Seen, ...]
    has_states: bool

    @property
    def tokens(self) -> int:
        """Tokens that could have shown it."""
        return sum(int(r.says.sum()) for r in self.requests)

    @property
    def mismatches(self) -> int:
        """Of these, how many the reference would not have returned."""
        return sum(int((r.says & ~r.matched).sum()) for r in self.requests)

    @property
    def differing(self) -> int:
        """Of these, how many the honest provider would not have returned."""
        return sum(int((r.says & r.differs).sum()) for r in self.requests)

    def by_position(self) -> list[float | None]:
        """Mismatch rate in each bucket of positions; None where no output is that long."""
        each = [r.missed_and_seen() for r in self.requests]
        missed, seen = (np.sum([one[side] for one in each], axis=0) for side in (0, 1))
        return [float(m / n) if n else None for m, n in zip(missed, seen, strict=True)]


def honest_row(provider: HonestProvider) -> Row:
    """The report log as it was decoded, not simulated."""
    return Row(HONEST.name, "sampled", tuple(provider.pool("sampled").log), has_states=False)


def measure_row(provider: HonestProvider, deviation: Deviation) -> Row:
    """Simulate a deviation on the report log of the traffic in which it shows.

    A provider that decodes by itself answers the same requests, and its own log is scored; the fingerprints
    beside it are an honest provider's.
    """
    traffic = traffic_of(deviation)
    pool = provider.pool(traffic)
    if deviation.serves is not None:
        log = served(pool.asked, deviation, (provider.provider.model, provider.other))
        returned = [
            Seen.of(stats, np.resize(far, len(stats.matched)), ~stats.matched, ~stats.matched)
            for stats, far in zip(provider.reference.runner.score(log), pool.distances, strict=True)
        ]
        return Row(deviation.name, traffic, tuple(returned), has_states=False)
    model = provider.deviant(deviation)
    changed = deviation.prompt is not HONEST.prompt or model is not provider.provider.model
    states = list(provider.states(pool.asked, deviation, model)) if changed else pool.honest
    found = []
    for number, (request, _) in enumerate(pool.asked):
        reference, honest, deviant = pool.reference[number], pool.honest[number], states[number]
        views = Views(
            (provider.reference.model, reference), (provider.provider.model, honest), (model, deviant)
        )
        done = simulate(request, number, deviation, views)
        far = pool.distances[number]
        if changed:
            far = np.where(done.acted, provider.distances(number, deviant, reference), far)
        acted = _acted(deviation, done, (reference, honest, deviant), changed=changed)
        found.append(Seen.of(done.stats, far, done.differs, acted))
    return Row(deviation.name, traffic, tuple(found), changed)


def _acted(
    deviation: Deviation, done: Simulated, states: tuple[torch.Tensor, ...], *, changed: bool
) -> npt.NDArray[np.bool_]:
    """Where the deviation was at work, [n].

    A slip is where it slipped. A changed forward counts where it moved the state by several times what honest
    rounding had moved it: before a cache is full, say, it does nothing but round in another order.
    """
    if deviation.slips:
        return done.differs
    reference, honest, deviant = (s.float() for s in states)
    width = honest.shape[1]
    if not changed or deviant.shape[1] != width:
        return done.acted
    rounding = (honest - reference[:, :width]).norm(dim=1)
    moved = (deviant - honest).norm(dim=1) > _BEYOND_ROUNDING * rounding
    return np.asarray(done.acted & moved.numpy())
