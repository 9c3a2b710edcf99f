"""Which cause explains a conviction best: `seed/wrong`, `weights/int4`, ... or none that is known.

Every cause is rated by how well it predicts what the replay of a dozen requests shows, given their slacks:

* *replayed*: the requests are scored again as if the cause had been at work (`hypotheses.py`). The right one
  leaves only numeric noise: the honest one, or a larger one where the real provider's quantizer, say, differs
  a little from ours. Temperature, seed, filters and templates are told apart in this way beyond doubt.
* *simulated*: what the profile's shadow providers left behind, for causes that need something unknown (the
  other model, the hidden prompt).
* the rest of the catalogue (`further_candidates`), where none of these leaves only honest noise: on a few
  requests at first, the best of it on all.
* *drafted*: a smaller model's guesses, where one is at hand (`drafted.py`).
* `accounting/filler`: honest noise around one stretch of anything (`filler.py`).
* `sampler/runner-up`: honest noise, and now and then the second best token, however far behind.
* `other`: noise of any scale and gross misses at any rate, so that a bad fit is not given a name.

Ratings are log-likelihoods of the same tokens' outcomes, and of the requests' fingerprints where they have
any (`states.py`); weights are their softmax under a flat prior. It moves no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from auditor.diagnosis.drafted import DRAFTED, at_any_rate, drafted_fits
from auditor.diagnosis.filler import FILLER, filler_fit
from auditor.diagnosis.hypotheses import MASK, candidates, further_candidates
from auditor.diagnosis.replaying import (
    Asked,
    Drafted,
    Supposed,
    Told,
    beside_guesses,
    chosen,
    counted,
    replayed_under,
    serves_declared_states,
)
from auditor.diagnosis.states import state_fits
from auditor.evidence import Calibration, log_prior
from auditor.noise_model import F64, RequestCounts, Slips, log_likelihoods, slip_log_likelihoods
from auditor.profile import Profile
from auditor.reference.deviations import CATALOGUE

if TYPE_CHECKING:
    from auditor.reference.loading import Sizes
    from auditor.replay import Reference, Scored

OTHER = "other"
RUNNER_UP = "sampler/runner-up"
_SLIP_RATES: F64 = np.array([3e-3, 1e-2, 3e-2, 1e-1])

_WIDER_STEPS = 11
FEW = 4
"""Requests on which the whole catalogue is tried; the best few of it are tried on all."""
_SHORTLIST = 3
CATALOGUE_SIZE = 1 << 24
"""Largest model, hidden size squared times layers, on which the whole catalogue is tried: each of a hundred
hypotheses costs a copy of the weights and a pass. It is a matter of the model, so that machines agree."""
_LEAST_WEIGHT = 0.01


def diagnose(
    usable: Sequence[Scored], profile: Profile, reference: Reference
) -> tuple[tuple[str, float], ...]:
    """(cause, weight) by falling weight, weights summing to at most 1; `other` is none of the known.

    Args:
        usable: requests that were scored, at least one.
    """
    return causes_of(chosen(usable, reference), profile, reference)


def causes_of(
    asked: Sequence[Asked], profile: Profile, reference: Reference
) -> tuple[tuple[str, float], ...]:
    """`diagnose` of these very requests."""
    told = [a.told for a in asked]
    substituted, drafted = beside_guesses(asked, reference)
    replayed = replayed_under(asked, candidates(), reference) | substituted
    if asks_catalogue(reference.model.config) and not is_explained(told, replayed, profile):
        further = further_candidates()
        ahead = replayed_under(asked[:FEW], further, reference)
        likeliest = shortlisted(told[:FEW], ahead, profile.calibration)
        replayed |= replayed_under(asked, [d for d in further if d.name in likeliest], reference)
    return rank_causes(told, replayed, drafted, profile)


def asks_catalogue(sizes: Sizes) -> bool:
    """Whether a model is small enough to be replayed under every deviation that can be."""
    return sizes.hidden_size**2 * sizes.num_hidden_layers <= CATALOGUE_SIZE


def shortlisted(
    told: Sequence[Told], replayed: Mapping[str, Supposed], calibration: Calibration
) -> list[str]:
    """The hypotheses that explain some requests best, and are worth asking about the others."""
    prior = _residual_prior(calibration)
    gains, _ = _state_fits(told, replayed)
    fits = {name: _fit(supposed, prior) + gains[name] for name, supposed in replayed.items()}
    return sorted(fits, key=lambda name: -fits[name])[:_SHORTLIST]


def rank_causes(
    told: Sequence[Told], replayed: Mapping[str, Supposed], drafted: Drafted, profile: Profile
) -> tuple[tuple[str, float], ...]:
    """(cause, weight) as `diagnose` returns them.

    Args:
        told: each request as declared. replayed: it under each hypothesis.
        drafted: it beside guesses; empty without a draft model.
    """
    rows = [one.stats for one in told]
    declared = [counted(stats) for stats in rows]
    gains, unknown = _state_fits(told, replayed)
    grid = log_likelihoods(declared).sum(axis=0)
    ratings = {OTHER: [float(logsumexp(_broad_prior() + grid)) + unknown]}
    seen = [(one.mode, counts) for one, counts in zip(told, declared, strict=True)]
    for cause, fit in simulated_fits(seen, profile).items():
        known = gains.get(cause, 0.0 if _computes_declared_states(cause) else unknown)
        ratings.setdefault(cause, []).append(fit + known)
    runners_up = (Slips.to_runner_up(counts) for counts in declared)
    slips = slip_log_likelihoods(runners_up, _SLIP_RATES) - np.log(len(_SLIP_RATES))
    ratings[RUNNER_UP] = [float(logsumexp(profile.calibration.posterior[..., None] + slips))]
    ratings[FILLER] = [filler_fit(rows, profile.calibration)]
    if drafted:
        ratings[DRAFTED] = drafted_fits(drafted, profile.calibration)
    prior = _residual_prior(profile.calibration)
    for cause, supposed in replayed.items():
        if list(supposed.counts) != declared:  # else it changes nothing in these requests
            # What another mask draws is not known.
            fit = _fit(supposed, at_any_rate(prior) if cause == MASK else prior)
            # Conventions of one cause, told in brackets, are not told apart.
            ratings.setdefault(cause.partition(" (")[0], []).append(fit + gains[cause])
    names = list(ratings)
    fits = np.array([logsumexp(ratings[name]) for name in names])
    weights = np.exp(fits - logsumexp(fits))
    ranked = sorted(zip(names, weights.tolist(), strict=True), key=lambda pair: -pair[1])
    return tuple((cause, weight) for cause, weight in ranked if weight >= _LEAST_WEIGHT)


def _fit(supposed: Supposed, prior: F64) -> float:
    return float(logsumexp(prior + log_likelihoods(supposed.counts).sum(axis=0)))


def _state_fits(told: Sequence[Told], replayed: Mapping[str, Supposed]) -> tuple[dict[str, float], float]:
    return state_fits([one.far for one in told], {name: s.far for name, s in replayed.items()})


def _computes_declared_states(cause: str) -> bool:
    return cause in CATALOGUE and serves_declared_states(CATALOGUE[cause])


def is_explained(told: Sequence[Told], replayed: Mapping[str, Supposed], profile: Profile) -> bool:
    """Whether a hypothesis leaves no more than honest noise: likelier as that than as noise of any scale.

    A smaller model's guesses are no such explanation: they are plausible tokens, on which whatever disturbs a
    model lands too, so the rest of the catalogue is still asked. Nor are tokens beside fingerprints: these
    may tell apart what tokens do not.

    Args:
        told, replayed: as `rank_causes` takes them.
    """
    if any(one.far is not None for one in told):
        return False
    for supposed in replayed.values():
        grid = log_likelihoods(supposed.counts).sum(axis=0)
        if logsumexp(profile.calibration.posterior + grid) > logsumexp(_broad_prior() + grid):
            return True
    return False


def simulated_fits(seen: Sequence[tuple[str, RequestCounts]], profile: Profile) -> dict[str, float]:
    """Log-likelihood of requests, each with its mode, under each cause that the profile simulated."""
    modes: dict[str, list[RequestCounts]] = {}
    for mode, counts in seen:
        modes.setdefault(mode, []).append(counts)
    fits = {}
    for cause, deviated in profile.deviations.items():
        known = {mode: deviated.requests.get(mode) for mode in modes}
        if all(known.values()):
            fits[cause] = sum(_predicted(known[mode] or (), counts) for mode, counts in modes.items())
    return fits


def _predicted(simulated: Sequence[RequestCounts], seen: Sequence[RequestCounts]) -> float:
    """Log-likelihood of requests given others of the same kind."""
    expected = log_likelihoods(simulated).sum(axis=0)
    return float(logsumexp(expected + log_likelihoods(seen).sum(axis=0)) - logsumexp(expected))


def _residual_prior(calibration: Calibration) -> F64:
    """Noise that the right hypothesis may leave: the honest one, or up to ten times its scale, [S, PI]."""
    honest = np.exp(calibration.posterior)
    last = np.arange(honest.shape[0])
    wider = [honest[np.maximum(last - steps, 0)] * (last >= steps)[:, None] for steps in range(_WIDER_STEPS)]
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(0.5 * honest + 0.5 * np.mean(wider, axis=0)))


def _broad_prior() -> F64:
    """Any noise scale and any rate of gross misses, equally."""
    shape = log_prior().shape
    return np.full(shape, -np.log(shape[0] * shape[1]))
