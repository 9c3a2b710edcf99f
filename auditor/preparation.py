"""From a logged trace to a request that can be replayed exactly, or the reason why not.

Fail closed: what cannot be replayed exactly is an error with a stable code, never a guess.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from auditor.errors import (
    AuditError,
    CannotScoreError,
    ContextLengthError,
    NoiseUnknownError,
    OptionError,
    SamplingUnsupportedError,
    TokenOutOfRangeError,
    TraceFieldError,
    TraceIncompleteError,
)
from auditor.hidden_tokens.revealed import refuse_unrevealed
from auditor.reference.block_replay import refuse_grammar
from auditor.reference.noise import (
    SCHEMES,
    Declared,
    NoiseScheme,
    check_engine,
    noise_of_recipe,
    noise_scheme,
)
from auditor.reference.policies import Policy
from auditor.reference.request import Request
from auditor.reference.shape_filters import check_shape
from auditor.reference.speculation import (
    LOSSLESS,
    LOSSY,
    NO_DRAFT,
    Speculated,
    SpeculationRule,
    Step,
    drafts_of_steps,
    find_rule,
    is_synchronised,
    steps_of,
)
from auditor.trace import Speculation, Trace

if TYPE_CHECKING:
    from auditor.reference.loading import ReferenceModel
    from auditor.replay import Reference

_MOST_DRAFTS = 64  # of a step that is judged as a whole; vLLM proposes 24 at most unless told otherwise
_ANY_SEED = 1  # where no noise is replayed; an engine that takes seeds takes this one


def prepare(trace: Trace, reference: Reference) -> Request:
    """Check one trace and turn it into a replayable request.

    1. The declared model is the reference. 2. Output ids are there, the hidden ones before them, too. 3. The
    noise scheme is known for that engine. 4. A seed is there if noise was drawn. 5. No sampling feature that
    the scorer does not model. 6. Prompt ids are there, or can be rendered. 7. Ids lie in the vocabulary and
    fit the context. 8. The request's own rules are ones that its engine offers, its grammar compiles.

    Raises:
        CannotScoreError: steps 1 to 6, 8 and 9 (a subclass says which).
        TokenOutOfRangeError, ContextLengthError: step 7. TraceFieldError: the drafts of step 8.
    """
    model = reference.model
    if trace.model_digest is not None and trace.model_digest != model.digest:
        raise CannotScoreError(
            f"the trace declares model {trace.model_digest[:18]}..., the reference is {model.digest[:18]}...",
            where=trace.where,
            fix="audit it against the model it declares",
        )
    refuse_unrevealed(trace)
    if not trace.output_token_ids:
        raise TraceIncompleteError(
            "no output token ids", where=trace.where, fix="log them (return_token_ids)"
        )
    scheme = _scheme(trace, model.config.vocab_size)
    _refuse_unseeded(trace, scheme)
    _refuse_unmodelled(trace)
    _refuse_shape(trace, scheme)
    _refuse_policy(trace, model)
    prompt = prompt_ids(trace, reference)
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
        _speculated(trace, scheme, len(prompt), model),
    )
    try:
        request.rules(trace.sampling, model.config.vocab_size)
    except AuditError as problem:
        problem.where = trace.where
        raise
    return request


def is_speculated(trace: Trace) -> bool:
    """Whether the logged tokens may differ from those of plain sampling because of drafts."""
    return not is_synchronised(trace.speculation.rule) and not trace.sampling.greedy


def _speculated(
    trace: Trace, scheme: NoiseScheme, prompt_tokens: int, model: ReferenceModel
) -> Speculated | None:
    """How drafts decide this request's tokens; a greedy one's are compared with the likeliest token."""
    if not is_speculated(trace):
        return None
    rule = find_rule(trace.speculation.rule, scheme, trace.engine.version, where=trace.where)
    drafts = trace.speculation.draft_token_ids
    if drafts is None:
        return _without_drafts(rule, trace)
    output = trace.output_token_ids or ()
    judged = drafts_of_steps(drafts, output, where=trace.where)
    steps = steps_of(drafts, output, where=trace.where) if rule.by_step is not None else ()
    ids = [*judged.tolist(), *(draft for step in steps for draft in step.drafts)]
    if max(ids) >= model.config.vocab_size or min(ids) < NO_DRAFT:
        raise TokenOutOfRangeError(
            f"field speculation.draft_token_ids: an id outside the vocabulary of {model.config.vocab_size}",
            where=trace.where,
            fix="is this the right --model?",
        )
    if rule.by_step is not None:
        _refuse_steps(steps, trace, prompt_tokens, model)
    return Speculated(rule, judged, steps)


def _without_drafts(rule: SpeculationRule, trace: Trace) -> Speculated:
    if not rule.needs_drafts:
        return Speculated(rule, None)
    raise NoiseUnknownError(
        f"what speculation rule {rule.name!r} returns hangs on its drafts, and they were not logged",
        where=trace.where,
        fix="log speculation.draft_token_ids, every id that each step judged",
    )


def _refuse_steps(steps: tuple[Step, ...], trace: Trace, prompt_tokens: int, model: ReferenceModel) -> None:
    """What cannot be judged on branches.

    Raises:
        SamplingUnsupportedError: a grammar, a model without state by position, a step of too many drafts.
        ContextLengthError: drafts beyond the context.
    """
    try:
        refuse_grammar(trace.sampling)
    except SamplingUnsupportedError as problem:
        raise SamplingUnsupportedError(problem.message, where=trace.where) from None
    if not model.config.shares_prefixes:
        raise SamplingUnsupportedError(
            f"block verification of a {model.config.model_type} model cannot be replayed: it keeps no state "
            "by position from which rejected drafts could be read on",
            where=trace.where,
        )
    longest = max(len(step.drafts) for step in steps)
    if longest > _MOST_DRAFTS:
        raise SamplingUnsupportedError(
            f"block verification of {longest} drafts in a step is not replayed; {_MOST_DRAFTS} are",
            where=trace.where,
        )
    end = prompt_tokens + max(step.first + step.rows - 1 for step in steps)
    if end > model.config.context_length:
        raise ContextLengthError(
            f"drafts up to position {end} exceed the model's {model.config.context_length}",
            where=trace.where,
        )


def follows_distribution(trace: Trace) -> bool:
    """Whether the tokens of a rule that no seed decides have the model's distribution.

    Those of `block` do where a step's coins are its own, as ours are. vLLM's are looked at again by the next
    step (`reference/speculation/rules.py`), and nobody has read another engine's.
    """
    rule = trace.speculation.rule
    return rule not in LOSSY and (rule != "block" or trace.noise == "gumbel-pos-v1")


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
    distribution that every engine agrees on. What a request's own rules make of it, or filters that keep no
    prefix of it, is not worked out here.
    Drafts are left out of account: rules that are known to be lossless leave the distribution alone, and
    those that do not are left out altogether.
    """
    if not isinstance(problem, TraceIncompleteError | NoiseUnknownError) or trace.sampling.greedy:
        return None
    if trace.sampling.ruled or trace.sampling.shaped or not follows_distribution(trace):
        return None
    trace = replace(trace, speculation=Speculation())
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


def _is_known(rule: str) -> bool:
    return is_synchronised(rule) or rule in LOSSLESS or rule in LOSSY


# Fields of `sampling` that change what is returned of the result, not which tokens are sampled.
_HARMLESS = frozenset({"logprobs", "prompt_logprobs", "logprobs_mode", "include_stop_str_in_output"})


def _refuse_unmodelled(trace: Trace) -> None:
    spec = trace.sampling
    reasons = [
        name
        for name, is_on in (
            (f"speculation rule {trace.speculation.rule!r}", not _is_known(trace.speculation.rule)),
            # Dividing logits by less than this overflows float32; vLLM raises such temperatures itself.
            ("a temperature below 1e-4", 0.0 < spec.temperature < 1e-4),
            # Fields of `sampling` that `SamplingSpec` has no place for: none of them is known to be harmless.
            *((f"sampling.{name}", name not in _HARMLESS) for name in trace.extra.get("sampling") or ()),
        )
        if is_on
    ]
    if reasons:
        raise SamplingUnsupportedError(f"{', '.join(reasons)} cannot be replayed yet", where=trace.where)


def _refuse_policy(trace: Trace, model: ReferenceModel) -> None:
    """See that the declared policy is known, and that this model can be run under it."""
    if trace.policy is None:
        return
    try:
        policy = Policy.parse(trace.policy)
        policy.applied(model)
    except OptionError as refusal:
        raise SamplingUnsupportedError(refusal.message, where=trace.where, fix=refusal.fix) from None
    if is_speculated(trace):
        said = f"policy {policy.name} beside speculation rule {trace.speculation.rule!r}"
        raise SamplingUnsupportedError(f"{said} cannot be replayed yet", where=trace.where)


def _refuse_shape(trace: Trace, scheme: NoiseScheme) -> None:
    try:
        check_shape(trace.sampling, scheme, speculated=is_speculated(trace))
    except SamplingUnsupportedError as refusal:
        raise SamplingUnsupportedError(refusal.message, where=trace.where) from None


def prompt_ids(trace: Trace, reference: Reference) -> tuple[int, ...]:
    """The prompt's token ids: as logged, else as the reference's template or tokenizer makes them.

    Raises:
        TraceIncompleteError: there is nothing to make them of.
    """
    if trace.prompt_token_ids:
        return trace.prompt_token_ids
    if trace.messages is not None:
        return tuple(reference.tokenizer.encode_chat(trace.messages))
    if trace.prompt_text is not None:
        return tuple(reference.tokenizer.encode(trace.prompt_text, add_special_tokens=True))
    raise TraceIncompleteError("no prompt ids, messages or prompt text", where=trace.where)
