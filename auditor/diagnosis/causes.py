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

from auditor.diagnosis.drafted import DRAFTED, POSITION, SUBSTITUTED, drafted_fits, guessing, slips_to
from auditor.diagnosis.hypotheses import can_be_replayed, candidates, further_candidates, other_schemes
from auditor.errors import AuditError
from auditor.evidence import Calibration, log_prior
from auditor.noise_model import (
    F64,
    RequestCounts,
    Slips,
    count_request,
    log_likelihoods,
    slip_log_likelihoods,
)
from auditor.preparation import prepare
from auditor.profile import Profile
from auditor.reference.deviations import HONEST, Deviation, Prompt
from auditor.reference.head import RowStats
from auditor.reference.request import Request
from auditor.replay import prompt_of

if TYPE_CHECKING:
    from auditor.reference.loading import Sizes
    from auditor.replay import Reference, Scored

OTHER = "other"
RUNNER_UP = "sampler/runner-up"
_SLIP_RATES: F64 = np.array([3e-3, 1e-2, 3e-2, 1e-1])

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


Drafted = Mapping[str, Sequence[Slips]]
"""Each request beside a draft model's guesses, by how it draws them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as declared, with what rebuilds its prompt.

    Attributes:
        mode: as `replay.mode_of` has it. counts: as the reference scored it.
    """

    request: Request
    prompt: Prompt
    mode: str
    counts: RequestCounts


def diagnose(
    usable: Sequence[Scored], profile: Profile, reference: Reference
) -> tuple[tuple[str, float], ...]:
    """(cause, weight) by falling weight, weights summing to at most 1; `other` is none of the known.

    Args:
        usable: requests that were scored, at least one.
    """
    return causes_of(_chosen(usable, reference), profile, reference)


def causes_of(
    asked: Sequence[Asked], profile: Profile, reference: Reference
) -> tuple[tuple[str, float], ...]:
    """`diagnose` of these very requests."""
    seen = [(a.mode, a.counts) for a in asked]
    substituted, drafted = beside_guesses(asked, reference)
    replayed = replayed_under(asked, candidates(), reference) | substituted
    if asks_catalogue(reference.model.config) and not is_explained(replayed, profile):
        further = further_candidates()
        likeliest = shortlisted(replayed_under(asked[:FEW], further, reference), profile.calibration)
        replayed |= replayed_under(asked, [d for d in further if d.name in likeliest], reference)
    return rank_causes(seen, replayed, drafted, profile)


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
    drafted: Drafted,
    profile: Profile,
) -> tuple[tuple[str, float], ...]:
    """(cause, weight) as `diagnose` returns them.

    Args:
        seen: mode and counts of each request as declared. replayed: its counts under each hypothesis.
        drafted: it beside guesses; empty without a draft model.
    """
    declared = [counts for _, counts in seen]
    grid = log_likelihoods(declared).sum(axis=0)
    ratings = {OTHER: [float(logsumexp(_broad_prior() + grid))]}
    for cause, fit in simulated_fits(seen, profile).items():
        ratings.setdefault(cause, []).append(fit)
    runners_up = (Slips.to_runner_up(counts) for counts in declared)
    slips = slip_log_likelihoods(runners_up, _SLIP_RATES) - np.log(len(_SLIP_RATES))
    ratings[RUNNER_UP] = [float(logsumexp(profile.calibration.posterior[..., None] + slips))]
    if drafted:
        ratings[DRAFTED] = drafted_fits(drafted, profile.calibration)
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


def is_explained(replayed: Mapping[str, Sequence[RequestCounts]], profile: Profile) -> bool:
    """Whether a hypothesis leaves no more than honest noise: likelier as that than as noise of any scale.

    A smaller model's guesses are no such explanation: they are plausible tokens, on which whatever disturbs a
    model lands too, so the rest of the catalogue is still asked.

    Args:
        replayed: as `rank_causes` takes them.
    """
    for counts in replayed.values():
        grid = log_likelihoods(counts).sum(axis=0)
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


def _chosen(usable: Sequence[Scored], reference: Reference) -> list[Asked]:
    """A dozen requests spread over the log, as many as are within reach."""
    step = max(1, len(usable) // _REQUESTS)
    return within_reach([_asked(scored, reference) for scored in usable[::step][:_REQUESTS]])


def _asked(scored: Scored, reference: Reference) -> Asked:
    assert scored.counts is not None, "a request that was scored"
    request = prepare(scored.trace, reference)
    return Asked(request, prompt_of(scored.trace, request, reference), scored.mode, scored.counts)


def within_reach(requests: Sequence[Asked]) -> list[Asked]:
    """The first of them, of at most `_TOKENS` output tokens or one request; fewer where rows are slow."""
    slow = any(a.request.spec.shaped or a.request.speculated is not None for a in requests)
    most = _SLOW_TOKENS if slow else _TOKENS
    chosen: list[Asked] = []
    tokens = 0
    for one in requests:
        tokens += len(one.request.output)
        if chosen and tokens > most:
            break
        chosen.append(one)
    return chosen


def beside_guesses(
    asked: Sequence[Asked], reference: Reference
) -> tuple[dict[str, list[RequestCounts]], dict[str, list[Slips]]]:
    """Counts as if the draft model had been served, and requests beside its guesses.

    Both are empty without a draft model, and where drafts were declared: then they are judged as declared.
    """
    draft = reference.draft
    if draft is None or any(a.request.speculated is not None for a in asked):
        return {}, {}
    guessed = reference.runner.under(((guessing(a.request), a.request.prompt) for a in asked), draft)
    declared = reference.runner.score([a.request for a in asked])
    served: list[RequestCounts] = []
    ways: dict[str, list[Slips]] = {}
    for stats, guesses in zip(declared, guessed, strict=True):
        served.append(counted(guesses[POSITION]))
        for way, own in guesses.items():
            ways.setdefault(way, []).append(slips_to(stats, own.winner))
    return {SUBSTITUTED: served}, {way: slips for way, slips in ways.items() if len(slips) == len(asked)}


def replayed_under(
    asked: Sequence[Asked], hypotheses: Sequence[Deviation], reference: Reference
) -> dict[str, list[RequestCounts]]:
    """Counts of requests under each hypothesis that could be replayed."""
    found: dict[str, list[RequestCounts]] = {}
    for together in by_pass(hypotheses):
        found.update(_scored_under(asked, together, reference))
    return found


def by_pass(hypotheses: Sequence[Deviation]) -> list[list[Deviation]]:
    """Hypotheses that share a forward pass, together."""
    passes: dict[tuple[object, object], list[Deviation]] = {}
    for hypothesis in hypotheses:
        passes.setdefault((hypothesis.model, hypothesis.prompt), []).append(hypothesis)
    return list(passes.values())


def _scored_under(
    asked: Sequence[Asked], together: Sequence[Deviation], reference: Reference
) -> dict[str, list[RequestCounts]]:
    """Counts of each request under hypotheses that share a forward pass; empty where it cannot be made."""
    first = together[0]
    counts: dict[str, list[RequestCounts]] = {}
    try:
        deviant = first.model(reference.model, None)
        fed = [tuple(first.prompt(a.prompt)) for a in asked]
        variants = [dict(variants_of(a.request, together, reference)) for a in asked]
        for rows in reference.runner.under(zip(variants, fed, strict=True), deviant):
            for name, stats in rows.items():
                counts.setdefault(name, []).append(counted(stats))
    except AuditError:  # a prompt beyond the context, a model that cannot be changed: not this hypothesis
        return {}
    return {name: found for name, found in counts.items() if len(found) == len(asked)}


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
