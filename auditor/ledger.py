"""Many audits, one error rate: an alpha ledger for accusations, e-BH for overviews. Pure.

**Ledger.** Accusations are made one after another, on providers, models and days not known beforehand. The
k-th entry opened may accuse at level alpha * 6 / (pi^2 k^2); these levels add up to alpha over all k for
ever, so by the union bound the probability that *any* honest provider is ever accused is at most alpha,
however the audits depend on each other and whatever decides which to open next, as long as an entry's level
is fixed before its evidence is seen. An entry may be looked at again and again, because its evidence is an
e-process: P(sup e >= 1/level) <= level (Ville).

**e-BH** (Wang and Ramdas, JRSS-B 84, 2022). Among K e-values, those at least K / (alpha k) are called, k
being the largest count that can be. If FDP is the share of honest ones among the called: each called one has
e_i >= K / (alpha k), so FDP = sum over honest 1[called] / k <= sum over honest e_i alpha / K, whose
expectation is at most alpha. No independence is used. A false discovery *rate* is a statement about a list;
no single provider may be accused on it. Hence: overviews only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from auditor.errors import OptionError


@dataclass(frozen=True, slots=True)
class Entry:
    """One planned accusation: what is audited, and the level it got when it was opened."""

    number: int
    subject: str
    alpha: float

    def accuses(self, log_e: float) -> bool:
        """Whether this evidence, or the largest so far of a growing log, accuses."""
        return log_e >= -math.log(self.alpha)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Levels given out so far; `opened` yields a new ledger."""

    alpha: float
    entries: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise OptionError(f"alpha {self.alpha} is outside (0, 1)", where="--alpha")

    @property
    def spent(self) -> float:
        """Sum of the levels given out; always below `alpha`."""
        return math.fsum(entry.alpha for entry in self.entries)

    def opened(self, subject: str) -> tuple[Ledger, Entry]:
        """Give the next level to an audit whose evidence nobody has seen yet."""
        number = len(self.entries) + 1
        entry = Entry(number, subject, self.alpha * 6.0 / (math.pi * number) ** 2)
        return Ledger(self.alpha, (*self.entries, entry)), entry


def e_bh(log_es: Sequence[float], alpha: float) -> tuple[int, ...]:
    """Indices called at false discovery rate alpha, ascending.

    Raises:
        OptionError: alpha outside (0, 1).
    """
    if not 0.0 < alpha < 1.0:
        raise OptionError(f"alpha {alpha} is outside (0, 1)", where="--alpha")
    count = len(log_es)
    order = sorted(range(count), key=lambda i: (-log_es[i], i))
    fits = [k for k in range(1, count + 1) if log_es[order[k - 1]] >= math.log(count / (alpha * k))]
    return tuple(sorted(order[: fits[-1]])) if fits else ()
