r"""A provider's bills against its own earlier ones, which convict where no tolerance may. Pure.

A response's *excess* is what was billed beyond both its logged ids, which the replay vouches for, and its
text (`token_counts/unaccounted.py`). How texts are split, how long they are and in what language is all in
the ids, so an honest excess is a habit: an end mark, a newline that was stripped.

**Honest** means here: there is one law P so that the excess of every response, whatever came before it, lies
between P and P + `TOLERATED` tokens in stochastic order. So habits may differ between requests, change at
any time and follow the traffic, by `TOLERATED` tokens a response; that is all that is taken for granted.

Process (i, j) holds the responses from period j on against the first n = 20 * 2^i. T is a large order
statistic of those, the (n - r)-th smallest, and each later response is *beyond* it or not: excess > T +
`TOLERATED`. The chance of that has, before anything is seen, at most a Beta(r + 1, n - r) law (Wilks 1941),
under which a sequence with x of m responses beyond has probability B(r+1+x, n-r+m-x) / B(r+1, n-r): the luck
of the first responses is in it. Against it is held a provider that pads any share of its responses, large
shares sooner than small ones:

    L = [B(r+1+x, 1+m-x) / B(r+1, 1)] / [B(r+1+x, n-r+m-x) / B(r+1, n-r)]

L grows with x, because the ratio of the two Beta densities grows. So where responses are beyond less often
than under P, L is at most that of a sequence which is beyond exactly as often (coupling), and that is a
non-negative martingale of mean 1: P(L ever reaches c) <= 1/c (Ville 1939). The mean over two r keeps this.
n is fixed beforehand, and a process begins with a period: how many responses a period has may depend on all
before.

Every process has a share w_i w_j, and shares add up to 1, so that max w_i w_j L reaches c with probability at
most 1/c (the union's bound; the processes share no filtration in which their sum would be a martingale).

An overturned period b takes the processes from the beginning up to then away; new ones begin, whose first
responses are those from b on, and all of them share w_(b+1): what was found to be honest is the new habit.

A bill so far beyond the text that it must be one for hidden tokens is not padding beyond doubt. Where a
period has such a bill, none of its responses counts as beyond; among first responses it is arbitrarily
large. Both only lower L.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaln

from auditor.noise_model import F64
from auditor.schedules.shares import share

TOLERATED = 3
"""Tokens a response by which honest habits of billing may differ, at any time and for any reason."""

LEAST_FIRST = 20
"""First responses, without which nothing is said of bills."""

_ABOVE = (0.0, 0.05)
"""Shares of the first responses that lie above T: none, and some, should a few be odd."""


@dataclass(frozen=True, slots=True)
class Bills:
    """What a period's audited responses were billed.

    Attributes:
        excesses: tokens beyond ids and text, at least 0, of each response that could be counted, in order;
            infinite where they can only be hidden tokens.
    """

    excesses: tuple[float, ...] = ()

    @property
    def hides(self) -> bool:
        """Whether hidden tokens were billed."""
        return math.inf in self.excesses

    def beyond(self, limit: float) -> int:
        """Responses above the limit, as far as they are padding beyond doubt."""
        return 0 if self.hides else sum(excess > limit for excess in self.excesses)


@dataclass(frozen=True, slots=True)
class BillTest:
    """The process that says most after the newest period.

    Attributes:
        log_e: log of its share of the bound's; -inf where there is no process.
        alone: without its share.
        since: number of the period with which it begins; 0 where there is none.
        first, responses, beyond: n, m and x. allowed: T + `TOLERATED`, tokens a response; -1 where
            there is no such number.
        most: what `log_e` would be if every response since then were beyond: what could have been shown.
    """

    log_e: float = -math.inf
    alone: float = -math.inf
    since: int = 0
    first: int = 0
    responses: int = 0
    beyond: int = 0
    allowed: int = 0
    most: float = -math.inf


NO_TEST = BillTest()


def bill_test(periods: Sequence[Bills | None], *, begin: int = 0) -> BillTest:
    """Hold a provider's bills against its first ones.

    Args:
        periods: bills of the periods numbered 1, 2, ...; None where none were audited.
        begin: number of the newest overturned period, 0 without one.
    """
    found = [bills or Bills() for bills in periods]
    base = max(0, begin - 1)
    before = [excess for bills in found[base:] for excess in bills.excesses]
    sizes = np.array([len(bills.excesses) for bills in found], np.int64)
    known = np.cumsum(sizes[base:]) - sizes[base:]
    responses = _from_each_on(sizes)
    tests = [NO_TEST]
    for i in range(len(before).bit_length()):
        n = LEAST_FIRST * 2**i
        starts = [int(base + p) for p in np.flatnonzero(known >= n) if responses[base + p]]
        if not starts:
            continue
        limits = [_Limit.of(np.sort(np.array(before[:n], np.float64)), above, found) for above in _ABOVE]
        for start in starts:
            shared = math.log(share(begin + 1) * share(i + 1) * share(start + 1))
            tests.append(_process(limits, n, int(responses[start]), start, shared))
    return max(tests, key=lambda test: (test.log_e, -test.since))


@dataclass(frozen=True, slots=True)
class _Limit:
    """T + `TOLERATED` for one r, and from each period on the responses beyond it."""

    r: int
    tokens: float
    beyond: npt.NDArray[np.int64]

    @classmethod
    def of(cls, first: F64, above: float, periods: Sequence[Bills]) -> _Limit:
        """From the first responses, sorted."""
        r = math.floor(above * len(first))
        tokens = float(first[len(first) - 1 - r]) + TOLERATED
        return cls(r, tokens, _from_each_on(np.array([bills.beyond(tokens) for bills in periods], np.int64)))


def _from_each_on(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.flip(np.cumsum(np.flip(counts)))


def _process(limits: Sequence[_Limit], n: int, m: int, start: int, shared: float) -> BillTest:
    each = [float(log_l(n, one.r, m, int(one.beyond[start]))) for one in limits]
    most = [-math.inf if math.isinf(one.tokens) else float(log_l(n, one.r, m, m)) for one in limits]
    alone, strongest = _mean(each), limits[int(np.argmax(each))]
    allowed = -1 if math.isinf(strongest.tokens) else int(strongest.tokens)
    beyond = int(strongest.beyond[start])
    return BillTest(shared + alone, alone, start + 1, n, m, beyond, allowed, shared + _mean(most))


def _mean(logs: Sequence[float]) -> float:
    return float(np.logaddexp.reduce(logs) - math.log(len(logs)))


def log_l(n: int, r: int, m: npt.ArrayLike, x: npt.ArrayLike) -> F64:
    """Log L of x out of m responses beyond the (n - r)-th smallest of the first n; m and x may be arrays."""
    m, x = np.asarray(m, np.float64), np.asarray(x, np.float64)
    padded = betaln(r + 1 + x, 1 + m - x) - betaln(r + 1, 1)
    honest = betaln(r + 1 + x, n - r + m - x) - betaln(r + 1, n - r)
    return np.asarray(padded - honest)
