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
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from auditor.kernels.splitmix import F64, U64
from auditor.reference.head import RowStats, score_rows
from auditor.reference.noise import NoiseScheme
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation.race_rows import RaceRow, noise_doubt, race_rows
from auditor.reference.support import claimed_logits, log_normaliser

I64 = npt.NDArray[np.int64]

_NO_RANK = -1


@dataclass(frozen=True, slots=True)
class SpeculatedRows:
    """What speculation adds to R rows of one request.

    Attributes:
        coins: float64 [R], in (0, 1).
        drafts: int64 [R], negative where there was none; None when not logged.
        doubt: of the engine's log-likelihoods, nats.
        typical: (epsilon, delta) of typical acceptance, which looks at the row instead of the coin.
    """

    coins: F64
    drafts: I64 | None
    doubt: float
    typical: tuple[float, float] | None = None

    def threshold(self, r: int, row: RaceRow) -> float:
        """What p(d) must exceed in row r."""
        if self.typical is None:
            return float(self.coins[r])
        epsilon, delta = self.typical
        return float(min(epsilon, delta * np.exp(-row.entropy())))


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
    doubt = max(noise_doubt(scheme), speculated.doubt) * spec.temperature
    rows = race_rows(logits, claimed, spec, scheme, draws)
    outside, edge = np.zeros(count, np.bool_), np.zeros(count)
    for r, row in enumerate(rows):
        draft = None if speculated.drafts is None else int(speculated.drafts[r])
        coin = speculated.threshold(r, row)
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
    rows = race_rows(logits, likeliest, spec, scheme, draws)
    return np.array(
        [row.legal(speculated.threshold(r, row), int(drafts[r])) for r, row in enumerate(rows)], np.int64
    )
