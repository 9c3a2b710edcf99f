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
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One trace, reduced.

    Attributes:
        tokens: output tokens, all of them.
        matched, outside: of those that are evidence: those the reference would have returned; those the
            request's filters exclude.
        filtered: tokens drawn under a filter, the population of `outside`.
        misses: (position, margin in logits, slack in logits) of every token that does not match.
        mean_rank: mean number of tokens that beat the claimed one under the noise; nan for inverse-CDF noise.
        mean_log_probability: mean log-likelihood of the claimed tokens, nats.
        forced, unmodelled: tokens that are no evidence: the request's rules left one only, or are not known.
        forbidden: positions of tokens that the request's own rules exclude (misses, all of them).
    """

    tokens: int
    matched: int
    outside: int
    filtered: int
    misses: tuple[tuple[int, float, float], ...]
    mean_rank: float
    mean_log_probability: float
    forced: int = 0
    unmodelled: int = 0
    forbidden: tuple[int, ...] = ()

    @property
    def evidence(self) -> int:
        """Tokens that say anything about the provider."""
        return self.tokens - self.forced - self.unmodelled

    @property
    def match_rate(self) -> float:
        """Share of the evidence that the reference would also have returned; nan without any."""
        return self.matched / self.evidence if self.evidence else float("nan")

    def mean_margin(self, clip: float) -> float:
        """Mean margin over the evidence, winsorised at `clip` logits (a profile's honest quantile)."""
        total = sum(min(margin, clip) for _, margin, _ in self.misses)
        return total / self.evidence if self.evidence else 0.0


def token_scores(
    *,
    margin: F64,
    slack: F64,
    matched: Bools,
    outside: Bools,
    filtered: Bools,
    rank: npt.NDArray[np.int64],
    log_probability: F64,
    forced: Bools | None = None,
    unmodelled: Bools | None = None,
    forbidden: Bools | None = None,
) -> TokenScores:
    """Reduce one trace's positions (arrays [n], n >= 1); the last three are nowhere when None."""
    nowhere = np.zeros(len(margin), np.bool_)
    forced, unmodelled, forbidden = (nowhere if a is None else a for a in (forced, unmodelled, forbidden))
    evidence = ~(forced | unmodelled)
    positions = np.flatnonzero(evidence & ~matched)
    return TokenScores(
        tokens=len(margin),
        matched=int((evidence & matched).sum()),
        outside=int((evidence & outside).sum()),
        filtered=int((evidence & filtered).sum()),
        misses=tuple((int(t), float(margin[t]), float(slack[t])) for t in positions),
        mean_rank=float(rank.mean()) if (rank >= 0).all() else float("nan"),
        mean_log_probability=float(log_probability.mean()),
        forced=int(forced.sum()),
        unmodelled=int(unmodelled.sum()),
        forbidden=tuple(np.flatnonzero(forbidden).tolist()),
    )
