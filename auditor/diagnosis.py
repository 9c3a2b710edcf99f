"""Which cause explains a conviction best: `seed/wrong`, `weights/int4`, ... or none that is known.

Every cause is rated by how well it predicts what the replay of a dozen requests shows, given their slacks:

* *replayed*: the requests are scored again as if the cause had been at work (`hypotheses.py`). The right one
  leaves only numeric noise: the honest one, or a larger one where the real provider's quantizer, say, differs
  a little from ours. Temperature, seed, filters and templates are told apart in this way beyond doubt.
* *simulated*: what the profile's shadow providers left behind, for causes that need something unknown (the
  other model, the hidden prompt).
* the rest of the catalogue (`further_candidates`), where none of these leaves only honest noise: on a few
  requests at first, the best of it on all.
* `sampler/runner-up`: honest noise, and now and then the second best token, however far behind.
* `other`: noise of any scale and gross misses at any rate, so that a bad fit is not given a name.

Ratings are log-likelihoods of the same tokens' outcomes; weights are their softmax under a flat prior. It
moves no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from auditor.errors import AuditError
from auditor.evidence import Calibration, log_prior
from auditor.hypotheses import can_be_replayed, candidates, further_candidates, other_schemes
from auditor.noise_model import (
    F64,
    SLIP_RATES,
    RequestCounts,
    count_request,
    log_likelihoods,
    slip_log_likelihoods,
)
from auditor.preparation import is_speculated, prepare
from auditor.profile import Profile
from auditor.reference.deviations import HONEST, Deviation
from auditor.reference.head import RowStats
from auditor.reference.request import Request
from auditor.replay import prompt_of

if TYPE_CHECKING:
    from auditor.reference.loading import Sizes
    from auditor.replay import Reference, Scored

OTHER = "other"
RUNNER_UP = "sampler/runner-up"

# Simulated causes are only alike, not equal, to real ones: more requests would be sure of the wrong one.
_REQUESTS = 12
_TOKENS = 2_000
_SLOW_TOKENS = 150  # where every hypothesis scores its rows one by one
_WIDER_STEPS = 11
FEW = 4
"""Requests on which the whole catalogue is tried; the best few of it are tried on all."""
_SHORTLIST = 3
CATALOGUE_SIZE = 1 << 24
"""Largest model, hidden size squared times layers, on which the whole catalogue is tried: each of a hundred
hypotheses costs a copy of the weights and a pass. It is a matter of the model, so that machines agree."""
_LEAST_WEIGHT = 0.01


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request as declared, with what rebuilds its prompt."""

    scored: Scored
    request: Request


def diagnose(
    usable: Sequence[Scored], profile: Profile, reference: Reference
) -> tuple[tuple[str, float], ...]:
    """(cause, weight) by falling weight, weights summing to at most 1; `other` is none of the known.

    Args:
        usable: requests that were scored, at least one.
    """
    chosen = _chosen(usable, reference)
    seen = [(a.scored.mode, a.scored.counts) for a in chosen if a.scored.counts is not None]
    replayed = _replayed(chosen, candidates(), reference)
    if asks_catalogue(reference.model.config) and not is_explained(replayed, profile.calibration):
        further = further_candidates()
        likeliest = shortlisted(_replayed(chosen[:FEW], further, reference), profile.calibration)
        replayed |= _replayed(chosen, [d for d in further if d.name in likeliest], reference)
    return rank_causes(seen, replayed, profile)


def asks_catalogue(sizes: Sizes) -> bool:
    """Whether a model is small enough to be replayed under every deviation that can be."""
    return sizes.hidden_size**2 * sizes.num_hidden_layers <= CATALOGUE_SIZE


def shortlisted(replayed: Mapping[str, Sequence[RequestCounts]], calibration: Calibration) -> list[str]:
    """The hypotheses that explain some requests best, and are worth asking about the others."""
    prior = _residual_prior(calibration)
    fits = {name: logsumexp(prior + log_likelihoods(c).sum(axis=0)) for name, c in replayed.items()}
    return sorted(fits, key=lambda name: -fits[name])[:_SHORTLIST]


def rank_causes(
    seen: Sequence[tuple[str, RequestCounts]],
    replayed: Mapping[str, Sequence[RequestCounts]],
    profile: Profile,
) -> tuple[tuple[str, float], ...]:
    """(cause, weight) as `diagnose` returns them.

    Args:
        seen: mode and counts of each request as declared. replayed: its counts under each hypothesis.
    """
    declared = [counts for _, counts in seen]
    grid = log_likelihoods(declared).sum(axis=0)
    ratings = {OTHER: [float(logsumexp(_broad_prior() + grid))]}
    for cause, fit in simulated_fits(seen, profile).items():
        ratings.setdefault(cause, []).append(fit)
    slips = slip_log_likelihoods(declared) - np.log(len(SLIP_RATES))
    ratings[RUNNER_UP] = [float(logsumexp(profile.calibration.posterior[..., None] + slips))]
    prior = _residual_prior(profile.calibration)
    for cause, counts in replayed.items():
        if list(counts) != declared:  # else it changes nothing in these requests
            fit = float(logsumexp(prior + log_likelihoods(counts).sum(axis=0)))
            # Conventions of one cause, told in brackets, are not told apart.
            ratings.setdefault(cause.partition(" (")[0], []).append(fit)
    names = list(ratings)
    fits = np.array([logsumexp(ratings[name]) for name in names])
    weights = np.exp(fits - logsumexp(fits))
    ranked = sorted(zip(names, weights.tolist(), strict=True), key=lambda pair: -pair[1])
    return tuple((cause, weight) for cause, weight in ranked if weight >= _LEAST_WEIGHT)


def is_explained(replayed: Mapping[str, Sequence[RequestCounts]], calibration: Calibration) -> bool:
    """Whether a hypothesis leaves no more than honest noise: likelier as that than as noise of any scale."""
    for counts in replayed.values():
        grid = log_likelihoods(counts).sum(axis=0)
        if logsumexp(calibration.posterior + grid) > logsumexp(_broad_prior() + grid):
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


def _chosen(usable: Sequence[Scored], reference: Reference) -> list[_Asked]:
    """A dozen requests spread over the log, of at most `_TOKENS` output tokens or one request."""
    slow = any(s.trace.sampling.shaped or is_speculated(s.trace) for s in usable)
    most = _SLOW_TOKENS if slow else _TOKENS
    step = max(1, len(usable) // _REQUESTS)
    chosen: list[_Asked] = []
    tokens = 0
    for scored in usable[::step][:_REQUESTS]:
        tokens += len(scored.trace.output_token_ids or ())
        if chosen and tokens > most:
            break
        chosen.append(_Asked(scored, prepare(scored.trace, reference)))
    return chosen


def _replayed(
    chosen: Sequence[_Asked], hypotheses: Sequence[Deviation], reference: Reference
) -> dict[str, list[RequestCounts]]:
    """Counts of the chosen requests under each hypothesis that could be replayed."""
    found: dict[str, list[RequestCounts]] = {}
    for together in by_pass(hypotheses):
        found.update(_scored_under(chosen, together, reference))
    return found


def by_pass(hypotheses: Sequence[Deviation]) -> list[list[Deviation]]:
    """Hypotheses that share a forward pass, together."""
    passes: dict[tuple[object, object], list[Deviation]] = {}
    for hypothesis in hypotheses:
        passes.setdefault((hypothesis.model, hypothesis.prompt), []).append(hypothesis)
    return list(passes.values())


def _scored_under(
    chosen: Sequence[_Asked], together: Sequence[Deviation], reference: Reference
) -> dict[str, list[RequestCounts]]:
    """Counts of each request under hypotheses that share a forward pass; empty where it cannot be made."""
    first = together[0]
    counts: dict[str, list[RequestCounts]] = {}
    try:
        deviant = first.model(reference.model, None)
        fed = [tuple(first.prompt(prompt_of(a.scored.trace, a.request, reference))) for a in chosen]
        variants = [dict(variants_of(asked.request, together, reference)) for asked in chosen]
        for rows in reference.runner.under(zip(variants, fed, strict=True), deviant):
            for name, stats in rows.items():
                counts.setdefault(name, []).append(counted(stats))
    except AuditError:  # a prompt beyond the context, a model that cannot be changed: not this hypothesis
        return {}
    return {name: found for name, found in counts.items() if len(found) == len(chosen)}


def variants_of(
    request: Request, together: Sequence[Deviation], reference: Reference
) -> Iterator[tuple[str, Request]]:
    """The request under each hypothesis' sampler; those that change nothing here stand as declared."""
    vocabulary = reference.model.config.vocab_size
    for hypothesis in together:
        seed = None if request.seed is None else hypothesis.seed(request.seed)
        supposed = replace(request, spec=hypothesis.sampling(request.spec), seed=seed)
        if can_be_replayed(supposed, vocabulary):
            yield hypothesis.name, supposed
    if (together[0].model, together[0].prompt) == (HONEST.model, HONEST.prompt):
        yield from other_schemes(request, vocabulary)


def counted(rows: RowStats) -> RequestCounts:
    """A request's rows, reduced."""
    evidence = rows.evidence
    return count_request(rows.slack[evidence], rows.margin[evidence], rows.matched[evidence])
