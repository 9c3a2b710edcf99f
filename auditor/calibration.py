"""`calibrate`: honest traces in, a profile out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
from scipy.special import logsumexp

from auditor.calibration_checks import check_calibration
from auditor.errors import AuditError, OptionError, SamplingUnsupportedError
from auditor.evidence import Calibration, smallest_alpha
from auditor.log_checks import counted_once
from auditor.noise_model import F64, SCALES, RequestCounts, count_request, log_likelihoods
from auditor.preparation import prepare
from auditor.profile import Deviated, Profile, ProfileKey
from auditor.reference.deviations import DEVIATIONS, Deviation, Prompt
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, Scored, prompt_of, replay
from auditor.trace import Trace

SHADOW_TOKENS = 4000
"""Honest tokens on which every deviation is simulated."""

_ROOM_FOR_TAMPERING = 64  # positions that a simulated provider's own prompt text may take

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_QUANTILES = ("0.99", "0.999", "0.9999")
_FACTORS = {"2": 3, "3.2": 5, "10": 10}  # factor on the noise scale -> grid steps

Progress = Callable[[str, int, int], None]


def calibrate(
    traces: Iterable[Trace | AuditError],
    reference: Reference,
    *,
    other_model: ReferenceModel | None = None,
    shadow_tokens: int = SHADOW_TOKENS,
    keep_suspects: bool = False,
    valid_days: int | None = None,
    now: datetime | None = None,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Profile:
    """Calibrate on honest traces of one recipe.

    Args:
        traces: as `read_traces` yields them; a bad line or a trace that cannot be scored is an error here,
            since a null must not rest on a selection.
        other_model: what `model/substituted` serves; without it every second layer of the model is dropped,
            standing in for a smaller relative.
        shadow_tokens: tokens on which deviations are simulated; 0 leaves power unknown.
        keep_suspects: calibrate even on requests that do not look like traffic of one kind.
        valid_days: after how many days the profile is no longer used; never when None.
        progress: called with (stage, done, total).

    Raises:
        AuditError: the first problem of any trace.
        OptionError: no traces, or traces of several recipes.
        CalibrationSuspectError: see `check_calibration`.
    """
    scored = list(_all_scored(traces, reference))
    key = _one_key(scored, reference)
    reference = reference.declared(scored[0].trace.policy)
    learned = [(s.counts, s.trace.where) for s in scored if s.counts is not None and s.counts.tokens]
    requests = tuple(counts for counts, _ in learned)
    if not requests:
        raise OptionError("no trace leaves the sampler a choice, so there is no noise to learn")
    grids = log_likelihoods(requests)
    if not keep_suspects:
        check_calibration(requests, grids, [where for _, where in learned])
    noise = Calibration.of_grids(grids)
    margins = _margins(scored)
    shadows = _shadow_requests(scored, reference, shadow_tokens)
    deviations: dict[str, Deviated] = {}
    for done, deviation in enumerate(DEVIATIONS.values()):
        progress("simulating dishonest providers", done, len(DEVIATIONS))
        if shadows:
            deviations[deviation.name] = _simulate(deviation, shadows, reference, other_model)
    progress("simulating dishonest providers", len(DEVIATIONS), len(DEVIATIONS))
    made = now or datetime.now(UTC)
    ends = None if valid_days is None else made + timedelta(days=valid_days)
    return Profile(
        key=key,
        created=made.strftime(_TIME),
        expires=None if ends is None else ends.strftime(_TIME),
        honest=requests,
        outside=sum(s.scores.outside for s in scored if s.scores),
        filtered=sum(s.scores.filtered for s in scored if s.scores),
        margin_quantiles={q: float(np.quantile(margins, float(q))) for q in _QUANTILES},
        noise_scale=_scale_interval(grids.sum(axis=0)),
        smallest_alpha={factor: smallest_alpha(noise, steps) for factor, steps in _FACTORS.items()},
        deviations=deviations,
        contradicted=sum(bool(s.findings) for s in scored),
        fingerprints=_fingerprints(scored),
    )


def _all_scored(traces: Iterable[Trace | AuditError], reference: Reference) -> Iterator[Scored]:
    def good() -> Iterator[Trace]:
        for item in traces:
            if isinstance(item, AuditError):
                raise item
            yield item

    for scored in counted_once(replay(good(), reference)):
        if scored.problem is not None:
            raise scored.problem
        if scored.fingerprint_problem is not None:
            raise scored.fingerprint_problem
        if scored.scores is not None:
            yield scored


def _one_key(scored: Sequence[Scored], reference: Reference) -> ProfileKey:
    if not scored:
        raise OptionError("no traces to calibrate on")
    recipes = {(s.trace.recipe, s.family) for s in scored}
    if len(recipes) > 1:
        found = ", ".join(sorted(f"{recipe} ({family})" for recipe, family in recipes))
        raise OptionError(f"traces of several recipes: {found}", fix="calibrate each recipe by itself")
    recipe, family = recipes.pop()
    if recipe is None:
        raise OptionError(
            "the traces do not name the provider's recipe",
            where=scored[0].trace.where,
            fix="pass --engine-recipe",
        )
    return ProfileKey(reference.model.digest, recipe, reference.recipe, family)


def _fingerprints(scored: Sequence[Scored]) -> dict[str, tuple[float, ...]]:
    """Distances of the honest requests, by kind of fingerprint."""
    found: dict[str, list[float]] = {}
    for s in scored:
        for f in s.fingerprints:
            found.setdefault(f.kind, []).append(f.distance)
    return {kind: tuple(distances) for kind, distances in sorted(found.items())}


def _margins(scored: Sequence[Scored]) -> F64:
    margins = np.zeros(sum(s.scores.evidence for s in scored if s.scores))
    misses = [margin for s in scored if s.scores for _, margin, _ in s.scores.misses]
    margins[: len(misses)] = misses
    return margins


def _scale_interval(grid: F64) -> tuple[float, float, float]:
    """Posterior median of the noise scale, and its central 95 % interval, under a prior flat in ln s."""
    log_mass = logsumexp(grid, axis=1)
    mass = np.exp(log_mass - logsumexp(log_mass))
    cumulative = np.cumsum(mass)
    middle, low, high = (float(SCALES[int(np.searchsorted(cumulative, q))]) for q in (0.5, 0.025, 0.975))
    return middle, low, high


Shadowed = tuple[dict[str, Request], Prompt]


def _shadow_requests(scored: Sequence[Scored], reference: Reference, tokens: int) -> list[Shadowed]:
    """Requests spread evenly over the log, about `tokens` of output in all, under every sampling mode."""
    total = sum(s.scores.tokens for s in scored if s.scores)
    step = max(1, total // tokens) if tokens else 0
    if not step:
        return []
    chosen = []
    vocabulary = reference.model.config.vocab_size
    for s in scored[::step]:
        request = prepare(s.trace, reference)
        length = len(request.prompt) + len(request.output) + _ROOM_FOR_TAMPERING
        if length > reference.model.config.context_length:
            continue
        chosen.append((_modes(request, s.mode, vocabulary), prompt_of(s.trace, request, reference)))
    return chosen


def _modes(request: Request, mode: str, vocabulary: int) -> dict[str, Request]:
    """The request under each sampling mode; a greedy log gets position-keyed noise where one is needed.

    Penalties are left out where those of the engine are not known. Speculation is measured where the
    calibration has it, with the filters and drafts of its own requests.
    """
    scheme, seed = request.scheme, request.seed
    if scheme.name == "greedy" or seed is None:
        scheme, seed = noise_scheme("gumbel-pos-v1"), sum(request.prompt)
    temperature = request.spec.temperature or 1.0
    top_p = request.spec.top_p if request.spec.top_p < 1.0 else 0.9
    plain = SamplingSpec(temperature=temperature)
    base = replace(request, scheme=scheme, seed=seed, speculated=None)
    modes = {
        "sampled": replace(base, spec=plain),
        "nucleus": replace(base, spec=replace(plain, top_p=top_p, top_k=request.spec.top_k)),
    }
    penalised = replace(base, spec=_penalised(request, plain))
    with suppress(SamplingUnsupportedError):
        penalised.rules(penalised.spec, vocabulary)
        modes["penalised"] = penalised
    if scheme.family != "icdf":  # its greedy requests are another family
        modes["greedy"] = replace(base, spec=SamplingSpec(temperature=0.0))
    if request.speculated is not None:
        modes[mode] = request
    return modes


def _penalised(request: Request, plain: SamplingSpec) -> SamplingSpec:
    """`plain` with the request's own penalties; where it has none, with usual ones that its engine offers."""
    own = request.spec
    if own.penalised:
        return replace(
            plain,
            repetition_penalty=own.repetition_penalty,
            presence_penalty=own.presence_penalty,
            frequency_penalty=own.frequency_penalty,
        )
    others = 0.0 if request.scheme.filters == "transformers" else 0.2
    return replace(plain, repetition_penalty=1.1, presence_penalty=others, frequency_penalty=others)


def _simulate(
    deviation: Deviation,
    shadows: Sequence[Shadowed],
    reference: Reference,
    other_model: ReferenceModel | None,
) -> Deviated:
    if deviation.needs_other_model and other_model is None:
        layers = range(1, reference.model.config.num_hidden_layers, 2)
        other_model = reference.model.replace(skip_layers=frozenset(layers))
    deviant = deviation.model(reference.model, other_model)
    by_mode: dict[str, list[RequestCounts]] = {}
    outside: dict[str, int] = {}
    filtered: dict[str, int] = {}
    for mode, rows in reference.runner.shadow(shadows, deviation, deviant):
        by_mode.setdefault(mode, []).append(count_request(rows.slack, rows.margin, rows.matched))
        outside[mode] = outside.get(mode, 0) + int(rows.outside.sum())
        filtered[mode] = filtered.get(mode, 0) + int(rows.filtered.sum())
    return Deviated({mode: tuple(counts) for mode, counts in by_mode.items()}, outside, filtered)
