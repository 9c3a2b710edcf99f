"""From traces to scores: check that a trace can be replayed exactly, replay it, reduce it.

Fail closed: whatever cannot be scored exactly becomes a `Scored` with a `problem`, which later makes the
verdict `inconclusive` (or, for bytes that contradict the model, the input unusable). Nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from auditor.errors import (
    AuditError,
    CannotScoreError,
    ContextLengthError,
    FingerprintError,
    NoiseUnknownError,
    SamplingUnsupportedError,
    TokenOutOfRangeError,
    TraceFieldError,
    TraceIncompleteError,
)
from auditor.fingerprint_scores import KNOWN_BEFOREHAND, FingerprintScore, measure
from auditor.fingerprints.token_difr import TokenScores, token_scores
from auditor.journal import Entry, Journal
from auditor.noise_model import RequestCounts, count_request
from auditor.reference.checkpoint.digests import template_digest, tokenizer_digest
from auditor.reference.deviations import Prompt
from auditor.reference.head import RowStats
from auditor.reference.loading import ReferenceModel, load_model
from auditor.reference.noise import (
    SCHEMES,
    Declared,
    NoiseScheme,
    check_engine,
    noise_of_recipe,
    noise_scheme,
)
from auditor.reference.runner import Request, Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer
from auditor.seed_free import SeedFree, reduce_law
from auditor.stop_decisions import stop_findings
from auditor.trace import Trace

VERSION = "0.1"
_CHUNK = 64  # traces held at once
_ANY_SEED = 1  # where no noise is replayed; an engine that takes seeds takes this one


@dataclass(frozen=True, slots=True)
class Reference:
    """The trusted side of an audit: one model, its tokenizer, its recipe.

    The runner is kept, for it remembers the beginnings that prompts share, across audits too.
    """

    model: ReferenceModel
    runner: Runner
    tokenizer: Tokenizer
    tokenizer_digest: str
    template_digest: str | None
    recipe: str

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        dtype: torch.dtype = torch.float32,
        adapter: Path | str | None = None,
    ) -> Reference:
        """Load a model directory for scoring, with the LoRA adapter that was sold on top of it.

        Raises:
            ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError, ModelCorruptError: see `load_model`.
        """
        model = load_model(directory, dtype=dtype, adapter=adapter)
        name = str(dtype).removeprefix("torch.")
        recipe = f"auditor-{VERSION}/{name}/prefill"
        return cls(
            model,
            Runner(model),
            Tokenizer.load(directory),
            tokenizer_digest(directory),
            template_digest(directory),
            recipe,
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """One trace after replay: either `scores` and `counts`, or the `problem` that prevented them.

    Attributes:
        findings: how the output ended against its request (`stop_decisions.py`).
        seed_free: with a problem, what the token ids say without their seed, where that is all that lacks.
        fingerprints: one distance for each kind of activation fingerprint in the trace.
        fingerprint_problem: why there is none although the trace has entries; its tokens are scored still.
    """

    trace: Trace
    family: str
    mode: str
    scores: TokenScores | None
    counts: RequestCounts | None
    problem: AuditError | None
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    seed_free: SeedFree | None = None
    fingerprints: tuple[FingerprintScore, ...] = ()
    fingerprint_problem: FingerprintError | None = None

    @property
    def contradictions(self) -> tuple[str, ...]:
        """What in this trace cannot come from a provider that did what it declares, whatever its numerics."""
        forbidden = self.scores.forbidden if self.scores is not None else ()
        if not forbidden:
            return self.findings
        said = f"{len(forbidden)} tokens that the request's own rules exclude, the first at output token"
        return (f"{said} {forbidden[0]}", *self.findings)


def family_of(trace: Trace) -> str:
    """`icdf` when the trace's noise is an inverse CDF, else `race`: margins of the two do not compare."""
    scheme = None if trace.noise is None else SCHEMES.get(trace.noise)
    inverse = scheme is not None and scheme.family == "icdf" and not trace.sampling.greedy
    return "icdf" if inverse else "race"


def mode_of(spec: SamplingSpec) -> str:
    """How a request was sampled, as far as power goes.

    `greedy`; else `penalised` (whatever the filters), `nucleus` (filtered) or `sampled`.
    """
    if spec.greedy:
        return "greedy"
    if spec.penalised:
        return "penalised"
    return "nucleus" if spec.filtered else "sampled"


def replay(traces: Iterable[Trace], reference: Reference, journal: Journal | None = None) -> Iterator[Scored]:
    """Score traces in order, a bounded number in memory at a time; a journal spares what it remembers."""
    stream = iter(traces)
    while chunk := list(islice(stream, _CHUNK)):
        prepared = [_prepared(trace, reference, journal) for trace in chunk]
        eyes = _Eyes(trace for trace, item in zip(chunk, prepared, strict=True) if isinstance(item, Request))
        requests = (item for item in prepared if isinstance(item, Request))
        rows = reference.runner.score(requests, on_hidden=eyes.see)
        unseeded = [without_seed(t, i, reference) for t, i in zip(chunk, prepared, strict=True)]
        laws = reference.runner.laws(request for request in unseeded if request is not None)
        for trace, item, request in zip(chunk, prepared, unseeded, strict=True):
            if isinstance(item, AuditError):
                free = None if request is None else reduce_law(next(laws))
                yield Scored(
                    trace, family_of(trace), mode_of(trace.sampling), None, None, item, seed_free=free
                )
                continue
            problem = None
            if isinstance(item, Request):
                entry = _reduced(next(rows), trace, reference, eyes)
                problem = eyes.problem
                if journal is not None and problem is None:
                    journal.add(trace.raw_digest, entry)
            else:
                entry = item
            scores, counts, notes, seen = entry
            mode = mode_of(trace.sampling)
            yield Scored(
                trace,
                family_of(trace),
                mode,
                scores,
                counts,
                None,
                notes,
                _findings(trace, reference),
                fingerprints=seen,
                fingerprint_problem=problem,
            )


class _Eyes:
    """Sees the hidden states of one request after another, and keeps what its fingerprints are worth."""

    def __init__(self, traces: Iterable[Trace]) -> None:
        self._traces = iter(traces)
        self.scores: tuple[FingerprintScore, ...] = ()
        self.problem: FingerprintError | None = None

    def see(self, request: Request, hidden: torch.Tensor) -> None:
        trace = next(self._traces)
        self.scores, self.problem = (), None
        try:
            self.scores = measure(trace, request, hidden)
        except FingerprintError as problem:
            self.problem = problem


def _prepared(trace: Trace, reference: Reference, journal: Journal | None) -> Request | Entry | AuditError:
    try:
        request = prepare(trace, reference)
    except (CannotScoreError, TraceFieldError) as problem:
        return problem
    known = journal.find(trace.raw_digest) if journal is not None else None
    return request if known is None else known


def _reduced(rows: RowStats, trace: Trace, reference: Reference, eyes: _Eyes) -> Entry:
    evidence = rows.evidence
    scores = token_scores(
        margin=rows.margin,
        slack=rows.slack,
        matched=rows.matched,
        outside=rows.outside,
        filtered=rows.filtered,
        rank=rows.rank,
        log_probability=rows.log_probability,
        forced=rows.forced,
        unmodelled=rows.unmodelled,
        forbidden=rows.forbidden,
    )
    counts = count_request(rows.slack[evidence], rows.margin[evidence], rows.matched[evidence])
    return scores, counts, tuple(_notes(trace, reference)), eyes.scores


def prepare(trace: Trace, reference: Reference) -> Request:
    """Check one trace and turn it into a replayable request.

    1. The declared model is the reference. 2. Output ids are there. 3. The noise scheme is known for that
    engine. 4. A seed is there if noise was drawn. 5. No sampling feature that the scorer does not model.
    6. Prompt ids are there, or can be rendered. 7. Ids lie in the vocabulary and fit the context. 8. The
    request's own rules are ones that its engine offers, its grammar compiles.

    Raises:
        CannotScoreError: steps 1 to 6 and 8 (a subclass says which).
        TokenOutOfRangeError, ContextLengthError: step 7.
    """
    model = reference.model
    if trace.model_digest is not None and trace.model_digest != model.digest:
        raise CannotScoreError(
            f"the trace declares model {trace.model_digest[:18]}..., the reference is {model.digest[:18]}...",
            where=trace.where,
            fix="audit it against the model it declares",
        )
    if not trace.output_token_ids:
        raise TraceIncompleteError(
            "no output token ids", where=trace.where, fix="log them (return_token_ids)"
        )
    scheme = _scheme(trace, model.config.vocab_size)
    _refuse_unseeded(trace, scheme)
    _refuse_unmodelled(trace)
    prompt = _prompt(trace, reference)
    for name, ids in (("prompt_token_ids", prompt), ("output_token_ids", trace.output_token_ids)):
        worst = max(ids)
        if worst >= model.config.vocab_size or min(ids) < 0:
            raise TokenOutOfRangeError(
                f"field {name}: token id {worst} is outside the vocabulary of {model.config.vocab_size}",
                where=trace.where,
                fix="is this the right --model?",
            )
    total = len(prompt) + len(trace.output_token_ids)
    if total - 1 > model.config.context_length:
        raise ContextLengthError(
            f"{total} tokens exceed the model's {model.config.context_length} positions", where=trace.where
        )
    request = Request(
        prompt,
        trace.output_token_ids,
        trace.sampling,
        trace.seed,
        scheme,
        reference.tokenizer,
        _ruled_by(trace, scheme),
    )
    try:
        request.rules(trace.sampling, model.config.vocab_size)
    except AuditError as problem:
        problem.where = trace.where
        raise
    return request


def _ruled_by(trace: Trace, scheme: NoiseScheme) -> NoiseScheme:
    """Whose rules: a greedy request's scheme is nobody's, so the declared noise or recipe says it."""
    if scheme.name != "greedy" or not trace.sampling.ruled:
        return scheme
    declared = trace.noise if trace.noise in SCHEMES and trace.noise != "greedy" else None
    known = declared or noise_of_recipe(trace.engine.recipe or "")
    if known is None:
        raise NoiseUnknownError(
            "the log does not say whose penalties and masks a greedy request went through",
            where=trace.where,
            fix="assert the serving recipe with --engine-recipe",
        )
    engine = noise_scheme(known)
    check_engine(engine, trace.engine.name, trace.engine.version, where=trace.where)
    return engine


def without_seed(trace: Trace, problem: object, reference: Reference) -> Request | None:
    """The request as far as its own distribution goes, if nothing but its noise cannot be replayed.

    Filters are cut in the order of the logged scheme; without one, only unfiltered requests have a
    distribution that every engine agrees on. What a request's own rules make of it is not worked out here.
    """
    if not isinstance(problem, TraceIncompleteError | NoiseUnknownError) or trace.sampling.greedy:
        return None
    if trace.sampling.ruled:
        return None
    try:
        return prepare(replace(trace, seed=_ANY_SEED), reference)
    except (CannotScoreError, TraceFieldError):
        if trace.sampling.filtered:
            return None
    try:
        return prepare(replace(trace, seed=_ANY_SEED, noise="gumbel-pos-v1"), reference)
    except (CannotScoreError, TraceFieldError):
        return None


def _scheme(trace: Trace, vocabulary: int) -> NoiseScheme:
    if trace.sampling.greedy:
        return noise_scheme("greedy")
    if trace.noise is None:
        raise NoiseUnknownError(
            "the log does not say how noise was drawn",
            where=trace.where,
            fix="assert the serving recipe with --engine-recipe",
        )
    scheme = noise_scheme(trace.noise, where=trace.where)
    if scheme.name == "greedy":
        raise NoiseUnknownError(
            f"noise is 'greedy' but the temperature is {trace.sampling.temperature}", where=trace.where
        )
    engine, spec = trace.engine, trace.sampling
    check_engine(scheme, engine.name, engine.version, engine.device, where=trace.where)
    declared = Declared(vocabulary, engine.device, spec.top_k, spec.top_p, spec.min_p)
    try:
        return scheme.declared(declared)
    except NoiseUnknownError as refusal:
        raise NoiseUnknownError(refusal.message, where=trace.where, fix=refusal.fix) from None


def _refuse_unseeded(trace: Trace, scheme: NoiseScheme) -> None:
    """Some seeds do not seed: vLLM reads -1, and llama.cpp 0 and 2**32 - 1, as "draw one at random"."""
    if trace.sampling.greedy:
        return
    seed = trace.seed
    random_seed = seed is not None and (
        (scheme.filters == "vllm" and seed == -1 and scheme.name != "gumbel-pos-v1")
        or (scheme.filters == "llama.cpp" and seed % 2**32 in (0, 2**32 - 1))
    )
    if seed is None or random_seed:
        what = (
            "sampled without a logged seed" if seed is None else f"seed {seed} makes the engine draw its own"
        )
        raise TraceIncompleteError(what, where=trace.where, fix="send and log a seed")


# Fields of `sampling` that change what is returned of the result, not which tokens are sampled.
_HARMLESS = frozenset({"logprobs", "prompt_logprobs", "logprobs_mode", "include_stop_str_in_output"})


def _refuse_unmodelled(trace: Trace) -> None:
    spec = trace.sampling
    reasons = [
        name
        for name, is_on in (
            (f"speculation rule {trace.speculation.rule!r}", trace.speculation.rule != "none"),
            # Dividing logits by less than this overflows float32; vLLM raises such temperatures itself.
            ("a temperature below 1e-4", 0.0 < spec.temperature < 1e-4),
            ("a declared policy", trace.policy is not None),
            # Fields of `sampling` that `SamplingSpec` has no place for: none of them is known to be harmless.
            *((f"sampling.{name}", name not in _HARMLESS) for name in trace.extra.get("sampling") or ()),
        )
        if is_on
    ]
    if reasons:
        raise SamplingUnsupportedError(f"{', '.join(reasons)} cannot be replayed yet", where=trace.where)


def _prompt(trace: Trace, reference: Reference) -> tuple[int, ...]:
    if trace.prompt_token_ids:
        return trace.prompt_token_ids
    if trace.messages is not None:
        return tuple(reference.tokenizer.encode_chat(trace.messages))
    if trace.prompt_text is not None:
        return tuple(reference.tokenizer.encode(trace.prompt_text, add_special_tokens=True))
    raise TraceIncompleteError("no prompt ids, messages or prompt text", where=trace.where)


def _notes(trace: Trace, reference: Reference) -> Iterator[str]:
    """What a reader of the verdict should know about the trace; nothing here moves the verdict."""
    if not trace.prompt_token_ids:
        yield "prompt ids were not logged: the reference's template and tokenizer made them"
    for note in trace.extra.get("notes") or ():
        yield str(note)
    billed, logged = trace.usage.completion_tokens, len(trace.output_token_ids or ())
    if billed is not None and billed != logged:
        yield f"{billed} completion tokens billed, {logged} logged"
    if trace.logprobs is not None:
        mode = (trace.extra.get("sampling") or {}).get("logprobs_mode")
        yield f"the provider returned logprobs (mode {mode or 'not logged'}): kept with the trace, not scored"
    if trace.fingerprints:
        yield KNOWN_BEFOREHAND
    if trace.messages is not None and trace.prompt_token_ids and reference.tokenizer.template is not None:
        try:
            rendered = tuple(reference.tokenizer.encode_chat(trace.messages))
        except AuditError:
            yield "the reference's chat template refuses the logged messages"
        else:
            if rendered != trace.prompt_token_ids:
                yield "the logged prompt ids are not what the reference's chat template makes of the messages"


def _findings(trace: Trace, reference: Reference) -> tuple[str, ...]:
    prompt = _prompt(trace, reference)
    return stop_findings(trace, len(prompt), reference.tokenizer, reference.model.config.context_length)


def prompt_of(trace: Trace, request: Request, reference: Reference) -> Prompt:
    """The prompt as a simulated provider sees it."""
    return Prompt(request.prompt, trace.messages, reference.tokenizer)
