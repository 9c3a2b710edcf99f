"""Audits of pooled requests, many at a time: the fused e-value of `auditor.verdict`, from stored counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import beta

from auditor.evidence import STOP_PRIOR, Calibration, margin_log_e, outside_log_e
from auditor.gathering import STOP_DECISIONS, Evidence, fused_log_e
from auditor.noise_model import log_likelihoods


@dataclass(frozen=True)
class Requests:
    """A pool as arrays over its n requests.

    Attributes:
        grids: log-likelihoods [n, S, PI]. tokens, outside, filtered, findings: [n].
        margins: winsorised later; a list of the misses' margins for each request.
    """

    grids: np.ndarray
    tokens: np.ndarray
    outside: np.ndarray
    filtered: np.ndarray
    findings: np.ndarray
    margins: list[np.ndarray]

    @classmethod
    def of(cls, items):
        return cls(
            log_likelihoods(i.counts for i in items),
            np.array([i.tokens for i in items], np.float64),
            np.array([i.outside for i in items], np.float64),
            np.array([i.filtered for i in items], np.float64),
            np.array([i.findings > 0 for i in items], np.float64),
            [np.array([m[1] for m in i.misses]) for i in items],
        )

    def __len__(self):
        return len(self.tokens)

    def clipped_sums(self, clip):
        """Sum of winsorised margins of each request, [n]."""
        return np.array([np.minimum(m, clip).sum() for m in self.margins])


def fused_on_the_way(pool, audited, calibration, calibrated):
    """Log of the fused e-value after each of the audited requests, [len(audited)].

    Args:
        pool, audited: the audited requests, as indices into it, in order.
        calibration, calibrated: the same of the honest requests that calibrate.
    """
    honest = Calibration.of_grids(calibration.grids[calibrated])
    found = margin_log_e(honest, np.cumsum(pool.grids[audited], axis=0))
    outside, filtered, ends = (np.cumsum(a[audited]) for a in (pool.outside, pool.filtered, pool.findings))
    known = [a[calibrated].sum() for a in (calibration.outside, calibration.filtered, calibration.findings)]
    fused = np.empty(len(audited))
    for n in range(len(audited)):
        evidence = [Evidence("token-difr", 0.0, float(found[n]))]
        if filtered[n] and known[1]:
            log_e = outside_log_e(int(known[0]), int(known[1]), int(outside[n]), int(filtered[n]))
            evidence.append(Evidence("outside-support", 0.0, log_e))
        log_e = outside_log_e(int(known[2]), len(calibrated), int(ends[n]), n + 1, STOP_PRIOR)
        evidence.append(Evidence(STOP_DECISIONS, 0.0, log_e))
        fused[n] = fused_log_e(evidence)
    return fused


def upper_bound(hits, total, level=0.95):
    """One-sided Clopper-Pearson bound of a rate."""
    return 1.0 if hits >= total else float(beta.ppf(level, hits + 1, total - hits))


def interval(hits, total):
    """Two-sided 95 % Clopper-Pearson interval of a rate."""
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, total - hits + 1))
    high = 1.0 if hits == total else float(beta.ppf(0.975, hits + 1, total - hits))
    return low, high


def mean_log_e(log_e):
    """Log of the mean e-value: at most about 0 for honest providers."""
    return float(logsumexp(log_e) - math.log(len(log_e)))
