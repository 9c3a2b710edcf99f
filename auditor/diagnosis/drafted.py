"""Causes that a smaller model of the same vocabulary explains: it was served, or its guesses were let stand.

A provider that speculates and verifies loosely returns, now and then, what its draft model guessed. With
that model at hand its guesses are replayed like any token, drawn as engines draw them: by the noise of the
position, by noise further on (`DRAFTS_AHEAD`), or the likeliest one. So the cause is named only where the
unexpected tokens *are* the guesses; rules that put another draw in place of a guess are explained in part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from auditor.evidence import Calibration
from auditor.noise_model import F64, Slips, slip_log_likelihoods
from auditor.reference.head import RowStats
from auditor.reference.noise import DRAFTS_AHEAD, GumbelPosition
from auditor.reference.request import Request
from auditor.reference.sampling import SamplingSpec

DRAFTED = "acceptance/drafted"
SUBSTITUTED = "model/substituted (draft)"
"""Everything was the draft model's: a hypothesis like any that is replayed."""

POSITION, AHEAD, LIKELIEST = "noise of the position", "noise further on", "likeliest"

_RATES: F64 = np.array([0.01, 0.03, 0.1, 0.3, 0.6, 0.9])
"""At which a guess stands that the sampler would not have returned."""


def guessing(request: Request) -> dict[str, Request]:
    """The request as a draft model may sample it, by how it draws."""
    likeliest = SamplingSpec(temperature=0.0, max_tokens=request.spec.max_tokens)
    found = {POSITION: request, LIKELIEST: replace(request, spec=likeliest)}
    if isinstance(request.scheme, GumbelPosition):
        found[AHEAD] = replace(request, scheme=replace(request.scheme, ahead=DRAFTS_AHEAD))
    return found


def slips_to(stats: RowStats, guess: npt.NDArray[np.int64]) -> Slips:
    """One request as declared, beside a guess at each of its tokens [n]."""
    says = stats.evidence
    taken = stats.claimed[says] == guess[says]
    return Slips.of(stats.slack[says], stats.margin[says], stats.matched[says], taken)


def drafted_fits(ways: Mapping[str, Sequence[Slips]], calibration: Calibration) -> list[float]:
    """Log-likelihood of the requests for each way of guessing: honest noise, and guesses that stand.

    Half of the prior allows for any rate of gross misses: what stands where a guess was turned down may be
    another draw of what is left.
    """
    prior = at_any_rate(calibration.posterior)
    likelihoods = (slip_log_likelihoods(slips, _RATES) - np.log(len(_RATES)) for slips in ways.values())
    return [float(logsumexp(prior[..., None] + one)) for one in likelihoods]


def at_any_rate(prior: F64) -> F64:
    """Log-weights [S, PI]: half as they are, half with any rate of gross misses."""
    even = logsumexp(prior, axis=1, keepdims=True) - np.log(prior.shape[1])
    return np.asarray(np.logaddexp(prior, even) - np.log(2.0))
