r"""A provider's standing over all its periods: one e-process, so that looking every week costs nothing. Pure.

Period j (1, 2, ...) has a share w_j = 6 / (pi^2 j^2), given out before its evidence is seen (`ledger.py`).
With

    e_j     e-value of period j alone: the mean of the tests that the policy counts
    A_j,k   e-value of the margins of periods j to k taken together (`evidence.py`), against one calibration

the standing after period k is

    S_k = 1/2 sum_{j<=k} w_j e_j  +  1/2 sum_{j<=k} w_j A_j,k

**Why it may be looked at in any week.** Decision 0015 bounds every e_j and A_j,k by a likelihood ratio M that
is a martingale from period j on; before it, M is the calibration's own ratio M_0, which has expectation 1 and
is the same in all of them. So S_k is at most the sum over *all* j of w_j M_j (for j > k: M_0), a non-negative
martingale with expectation sum_j w_j = 1, and P(S_k >= 1/alpha for any k) <= alpha by Ville's inequality. The
k at which one looks, or stops, may depend on all that came before.

**Why a mixture of beginnings.** A provider that was honest for months would have saved up so much in one
process over all periods that it could cheat for weeks unseen; and a product of the e_j, which share one
calibration, is no e-value. Here a process begins with every period: a change in week k is judged by A_k at
the price of 2/w_k, 6.1 nats in week 12 and 9.1 in week 52.

Evidence that a dispute has overturned is *void*: e_j of that period and every A that holds it become 0. Only
lowering a non-negative process keeps the promise.

**Bills** are held against the provider's own earlier ones (`bills.py`), which gives B_k with P(B_k >= c for
any k) <= 1/c and no calibration in it. A policy that counts them gives them their part b of alpha: the
standing is then max((1 - b) S_k, b B_k), and reaches 1/alpha with probability at most
(1 - b) alpha + b alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from auditor.evidence import Calibration, margin_log_e
from auditor.noise_model import F64
from auditor.schedules.bills import NO_TEST, Bills, BillTest, bill_test
from auditor.schedules.shares import share

LEAST_LOG_E = -700.0
"""What stands for the log of nothing: no period has been audited yet."""


@dataclass(frozen=True, slots=True)
class Margins:
    """What a period's margins say against one profile.

    Attributes:
        profile_id: whose calibration it is.
        audited: log-likelihood grid [S, PI], summed over the period's requests.
    """

    profile_id: str
    calibration: Calibration
    audited: F64


@dataclass(frozen=True, slots=True)
class PeriodEvidence:
    """One period, numbered from 1.

    Attributes:
        log_e: of the tests that count, bills aside; None where nothing was audited.
        bills: None where none were audited.
    """

    number: int
    log_e: float | None
    margins: tuple[Margins, ...] = ()
    bills: Bills | None = None
    void: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a provider stands after its newest period.

    Attributes:
        log_e: log of the standing, at least `LEAST_LOG_E`; an accusation from -log(alpha) on.
        suspicion: the largest log e-value that ends with this period, shares left aside: no level for an
            accusation, but reason to look harder.
        since: number of the period from which the evidence is strongest.
        by_replay, by_bills: logs of the two parts (1 - b) S_k and b B_k.
        strongest: number of the period from which the replays say most.
        bills: the test behind the second part.
    """

    log_e: float
    suspicion: float
    since: int
    by_replay: float = LEAST_LOG_E
    by_bills: float = LEAST_LOG_E
    strongest: int = 0
    bills: BillTest = NO_TEST

    def accuses(self, alpha: float) -> bool:
        """Whether it reaches 1/alpha."""
        return self.log_e >= -math.log(alpha)

    def accuses_by_replay(self, alpha: float) -> bool:
        """Whether its first part does."""
        return self.by_replay >= -math.log(alpha)

    def accuses_by_bills(self, alpha: float) -> bool:
        """Whether its second part does."""
        return self.by_bills >= -math.log(alpha)


def standing(
    periods: Sequence[PeriodEvidence], *, by_margins: bool = True, bills_part: float = 0.0
) -> Standing:
    """Where a provider stands.

    Args:
        periods: in order of their numbers; each number at most once.
        by_margins: whether margins count over several periods; without them e_j has the whole share.
        bills_part: b, of [0, 1].
    """
    if not periods:
        return Standing(LEAST_LOG_E, LEAST_LOG_E, 0)
    total, running = _by_replay(periods, by_margins=by_margins)
    strongest = int(running.argmax())
    since = periods[strongest].number
    by_replay = total + _log(1.0 - bills_part)
    voids = [n for n, period in enumerate(periods, start=1) if period.void]
    bills = bill_test([p.bills for p in periods], begin=max(voids, default=0)) if bills_part else NO_TEST
    by_bills = bills.log_e + _log(bills_part)
    suspicion = max(float(running.max()), bills.alone)
    least = [max(LEAST_LOG_E, value) for value in (max(by_replay, by_bills), suspicion, by_replay, by_bills)]
    newest = bills.since if by_bills > by_replay else since
    return Standing(least[0], least[1], newest, least[2], least[3], since, bills)


def _log(part: float) -> float:
    return math.log(part) if part > 0.0 else -math.inf


def _by_replay(periods: Sequence[PeriodEvidence], *, by_margins: bool) -> tuple[float, F64]:
    """Log S_k, and the largest log e-value of each beginning j."""
    shares = np.log([share(period.number) for period in periods])
    alone = np.array([-np.inf if p.void or p.log_e is None else p.log_e for p in periods])
    running = np.full(len(periods), -np.inf)
    running[-1] = alone[-1]
    if not by_margins:
        total = float(logsumexp(shares + alone))
    else:
        together = _together(periods)
        running = np.maximum(running, together)
        total = float(logsumexp([shares + alone, shares + together]) - math.log(2.0))
    return total, running


def _together(periods: Sequence[PeriodEvidence]) -> F64:
    """Log A_j,k for every j, k the newest: the m-th profile ever named has the share 6 / (pi^2 m^2)."""
    profiles = dict.fromkeys(m.profile_id for period in periods for m in period.margins)
    total = np.full(len(periods), -np.inf)
    for number, profile_id in enumerate(profiles, start=1):
        own = [[m for m in period.margins if m.profile_id == profile_id] for period in periods]
        calibration = next(m.calibration for found in own for m in found)
        nothing = np.zeros_like(calibration.grid)
        sums = np.array([sum((m.audited for m in found), nothing) for found in own])
        log_e = margin_log_e(calibration, np.flip(np.cumsum(np.flip(sums, axis=0), axis=0), axis=0))
        total = np.logaddexp(total, math.log(share(number)) + log_e)
    voids = [n for n, period in enumerate(periods) if period.void]
    if voids:
        total[: voids[-1] + 1] = -np.inf
    return np.asarray(total)
