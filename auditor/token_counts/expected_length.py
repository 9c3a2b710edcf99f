"""An unbiased estimate of the tokens a text took, over all its tokenizations under a model. Pure.

E[f(T) | text] for tokenizations T under the model is a ratio of two sums over paths. Paths are drawn from a
proposal q and weighed by P(path) / q(path); the ratio of sample means R is biased for any number of samples,
and the bias is removed by a random number of levels (Rhee and Glynn, Operations Research 63, 2015; for ratios
with halved samples, Blanchet, Glynn and Pei, arXiv 1904.09929):

    U = R(n0 samples) + sum over m = 1..M of D_m / P(M >= m),   P(M >= m) = 2^(-1.5 m)
    D_m = R(n0 2^m samples) - (R(their first half) + R(their second half)) / 2

Each level draws its own samples, as many as it says, so nothing is used twice and E[U] is the expectation
itself. With a proposal near the model most weights agree and most D_m are 0: the work is what other paths
cost to score, which are few.

(The published auditor, arXiv 2510.05181, draws 2M samples in all for levels that need 2 * 2^m of them,
samples token by token under a mask, and skips texts with characters of several tokens.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from auditor.token_counts.lattice import Ids

Draw = Callable[[int], Sequence[tuple[Ids, float]]]
"""n -> n paths with their log probabilities under the proposal."""
Score = Callable[[Sequence[Ids]], Sequence[float]]
"""Log probability of each path under the model, up to one constant for the text."""

FIRST = 8
"""Samples of the first estimate."""
_DECAY = 1.5  # between 1 (finite work) and 2 (finite variance)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One estimate and what it took.

    Attributes:
        value: unbiased, and by itself neither bounded nor positive.
        samples: paths drawn. scored: distinct ones that the model was asked for.
    """

    value: float
    samples: int
    scored: int


def unbiased_mean(
    quantity: Callable[[Ids], float],
    draw: Draw,
    score: Score,
    generator: np.random.Generator,
    *,
    first: int = FIRST,
) -> Estimate:
    """Unbiased estimate of E[quantity(T) | text].

    Args:
        generator: of the number of levels; `draw` has its own randomness.
    """
    # generator.random() is in [0, 1), so 1 - it is in (0, 1]: P(M >= m) = 2^(-1.5 m) exactly.
    levels = int(-np.log2(1.0 - generator.random()) / _DECAY)
    known: dict[Ids, float] = {}
    value = _ratio(_weighted(draw(first), quantity, score, known))
    samples = first
    for level in range(1, levels + 1):
        count = first * 2**level
        drawn = _weighted(draw(count), quantity, score, known)
        samples += count
        halves = (_ratio(drawn[: count // 2]) + _ratio(drawn[count // 2 :])) / 2.0
        value += (_ratio(drawn) - halves) * 2.0 ** (_DECAY * level)
    return Estimate(value, samples, len(known))


def _weighted(
    drawn: Sequence[tuple[Ids, float]],
    quantity: Callable[[Ids], float],
    score: Score,
    known: dict[Ids, float],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Rows of (log weight, quantity)."""
    fresh = sorted({ids for ids, _ in drawn} - known.keys())
    if fresh:
        known.update(zip(fresh, score(fresh), strict=True))
    return np.array([(known[ids] - log_q, quantity(ids)) for ids, log_q in drawn])


def _ratio(rows: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
    """Self-normalised mean; weights that are all 0 leave nothing to normalise, and the mean is plain."""
    best = rows[:, 0].max()
    weights = np.exp(rows[:, 0] - best) if np.isfinite(best) else np.ones(len(rows))
    return float((weights * rows[:, 1]).sum() / weights.sum())
