"""From traces to scores: check that a trace can be replayed exactly, replay it, reduce it.

Fail closed: whatever cannot be scored exactly becomes a `Scored` with a `problem`, which later makes the
verdict `inconclusive` (or, for bytes that contradict the model, the input unusable). Nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch

from auditor.errors import (
    AuditError,
    CannotScoreError,
    FingerprintError,
    FingerprintUnsupportedError,
    OptionError,
    TraceFieldError,
    TraceIncompleteError,
)
from auditor.fingerprint_scores import KNOWN_BEFOREHAND, FingerprintScore, layers_needed, measure, read
from auditor.fingerprints.activation_difr import FINAL, Fingerprint
from auditor.fingerprints.token_difr import TokenScores, token_scores
from auditor.journal import Entry, Remembered
from auditor.noise_model import RequestCounts, count_request
from auditor.preparation import is_speculated, prepare, prompt_ids, without_seed
from auditor.profiles import companion_model
from auditor.reference.checkpoint.digests import template_digest, tokenizer_digest
from auditor.reference.deviations import Prompt
from auditor.reference.device import CPU, on_gpu
from auditor.reference.head import RowStats
from auditor.reference.loading import ReferenceModel, load_model
from auditor.reference.noise import SCHEMES
from auditor.reference.policies import Policy
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.tokenizer import Tokenizer
from auditor.seed_free import SeedFree, reduce_law
from auditor.stop_decisions import stop_findings
from auditor.text_only import SPLIT_ANEW, is_text_only, split_anew
from auditor.token_counts.response import ResponseCount, count_response, is_doubtful
from auditor.trace import Trace

VERSION = "0.1"
TOGETHER = 64
"""Traces held at once."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The trusted side of an audit: one model, its tokenizer, its recipe.

    The runner is kept, for it remembers the beginnings that prompts share, across audits too.

    Attributes:
        draft: a smaller model that the provider may guess with, or serve: only causes rest on it.
    """

    model: ReferenceModel
    runner: Runner
    tokenizer: Tokenizer
    tokenizer_digest: str
    template_digest: str | None
    recipe: str
    draft: ReferenceModel | None = None
    _declared: dict[str, Reference] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
        adapter: Path | str | None = None,
        draft: Path | str | None = None,
    ) -> Reference:
        """Load a model directory for scoring, with the LoRA adapter that was sold on top of it.

        Its recipe names dtype and kind of device, and a profile is for one recipe: what a replay rounds
        itself is part of the noise that is calibrated.

        Args:
            draft: of a smaller model of the same vocabulary; the shipped one for the demo model if None.

        Raises:
            ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError, ModelCorruptError: see `load_model`.
            OptionError: a draft model of another vocabulary.
        """
        model = load_model(directory, dtype=dtype, adapter=adapter, device=device)
        given = draft or companion_model(model.digest)
        smaller = None if given is None else load_model(given, dtype=dtype, device=device)
        if smaller is not None and smaller.config.vocab_size != model.config.vocab_size:
            sizes = f"{smaller.config.vocab_size:,} tokens beside {model.config.vocab_size:,}"
            raise OptionError(f"a draft model with a vocabulary of {sizes}", where=str(given))
        name = str(dtype).removeprefix("torch.")
        recipe = f"auditor-{VERSION}/{name}/prefill" + (f"/{device.type}" if on_gpu(device) else "")
        return cls(
            model,
            Runner(model),
            Tokenizer.load(directory),
            tokenizer_digest(directory),
            template_digest(directory),
            recipe,
            smaller,
        )

    def declared(self, policy: Any) -> Reference:
        """The reference under the policy that a trace declares; as it is where that cannot be replayed.

        The second is no acquittal: `prepare` refuses such a trace.
        """
        if policy is None:
            return self
        try:
            known = Policy.parse(policy)
            if str(known) not in self._declared:
                model = known.applied(self.model)
                self._declared[str(known)] = replace(self, model=model, runner=Runner(model), _declared={})
        except OptionError:
            return self
        return self._declared[str(known)]


@dataclass(frozen=True, slots=True)
class Scored:
    """One trace after replay: either `scores` and `counts`, or the `problem` that prevented them.

    Attributes:
        findings: how the output ended against its request (`stop_decisions.py`).
        seed_free: with a problem, what the token ids say without their seed, where that is all that lacks;
            where there is text only, what the ids that the reference's tokenizer makes of it say.
        fingerprints: one distance for each kind of activation fingerprint in the trace.
        fingerprint_problem: why there is none although the trace has entries; its tokens are scored still.
        token_count: the bill beside the text, where no ids account for both.
        bill_problem: why there is none, where more is billed than the logged ids come to.
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
    token_count: ResponseCount | None = None
    bill_problem: AuditError | None = None

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


def mode_of(trace: Trace) -> str:
    """How a request was sampled, as far as power goes.

    `greedy`; else by a keyed rule of speculation `drafted` (drafts logged by `standard`; `drafted-RULE` by
    another) or `speculated` (not logged); else `penalised` (whatever the filters), `nucleus`
    (filtered) or `sampled`.
    """
    spec = trace.sampling
    if spec.greedy:
        return "greedy"
    if is_speculated(trace):
        if trace.speculation.draft_token_ids is None:
            return "speculated"
        rule = trace.speculation.rule
        return "drafted" if rule == "standard" else f"drafted-{rule}"
    if spec.penalised:
        return "penalised"
    return "nucleus" if spec.filtered or spec.shaped else "sampled"


def replay(
    traces: Iterable[Trace],
    reference: Reference,
    journal: Remembered | None = None,
    *,
    together: int = TOGETHER,
) -> Iterator[Scored]:
    """Score traces in order, `together` in memory at a time; a journal spares what it remembers."""
    stream = iter(traces)
    while chunk := list(islice(stream, together)):
        for _, alike in groupby(chunk, key=lambda trace: repr(trace.policy)):
            run = list(alike)
            yield from _replayed(run, reference.declared(run[0].policy), journal)


def _replayed(chunk: list[Trace], reference: Reference, journal: Remembered | None) -> Iterator[Scored]:
    """Score traces that declare the same policy, all at once."""
    prepared = [_prepared(trace, reference, journal) for trace in chunk]
    requests = [
        (trace, item) for trace, item in zip(chunk, prepared, strict=True) if isinstance(item, Request)
    ]
    eyes = _Eyes(requests, reference.model)
    rows = reference.runner.score((r for _, r in requests), on_hidden=eyes.see, layers=eyes.layers)
    unseeded = [_unseeded(t, i, reference) for t, i in zip(chunk, prepared, strict=True)]
    laws = reference.runner.laws(request for request in unseeded if request is not None)
    for trace, item, request in zip(chunk, prepared, unseeded, strict=True):
        count, unpaid = _counted(trace, reference)
        said = () if unpaid is None else (f"{unpaid.message} [{unpaid.code}]",)
        if isinstance(item, AuditError):
            free = None if request is None else reduce_law(next(laws))
            why = (SPLIT_ANEW,) if free is not None and is_text_only(trace) else ()
            family, mode = family_of(trace), mode_of(trace)
            notes = (*why, *said)
            yield Scored(trace, family, mode, None, None, item, notes, seed_free=free, token_count=count)
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
        mode = mode_of(trace)
        yield Scored(
            trace,
            family_of(trace),
            mode,
            scores,
            counts,
            None,
            (*notes, *said),
            _findings(trace, reference),
            fingerprints=seen,
            fingerprint_problem=problem,
            token_count=count,
            bill_problem=unpaid if _bills_beyond_ids(trace) else None,
        )


def _unseeded(trace: Trace, problem: object, reference: Reference) -> Request | None:
    """What surprise and rank are taken of: a request that lacks its seed, or its token ids altogether."""
    if isinstance(problem, TraceIncompleteError) and is_text_only(trace):
        split = split_anew(trace, reference.tokenizer)
        return None if split is None else without_seed(split, problem, reference)
    return without_seed(trace, problem, reference)


class _Eyes:
    """Sees the hidden states of one request after another, and keeps what its fingerprints are worth.

    Attributes:
        layers: whose residual streams it wants to see beside the final states.
    """

    def __init__(self, requests: Iterable[tuple[Trace, Request]], model: ReferenceModel) -> None:
        sent = [(trace.where, _sent(trace, request, model)) for trace, request in requests]
        usable = [one for _, item in sent if not isinstance(item, FingerprintError) for one in item]
        self.layers = layers_needed(usable, model.config)
        self._width = model.config.hidden_size
        self._next = iter(sent)
        self.scores: tuple[FingerprintScore, ...] = ()
        self.problem: FingerprintError | None = None

    def see(self, request: Request, hidden: torch.Tensor) -> None:
        del request
        where, sent = next(self._next)
        self.scores, self.problem = (), None
        if isinstance(sent, FingerprintError):
            self.problem = sent
            return
        states = dict(zip((FINAL, *self.layers), torch.split(hidden, self._width, dim=1), strict=True))
        try:
            self.scores = measure(sent, states, where=where)
        except FingerprintError as problem:
            self.problem = problem


def _counted(trace: Trace, reference: Reference) -> tuple[ResponseCount | None, AuditError | None]:
    """The bill of a trace whose ids do not account for it, and why it cannot be counted."""
    if not is_doubtful(trace, reference.tokenizer):
        return None, None
    if trace.model_digest is not None and trace.model_digest != reference.model.digest:
        return None, None
    try:
        return count_response(trace, reference), None
    except AuditError as problem:
        return None, problem


def _bills_beyond_ids(trace: Trace) -> bool:
    """Whether tokens are billed that nothing in the log accounts for: neither ids nor declared reasoning."""
    logged = len(trace.output_token_ids or ()) + (trace.usage.reasoning_tokens or 0)
    return trace.commitment is None and (trace.usage.completion_tokens or 0) > logged


def _sent(
    trace: Trace, request: Request, model: ReferenceModel
) -> tuple[Fingerprint, ...] | FingerprintError:
    try:
        sent = read(trace, request, model.config)
        if sent:
            model.showing(layers_needed(sent, model.config))
    except OptionError as problem:
        return FingerprintUnsupportedError(problem.message, where=trace.where)
    except FingerprintError as problem:
        return problem
    return sent


def _prepared(trace: Trace, reference: Reference, journal: Remembered | None) -> Request | Entry | AuditError:
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
    prompt = prompt_ids(trace, reference)
    return stop_findings(trace, len(prompt), reference.tokenizer, reference.model.config.context_length)


def prompt_of(trace: Trace, request: Request, reference: Reference) -> Prompt:
    """The prompt as a simulated provider sees it."""
    return Prompt(request.prompt, trace.messages, reference.tokenizer)
