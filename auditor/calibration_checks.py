"""Is what is handed in as honest traffic of one kind? Noise that is let into a null acquits later.

Every check is the verdict's own e-value (`evidence.py`), turned on the calibration itself:

* *outliers*: a request that the others would convict, alpha shared among all. One request that was served
  otherwise, or joined wrongly, is found; noise that was mixed into every request is not.
* *drift*: the later half judged by the earlier one.
* *disagreement*: two calibrations of one recipe from independent sources, each judged by the other. This is
  what finds a source that is noisier throughout, so a null for accusations should have two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import logsumexp

from auditor.errors import CalibrationSuspectError, OptionError
from auditor.evidence import Calibration, margin_log_e
from auditor.noise_model import F64, RequestCounts, log_likelihoods
from auditor.profile import Profile
from auditor.result import e_value

ALPHA = 0.001
"""At which honest traffic is suspected, over all requests together; of drift and of disagreement alike."""

_FEWEST = 16  # requests below which a half of them says nothing


def outliers(grids: F64) -> tuple[int, ...]:
    """Indices of requests that the others convict, of log-likelihood grids [R, S, PI]."""
    if len(grids) < 2:
        return ()
    bar = np.log(len(grids) / ALPHA)
    others = Calibration.leaving_one_out(grids)
    return tuple(i for i, rest in enumerate(others) if margin_log_e(rest, grids[i]) >= bar)


def drift_log_e(grids: F64) -> float:
    """Log e-value of the later half of the requests against the earlier; 0 for fewer than sixteen."""
    half = len(grids) // 2
    if len(grids) < _FEWEST:
        return 0.0
    return float(margin_log_e(Calibration.of_grids(grids[:half]), grids[half:].sum(axis=0)))


def disagreement_log_e(one: Iterable[RequestCounts], other: Iterable[RequestCounts]) -> float:
    """Log e-value of two sets of honest requests, each against the other: the mean of both."""
    first, second = log_likelihoods(one), log_likelihoods(other)
    pairs = ((first, second), (second, first))
    directed = [float(margin_log_e(Calibration.of_grids(a), b.sum(axis=0))) for a, b in pairs]
    return float(logsumexp(directed) - np.log(len(directed)))


def check_sources(own: Profile, other: Profile, *, where: str) -> None:
    """See that two profiles can both be honest.

    Raises:
        OptionError: they are of different recipes or models.
        CalibrationSuspectError: one calls the other dishonest.
    """
    if own.key != other.key:
        raise OptionError(
            f"is of another model, recipe or reference: {other.key.provider_recipe} ({other.key.family})",
            where=where,
            fix="compare sources of one recipe",
        )
    log_e = disagreement_log_e(own.honest, other.honest)
    if log_e >= -np.log(ALPHA):
        raise CalibrationSuspectError(
            f"the two sources cannot both be honest: noise scale {own.noise_scale[0]:.2g} logits here, "
            f"{other.noise_scale[0]:.2g} there (e-value {e_value(log_e):.2g})",
            where=where,
            fix="find out which is noisier and why; --keep-suspects if both are right",
        )


def check_calibration(requests: Sequence[RequestCounts], grids: F64, where: Sequence[str]) -> None:
    """See that requests look like traffic of one kind.

    Args:
        grids: their log-likelihoods [R, S, PI]. where: place of each request in the log.

    Raises:
        CalibrationSuspectError: outliers, or drift.
    """
    apart = outliers(grids)
    if apart:
        raise CalibrationSuspectError(
            f"{len(apart)} of {len(requests)} requests do not look like the others, the first with "
            f"{requests[apart[0]].mismatches} of {requests[apart[0]].tokens} tokens that do not match",
            where=where[apart[0]],
            fix="leave out what was not served honestly; --keep-suspects if all of it was",
        )
    if drift_log_e(grids) >= -np.log(ALPHA):
        raise CalibrationSuspectError(
            "the later half of the requests is noisier than the earlier half",
            where=where[len(where) // 2],
            fix="calibrate each stretch by itself; --keep-suspects if it is one recipe",
        )
