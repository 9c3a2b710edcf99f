"""One position's tokens as a rule of speculation sees them: their race, their odds, what filters let in.

Costs are movements of logits, as in `head.py`. This is the plain form: a row at a time, over the whole
vocabulary or the head that filters leave in view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from auditor.kernels.keyed_noise import keyed_noise
from auditor.kernels.splitmix import F64, U64
from auditor.reference.noise import KeyedScheme, NoiseScheme, Tolerant
from auditor.reference.sampling import SamplingSpec
from auditor.reference.support import claimed_logits, find_support

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RaceRow:
    """The tokens in view at one position.

    Attributes:
        ids: int64 [C], none twice. scores: float64 [C], logit + T * noise. scaled: float64 [C], logit / T.
        log_odds: float64 [C], of the token's probability among those kept; as if let in when it is not.
        edge: float64 [C], signed cost of the filter's edge, negative outside.
    """

    ids: I64
    scores: F64
    scaled: F64
    log_odds: F64
    edge: F64
    temperature: float

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """Whether filters keep it."""
        return np.asarray(self.edge >= 0)

    @property
    def entrance(self) -> F64:
        """What it costs to be let in."""
        return np.asarray(np.maximum(-self.edge, 0.0))

    def entropy(self) -> float:
        """Of what filters keep, nats."""
        odds = self.log_odds[self.inside]
        log_p = -np.logaddexp(0.0, -odds)
        return float(-(np.exp(log_p) * log_p)[np.isfinite(log_p)].sum())

    def winner(self, without: int = -1) -> int:
        """Where the winner of the race stands, that of `without` left out."""
        running = np.where(self.inside & (self.ids != without), self.scores, -np.inf)
        return int(running.argmax())

    def overtaking(self, without: int = -1) -> F64:
        """Cost of winning the race among all kept but `without`: rivals are overtaken or cut off."""
        rivals = self.inside & (self.ids != without)
        if not rivals.any():
            return self.entrance
        if np.isinf(self.edge[rivals]).all():
            gap = self.scores[rivals].max() - self.scores
            return np.asarray(np.maximum(np.maximum(gap, 0.0), self.entrance))
        ahead = self.scores[rivals][:, None] - self.scores
        cost = np.where(ahead > 0, np.minimum(ahead, self.edge[rivals][:, None]), 0.0).max(axis=0)
        return np.asarray(np.maximum(cost, self.entrance))

    def keeping(self, coin: float) -> F64:
        """Cost of each token's being kept as a draft."""
        lacking = log_odds_of(coin) - self.log_odds
        return np.asarray(np.maximum(np.maximum(lacking, 0.0) * self.temperature, self.entrance))

    def turning_down(self, place: int, coin: float) -> float:
        """Cost of the token's being turned down as a draft; nothing where it is the only one kept."""
        if self.edge[place] < 0 or np.isinf(self.log_odds[place]):
            return 0.0
        excess = max(float(self.log_odds[place]) - log_odds_of(coin), 0.0) * self.temperature
        return min(excess, float(self.edge[place]))

    def costs(self, coin: float, draft: int | None) -> F64:
        """What it would cost to make each token the one returned; 0 for those that are admissible."""
        plain = self.overtaking()
        if draft is None:
            top = self.winner()
            other = np.maximum(self.overtaking(int(self.ids[top])), self.turning_down(top, coin))
            other[top] = plain[top]
            return np.asarray(np.minimum(np.minimum(plain, self.keeping(coin)), other))
        found = np.flatnonzero(self.ids == draft)
        if draft < 0 or not len(found):
            return plain
        place = int(found[0])
        cost = np.asarray(np.maximum(self.overtaking(draft), self.turning_down(place, coin)))
        cost[place] = self.keeping(coin)[place]
        return cost

    def legal(self, coin: float, draft: int) -> int:
        """The one token returned, where the draft is known."""
        found = np.flatnonzero(self.ids == draft)
        if draft < 0 or not len(found):
            return int(self.ids[self.winner()])
        kept = self.keeping(coin)[found[0]] == 0.0
        return draft if kept else int(self.ids[self.winner(draft)])


def log_odds_of(p: float) -> float:
    """Log-odds of a probability in (0, 1)."""
    return float(np.log(p) - np.log1p(-p))


def noise_doubt(scheme: NoiseScheme) -> float:
    """What the engine's rounding of two noises may explain, in units of logit / T."""
    return 2.0 * float(scheme.tolerance(np.zeros(1))[0]) if isinstance(scheme, Tolerant) else 0.0


def race_rows(
    logits: torch.Tensor, claimed: I64, spec: SamplingSpec, scheme: NoiseScheme, draws: U64
) -> Iterator[RaceRow]:
    """One row after another; a token claimed beyond what is in view is added to it."""
    keyed = cast("KeyedScheme", scheme)
    own = claimed_logits(logits, claimed).astype(np.float64)
    if not spec.filtered:
        ids = np.arange(logits.shape[1], dtype=np.int64)
        free = np.full(len(ids), np.inf)
        for r in range(len(claimed)):
            yield _row(ids, logits[r].double().numpy(), free, keyed, draws[r : r + 1], spec.temperature)
        return
    support = find_support(logits, claimed, spec, scheme.filters)
    for r in range(len(claimed)):
        shown = support.edge[r] > -np.finfo(np.float64).max
        ids, z, edge = support.ids[r][shown], support.logits[r][shown], support.edge[r][shown]
        if claimed[r] not in ids:
            outside = min(float(support.claimed_edge[r]), -float(np.finfo(np.float64).tiny))
            ids, z, edge = np.append(ids, claimed[r]), np.append(z, own[r]), np.append(edge, outside)
        yield _row(ids, z, edge, keyed, draws[r : r + 1], spec.temperature)


def _row(ids: I64, logits: F64, edge: F64, scheme: KeyedScheme, key: U64, temperature: float) -> RaceRow:
    noise = keyed_noise(scheme.noise, key, ids[None])[0]
    scaled, inside = logits / temperature, edge >= 0
    running = np.where(inside, scaled, -np.inf)
    top = int(running.argmax())
    weights = np.exp(running - running[top])
    weights[top] = 0.0
    # The likeliest token's odds are against the others' mass, not against what rounding leaves of 1.
    others = float(weights.sum())
    kept = scaled[top] + np.log1p(others)
    log_p = scaled - kept if inside.all() else scaled - np.where(inside, kept, np.logaddexp(scaled, kept))
    with np.errstate(divide="ignore"):
        log_odds = log_p - np.log1p(-np.exp(np.minimum(log_p, -1e-300)))
        log_odds[top] = -np.log(others)
    return RaceRow(ids, logits + temperature * noise, scaled, log_odds, edge, temperature)
