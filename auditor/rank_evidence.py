"""An e-value from ranks: are audited requests further from the reference than honest ones? Pure.

Null, exactly: there are numbers X_1 ... X_m such that the n calibration distances and the X together are
exchangeable (any order of the n + m requests is as likely as any other), and each audited distance is at most
`TOLERANCE` times its X. So an honest provider may differ from the calibration by that factor in any request,
and nothing is assumed of the distribution. A request is one unit, however many tokens it has. What the null
does not forgive is honest traffic whose distances are more than that factor larger as a whole (another
engine, another dtype, far longer contexts): calibrate on traffic like the audited.

Statistic: how many times likelier the order of the pooled distances is than under the null, for two kinds of
dishonest providers, half of the weight each.

* All requests are further off. Read from the largest down, each step takes an audited request with the
  probability that it would have if each weighed theta times a calibrated one, of those that remain.
  Source: the safe logrank test, ter Schure, Perez-Ortiz, Ly, Grunwald, arXiv 2011.06931.
* Some requests are. A share p of the audited lies where honest distances lie with probability q < p, and
  both sides are else alike. Where in the order that tail ends is not known and is summed over: with
  c_j calibrated and a_j audited ones among the first j of N,
  sum_j C(N, j) q^c_j (1-q)^(n-c_j) p^a_j (1-p)^(m-a_j).

Each is the likelihood of ranks under a fixed law of single requests beside that of the null. Orders of more
requests contain those of fewer, so the ratio is a martingale in m, and one may look after each request. It
can only grow when an audited distance grows, which is why the tolerance is sound, and ties count as
calibration first, which can only lower it. At best it is about C(n + m, m) / 20: few calibration requests cap
it by themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, logsumexp

from auditor.noise_model import F64

TOLERANCE = 1.6
"""Factor by which an honest provider's distances may exceed the calibrated ones."""

_LOG_WEIGHTS: F64 = np.log(2.0) * np.arange(1, 11)  # theta = 2, 4, ... 1024
_TAILS = (1 / 1024, 1 / 64, 1 / 8)  # q
_SHARES = (0.02, 0.1, 0.4, 0.9)  # p, where it is twice q at least


def rank_log_e(calibration: F64, audited: F64, *, tolerance: float = TOLERANCE) -> float:
    """Log e-value of audited distances [m] beside honest ones [n]; 0 when either is empty.

    Both are finite and at least 0, one for each request.
    """
    return float(rank_log_es(calibration, np.asarray(audited)[None], tolerance=tolerance)[0])


def rank_log_es(calibration: F64, audited: F64, *, tolerance: float = TOLERANCE) -> F64:
    """`rank_log_e` of several audits of as many requests each, [A, m] -> [A]."""
    n, (audits, m) = len(calibration), audited.shape
    if n == 0 or m == 0:
        return np.zeros(audits)
    pooled = np.concatenate([np.broadcast_to(calibration, (audits, n)), audited / tolerance], axis=1)
    # Stable, so that in a tie calibration (which comes first) is taken first.
    taken = np.argsort(-pooled, axis=1, kind="stable") >= n
    return np.asarray(np.logaddexp(_all_further(taken, m), _some_further(taken, m)) - np.log(2.0))


def _all_further(taken: npt.NDArray[np.bool_], m: int) -> F64:
    """Log-likelihood ratio if each audited request weighs theta, mean over theta.

    Args:
        taken: [A, n + m], whether an order's steps, from the largest distance down, take one of m audited.
    """
    n = taken.shape[1] - m
    audited_left = m - np.cumsum(taken, axis=1) + taken
    calibration_left = n - np.cumsum(~taken, axis=1) + ~taken
    steps = np.log(calibration_left + audited_left).sum(axis=1)
    ratios = [
        steps - np.log(calibration_left + weight * audited_left).sum(axis=1) + m * np.log(weight)
        for weight in np.exp(_LOG_WEIGHTS)
    ]
    return np.asarray(logsumexp(ratios, axis=0) - np.log(len(_LOG_WEIGHTS)))


def _some_further(taken: npt.NDArray[np.bool_], m: int) -> F64:
    """Log-likelihood ratio if a share p of the audited is in a tail that honest ones reach with q.

    Mean over p and q; arguments as `_all_further`'s.
    """
    audits, size = taken.shape
    first = np.arange(size + 1)
    audited = np.concatenate([np.zeros((audits, 1)), np.cumsum(taken, axis=1)], axis=1)
    calibrated = first - audited
    orders = gammaln(size + 1) - gammaln(first + 1) - gammaln(size - first + 1)
    ratios = []
    for q in _TAILS:
        honest = orders + calibrated * np.log(q) + (size - m - calibrated) * np.log1p(-q)
        for p in _SHARES:
            if p >= 2 * q:
                others = audited * np.log(p) + (m - audited) * np.log1p(-p)
                ratios.append(logsumexp(honest + others, axis=1))
    return np.asarray(logsumexp(ratios, axis=0) - np.log(len(ratios)))
