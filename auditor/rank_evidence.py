"""An e-value from ranks: are audited requests further from the reference than honest ones? Pure.

Null, exactly: there are numbers X_1 ... X_m such that the n calibration distances and the X together are
exchangeable (any order of the n + m requests is as likely as any other), and each audited distance is at most
`TOLERANCE` times its X. So an honest provider may differ from the calibration by that factor in any request,
and nothing is assumed of the distribution. A request is one unit, however many tokens it has. What the null
does not forgive is honest traffic whose distances are more than that factor larger as a whole (another
engine, another dtype, far longer contexts): calibrate on traffic like the audited.

Statistic: read the pooled distances from the largest down. Under the null each step takes an audited request
with probability m_i / (n_i + m_i), of those that remain; under the alternative the audited ones weigh theta
times as much. The likelihood ratio is an e-value for every theta, so the mean over a grid of theta is one.
It can only grow when an audited distance grows, which is why the tolerance is sound, and ties count as
calibration first, which can only lower it. At best it is about C(n + m, m) / 10: few calibration requests cap
it by themselves. Source: the safe logrank test, ter Schure, Perez-Ortiz, Ly, Grunwald, arXiv 2011.06931.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from auditor.noise_model import F64

TOLERANCE = 1.6
"""Factor by which an honest provider's distances may exceed the calibrated ones."""

_LOG_WEIGHTS: F64 = np.log(2.0) * np.arange(1, 11)  # theta = 2, 4, ... 1024


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
    audited_left = m - np.cumsum(taken, axis=1) + taken
    calibration_left = n - np.cumsum(~taken, axis=1) + ~taken
    steps = np.log(calibration_left + audited_left).sum(axis=1)
    ratios = [
        steps - np.log(calibration_left + weight * audited_left).sum(axis=1) + m * np.log(weight)
        for weight in np.exp(_LOG_WEIGHTS)
    ]
    return np.asarray(logsumexp(ratios, axis=0) - np.log(len(_LOG_WEIGHTS)))
