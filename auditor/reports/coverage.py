"""What share of requests a sample must have met: exact hypergeometric bounds. Pure.

If K of N requests are cheated and n are drawn alike, none is met with probability
C(N-K, n) / C(N, n) (sampling without replacement). The bound is the smallest K for which one is met with
the wanted probability. It says that a cheated request *was in the sample*, not that it convicts by itself.
"""

from __future__ import annotations

import math


def missed_probability(population: int, cheated: int, sampled: int) -> float:
    """Probability that a uniform sample without replacement holds none of the cheated requests."""
    if sampled + cheated > population:
        return 0.0
    log = math.lgamma
    rest = population - cheated
    return math.exp(
        log(rest + 1) - log(rest - sampled + 1) - log(population + 1) + log(population - sampled + 1)
    )


def least_met(population: int, sampled: int, power: float) -> int | None:
    """Smallest number of cheated requests of which a sample holds one with this probability.

    None where even all of them would not be met: nothing was sampled.
    """
    if sampled <= 0 or population <= 0:
        return None
    low, high = 1, population
    while low < high:
        middle = (low + high) // 2
        if missed_probability(population, middle, min(sampled, population)) <= 1.0 - power:
            high = middle
        else:
            low = middle + 1
    return low
