"""Which tokens a speculative provider may return at each position, and how far the claimed one is from them.

With a one-hot draft d and a coin u, both known: d if p(d) > u, else the winner of the race among the rest.
Where the draft was not logged, every token that some draft leads to is admissible: those with p(v) > u (they
were the draft and were kept), the winner of the race (no draft, or another one that was turned down), and the
runner-up if the winner's p is at most u (the winner was the draft and was turned down). p sums to 1, so u
lets through one token on average, and the set has three at most.

Costs are movements of logits, as in `head.py`: a token enters at its race's gap or, as a draft, when its
log-odds reach the coin's (moving one logit by x moves its token's log-odds by x / T). Where a claim needs
two things, the larger counts; where two ways lead to it, the smaller. `margin` is the claimed token's cost,
`slack` the least cost of any token that is not admissible. p is taken after the filters, as engines do.

This is the plain form: a row at a time, over the whole vocabulary or the head that filters leave in view.
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
from auditor.reference.head import RowStats, score_rows
from auditor.reference.noise import KeyedScheme, NoiseScheme, Tolerant
from auditor.reference.sampling import SamplingSpec
from auditor.reference.support import claimed_logits, find_support, log_normaliser

I64 = npt.NDArray[np.int64]

_NO_RANK = -1


@dataclass(frozen=True, slots=True)
class SpeculatedRows:
    """What speculation adds to R rows of one request.

    Attributes:
        coins: float64 [R], in (0, 1).
        drafts: int64 [R], negative where there was none; None when not logged.
        doubt: of the engine's log-likelihoods, nats.
    """

    coins: F64
    drafts: I64 | None
    doubt: float


@dataclass(frozen=True, slots=True)
class _Row:
    """The tokens in view at one position.

    Attributes:
        ids: int64 [C], none twice. scores: float64 [C], logit + T * noise.
        log_odds: float64 [C], of the token's probability among those kept; as if let in when it is not.
        edge: float64 [C], signed cost of the filter's edge, negative outside.
    """

    ids: I64
    scores: F64
    log_odds: F64
    edge: F64
    temperature: float

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.edge >= 0)

    @property
    def entrance(self) -> F64:
        """What it costs to be let in."""
        return np.asarray(np.maximum(-self.edge, 0.0))

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
        lacking = _log_odds(coin) - self.log_odds
        return np.asarray(np.maximum(np.maximum(lacking, 0.0) * self.temperature, self.entrance))

    def turning_down(self, place: int, coin: float) -> float:
        """Cost of the token's being turned down as a draft; nothing where it is the only one kept."""
        if self.edge[place] < 0 or np.isinf(self.log_odds[place]):
            return 0.0
        excess = max(float(self.log_odds[place]) - _log_odds(coin), 0.0) * self.temperature
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


def _log_odds(p: float) -> float:
    return float(np.log(p) - np.log1p(-p))


def score_speculated(
    logits: torch.Tensor,
    claimed: I64,
    spec: SamplingSpec,
    scheme: NoiseScheme,
    draws: U64,
    speculated: SpeculatedRows,
) -> RowStats:
    """As `head.score_rows`, for tokens that a keyed rule of speculation returned.

    Greedy requests are scored plainly: drafts are compared with the likeliest token. `rank` is -1.
    """
    if spec.greedy:
        return score_rows(logits, claimed, spec, scheme, draws)
    count = len(claimed)
    winner, margin, slack = claimed.copy(), np.zeros(count), np.full(count, np.inf)
    doubt = _doubt(scheme, speculated, spec.temperature)
    rows = _rows(logits, claimed, spec, scheme, draws)
    outside, edge = np.zeros(count, np.bool_), np.zeros(count)
    for r, row in enumerate(rows):
        draft = None if speculated.drafts is None else int(speculated.drafts[r])
        coin = float(speculated.coins[r])
        cost = row.costs(coin, draft)
        own = int(np.flatnonzero(row.ids == claimed[r])[0])
        outside[r], edge[r] = row.edge[own] < 0, row.entrance[own]
        margin[r] = max(cost[own] - doubt, edge[r])
        if margin[r] > 0:
            winner[r] = row.ids[row.winner()] if draft is None else row.legal(coin, draft)
        inadmissible = cost[cost > 0]
        slack[r] = max(inadmissible.min(initial=np.inf), doubt)
    own_logit = claimed_logits(logits, claimed) / np.float32(spec.temperature)
    log_probability = own_logit.astype(np.float64) - log_normaliser(logits, spec.temperature)
    return RowStats(
        claimed,
        winner,
        margin,
        slack,
        np.full(count, _NO_RANK, np.int64),
        log_probability,
        outside,
        edge,
        np.full(count, spec.filtered),
        np.empty((count, 0), np.int64),
        np.empty((count, 0), np.float32),
    )


def draw_speculated(
    logits: torch.Tensor,
    spec: SamplingSpec,
    scheme: NoiseScheme,
    draws: U64,
    speculated: SpeculatedRows,
) -> I64:
    """The token each row returns, int64 [R]; where drafts are not known, each row's likeliest token is one.

    Arguments as `score_speculated` has them.
    """
    likeliest = np.asarray(logits.argmax(dim=1).cpu().numpy(), np.int64)
    if spec.greedy:
        return likeliest
    drafts = likeliest if speculated.drafts is None else speculated.drafts
    rows = _rows(logits, likeliest, spec, scheme, draws)
    return np.array(
        [row.legal(float(u), int(d)) for row, u, d in zip(rows, speculated.coins, drafts, strict=True)],
        np.int64,
    )


def _doubt(scheme: NoiseScheme, speculated: SpeculatedRows, temperature: float) -> float:
    """Movement that the engine's own rounding may explain: of two noises, or of a log-likelihood."""
    noise = 2.0 * float(scheme.tolerance(np.zeros(1))[0]) if isinstance(scheme, Tolerant) else 0.0
    return max(noise, speculated.doubt) * temperature


def _rows(
    logits: torch.Tensor, claimed: I64, spec: SamplingSpec, scheme: NoiseScheme, draws: U64
) -> Iterator[_Row]:
    """One `_Row` after another; a token claimed beyond what is in view is added to it."""
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


def _row(ids: I64, logits: F64, edge: F64, scheme: KeyedScheme, key: U64, temperature: float) -> _Row:
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
    return _Row(ids, logits + temperature * noise, log_odds, edge, temperature)
