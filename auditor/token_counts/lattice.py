"""All tokenizations of one text, weighted: how many tokens did it take, and a quick way to draw one. Pure.

Nodes are places between the text's units (a byte, or a special token that the text spells out); an edge is
a token that spells the units between two places. The canonical tokenization is one path. Edges that leave
it are weighed by the model's row there, edges on from a likely departure by the row behind it
(`departures`), edges from other places, where nobody asked the model, by a constant. The weights serve as
the proposal from which `expected_length` draws, which is exact whatever they are, and as a first estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from auditor.reference.token_bytes import TokenBytes

F64 = npt.NDArray[np.float64]
Ids = tuple[int, ...]
Edges = tuple[tuple[int, int], ...]
"""(token, place where it ends) of every edge from one place."""

INNER = 0.01
"""Weight of an edge from a place where the model was not asked: how likely it is to go on along the text from
a piece that nobody writes. It sets how often such paths are drawn, never what is concluded from them."""
_LIKELY = 1e-4  # departures at least so probable, beside the canonical token, are asked about
_MOST_ASKED = 0.25  # of the canonical number of tokens
_LEAST = 1e-30  # so that every path can be drawn


@dataclass(frozen=True, slots=True)
class Lattice:
    """Tokenizations of a text.

    Attributes:
        edges: from each place. canonical: ids of the canonical path. places: where its tokens begin.
    """

    edges: tuple[Edges, ...]
    canonical: Ids
    places: tuple[int, ...]

    @classmethod
    def of(cls, canonical: Sequence[int], vocabulary: TokenBytes) -> Lattice:
        """From the canonical ids (special tokens included, as the text spells them)."""
        edges: list[Edges] = []
        places: list[int] = []
        run: list[int] = []
        for token in (*canonical, None):
            if token is not None and vocabulary.spelled[token]:
                run.append(token)
                continue
            edges.extend(_run_edges(run, vocabulary, len(edges), places))
            run = []
            if token is not None:
                places.append(len(edges))
                edges.append(((token, len(edges) + 1),))
        return cls(tuple(edges), tuple(canonical), tuple(places))

    def wanted(self) -> list[tuple[int, tuple[int, ...]]]:
        """For each canonical token: its number, and the ids whose probability is asked there."""
        return [(n, tuple(t for t, _ in self.edges[place])) for n, place in enumerate(self.places)]

    def likely_departures(self, rows: Sequence[F64]) -> dict[int, Ids]:
        """Contexts worth asking the model about: by place, the likeliest departure that ends there.

        Args:
            rows: for each canonical token the log probabilities of the ids of `wanted`, in order.
        """
        found: list[tuple[float, int, Ids]] = []
        on_path = {*self.places, len(self.edges)}
        for n, (place, row) in enumerate(zip(self.places, rows, strict=True)):
            own = row[self._own(n)]
            for (token, end), value in zip(self.edges[place], row.tolist(), strict=True):
                if end not in on_path and value - own > np.log(_LIKELY):
                    found.append((float(value - own), end, (*self.canonical[:n], token)))
        best: dict[int, Ids] = {}
        for _, end, context in sorted(found, reverse=True):
            if len(best) < _MOST_ASKED * len(self.canonical):
                best.setdefault(end, context)
        return best

    def _own(self, n: int) -> int:
        """Where the canonical token stands among the edges of its place."""
        return [t for t, _ in self.edges[self.places[n]]].index(self.canonical[n])

    def weighted(self, rows: Sequence[F64], inner: Mapping[int, F64]) -> WeightedLattice:
        """Take the model's word for the edges.

        Args:
            rows: as for `likely_departures`. inner: by place, log probabilities of its edges' ids.
        """
        weights = [np.full(len(edges), INNER) for edges in self.edges]
        for place, row in inner.items():
            weights[place] = np.maximum(np.exp(row), _LEAST)
        for n, (place, row) in enumerate(zip(self.places, rows, strict=True)):
            # Scaled so that the canonical path weighs 1 and no product of many tokens underflows.
            weights[place] = np.maximum(np.exp(row - row[self._own(n)]), _LEAST)
        return WeightedLattice(self, tuple(weights))


def _run_edges(run: Sequence[int], vocabulary: TokenBytes, start: int, places: list[int]) -> list[Edges]:
    data = vocabulary.join(run)
    at = start
    for token in run:
        places.append(at)
        at += len(vocabulary.spelled[token] or b"")
    return [
        tuple(
            (token, start + offset + len(vocabulary.spelled[token] or b""))
            for token in vocabulary.matching(data, offset)
        )
        for offset in range(len(data))
    ]


@dataclass(frozen=True, slots=True)
class WeightedLattice:
    """A distribution over tokenizations, each path in proportion to the product of its edges' weights."""

    lattice: Lattice
    weights: tuple[F64, ...]

    def backward(self) -> F64:
        """Total weight of the paths from each place to the end, [places + 1]."""
        edges = self.lattice.edges
        total = np.zeros(len(edges) + 1)
        total[-1] = 1.0
        for place in range(len(edges) - 1, -1, -1):
            own = self.weights[place]
            total[place] = sum(float(w) * total[end] for w, (_, end) in zip(own, edges[place], strict=True))
        return total

    def draw(self, count: int, generator: np.random.Generator) -> list[tuple[Ids, float]]:
        """`count` tokenizations with their log probabilities under this distribution."""
        total = self.backward()
        edges = self.lattice.edges
        choices = {}
        found = []
        for _ in range(count):
            ids, place, log_q = [], 0, -float(np.log(total[0]))
            uniform = generator.random(len(edges))
            while place < len(edges):
                if place not in choices:
                    own = self.weights[place] * total[[end for _, end in edges[place]]]
                    choices[place] = np.cumsum(own) / own.sum()
                pick = int(np.searchsorted(choices[place], uniform[place], side="right"))
                pick = min(pick, len(edges[place]) - 1)
                token, end = edges[place][pick]
                log_q += float(np.log(self.weights[place][pick]))
                ids.append(token)
                place = end
            found.append((tuple(ids), log_q))
        return found

    def departures(self) -> float:
        """Expected number of tokens off the canonical path, at least the expected number of extra tokens."""
        edges, behind = self.lattice.edges, self.backward()
        ahead = np.zeros(len(edges) + 1)
        ahead[0] = 1.0
        own = dict(zip(self.lattice.places, self.lattice.canonical, strict=True))
        off = 0.0
        for place, weights in enumerate(self.weights):
            for weight, (token, end) in zip(weights.tolist(), edges[place], strict=True):
                ahead[end] += ahead[place] * weight
                if own.get(place) != token:
                    off += ahead[place] * weight * behind[end]
        return float(off / behind[0])
