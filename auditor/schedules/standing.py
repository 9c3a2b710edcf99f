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
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from auditor.evidence import Calibration, margin_log_e
from auditor.noise_model import F64

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
    """One period, numbered from 1. `log_e`: of the tests that count, None where nothing was audited."""

    number: int
    log_e: float | None
    margins: tuple[Margins, ...] = ()
    void: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a provider stands after its newest period.

    Attributes:
        log_e: log of S_k, at least `LEAST_LOG_E`; an accusation from -log(alpha) on.
        suspicion: the largest log e-value that ends with this period, shares left aside: no level for an
            accusation, but reason to look harder.
        since: number of the period from which the evidence is strongest.
    """

    log_e: float
    suspicion: float
    since: int

    def accuses(self, alpha: float) -> bool:
        """Whether it reaches 1/alpha."""
        return self.log_e >= -math.log(alpha)


def share(number: int) -> float:
    """w_j of the period with this number."""
    return 6.0 / (math.pi * number) ** 2


def level(alpha: float, number: int) -> float:
    """The alpha at which the period's own audit is judged: what an alpha ledger gives its entry `number`."""
    return alpha * share(number)


def standing(periods: Sequence[PeriodEvidence], *, by_margins: bool = True) -> Standing:
    """Where a provider stands.

    Args:
        periods: in order of their numbers; each number at most once.
        by_margins: whether margins count over several periods; without them e_j has the whole share.
    """
    if not periods:
        return Standing(LEAST_LOG_E, LEAST_LOG_E, 0)
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
    strongest = int(running.argmax())
    return Standing(
        max(LEAST_LOG_E, total), max(LEAST_LOG_E, float(running[strongest])), periods[strongest].number
    )


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
