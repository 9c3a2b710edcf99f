"""Token-DiFR per trace: what the returned tokens say about the forward pass and the sampler behind them.

Row statistics come in as arrays (`reference/head.py` makes them); this file only reduces them. Source:
DiFR, arXiv 2511.20621 section 4.2. Two departures, both needed for a verdict: margins are never infinite
(a token outside the filters carries its distance to the edge) and nothing is dropped from an average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One trace, reduced.

    Attributes:
        tokens, matched, outside: output tokens; those the reference would have returned; those the request's
            filters exclude.
        filtered: tokens drawn under a filter, the population of `outside`.
        misses: (position, margin in logits, slack in logits) of every token that does not match.
        mean_rank: mean number of tokens that beat the claimed one under the noise; nan for inverse-CDF noise.
        mean_log_probability: mean log-likelihood of the claimed tokens, nats.
    """

    tokens: int
    matched: int
    outside: int
    filtered: int
    misses: tuple[tuple[int, float, float], ...]
    mean_rank: float
    mean_log_probability: float

    @property
    def match_rate(self) -> float:
        """Share of tokens the reference would also have returned."""
        return self.matched / self.tokens

    def mean_margin(self, clip: float) -> float:
        """Mean margin over all tokens, winsorised at `clip` logits (a profile's honest quantile)."""
        return sum(min(margin, clip) for _, margin, _ in self.misses) / self.tokens


def token_scores(
    *,
    margin: F64,
    slack: F64,
    matched: npt.NDArray[np.bool_],
    outside: npt.NDArray[np.bool_],
    filtered: npt.NDArray[np.bool_],
    rank: npt.NDArray[np.int64],
    log_probability: F64,
) -> TokenScores:
    """Reduce one trace's positions (arrays [n], n >= 1)."""
    positions = np.flatnonzero(~matched)
    return TokenScores(
        tokens=len(margin),
        matched=int(matched.sum()),
        outside=int(outside.sum()),
        filtered=int(filtered.sum()),
        misses=tuple((int(t), float(margin[t]), float(slack[t])) for t in positions),
        mean_rank=float(rank.mean()) if (rank >= 0).all() else float("nan"),
        mean_log_probability=float(log_probability.mean()),
    )
