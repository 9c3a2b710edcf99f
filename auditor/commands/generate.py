"""`audit generate`: seeded traces from the reference engine."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.commands import options
from auditor.commands.rule_options import rule_options, rules_of

if TYPE_CHECKING:
    from auditor.fingerprints.activation_difr import FingerprintKind
    from auditor.generation import Drafting, Provider
    from auditor.reference.sampling import SamplingSpec

Conversation = tuple[dict[str, object], ...]


@click.command()
@options.model_option
@options.adapter_option
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Trace file to write."
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.option(
    "--deviation",
    default="honest",
    show_default=True,
    metavar="NAME",
    help="What is run instead; --list names them.",
)
@click.option(
    "--list",
    "list_them",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    help="List the deviations.",
    callback=lambda context, _parameter, wanted: _list(context) if wanted else None,
)
@click.option(
    "--requests", type=click.IntRange(min=1), default=32, show_default=True, help="How many requests."
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help='JSON Lines of {"messages": [...]}. [default: conversations for the demo model]',
)
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    default=None,
    metavar="LOG",
    help="Answer the sampled requests of this log, with their own prompts and parameters, for "
    "`audit verify --compare`. Instead of --prompts, --requests and the sampling options.",
)
@click.option(
    "--each",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="With --like: answers of each request.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Master seed: prompts and per-request seeds."
)
@click.option(
    "--noise",
    default="gumbel-pos-v1",
    show_default=True,
    metavar="SCHEME",
    help="Noise scheme to sample with.",
)
@options.dtype_option
@options.batch_size_option
@click.option("--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True)
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="0 is off.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.0, show_default=True)
@rule_options
@click.option("--max-tokens", type=click.IntRange(min=1), default=200, show_default=True)
@options.other_model_option
@click.option(
    "--fingerprints",
    "fingerprint_text",
    default=None,
    metavar="CODE:K[:WINDOW]",
    help="Write an activation fingerprint beside each output: K features (1 to 128) coded as int4, int8, fp8 "
    "or bf16, one for WINDOW tokens, e.g. int8:16. [default: none]",
)
@click.option(
    "--speculation",
    default=None,
    metavar="RULE",
    help="Decode speculatively. `coupled` changes no token, and is quicker. As some providers do, `standard` "
    "keeps a draft d if p(d) exceeds a coin keyed by seed and position, and `block` judges a step's drafts "
    "together: other tokens, of the same distribution. [default: no drafts]",
)
@click.option(
    "--drafter",
    default=None,
    metavar="NAME|DIR",
    help="What drafts: a directory with a model of the same vocabulary or, with `coupled`, also ngram, "
    "recycling, suffix or blend. [default: blend with `coupled`, else the demo model's own draft]",
)
@click.option(
    "--log-drafts/--no-log-drafts",
    default=True,
    show_default=True,
    help="Whether the traces say which drafts were judged.",
)
@click.option(
    "--policy",
    "policy_line",
    default=None,
    metavar="LINE",
    help="Cut or round the cache by a rule, and declare it: the traces say so and are replayed under it. For "
    "example 'kv/h2o budget=64', or kv/int8. [default: the whole cache]",
)
@click.option(
    "--hidden-tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Bill the first N output tokens as hidden reasoning, for `audit commit`.",
)
@options.threads_option
def generate(
    model_directory: Path | None,
    adapter: Path | None,
    out: Path,
    force: bool,
    deviation: str,
    requests: int,
    prompts: Path | None,
    like: Path | None,
    each: int,
    seed: int,
    noise: str,
    dtype: str,
    batch_size: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    max_tokens: int,
    other_model: Path | None,
    fingerprint_text: str | None,
    speculation: str | None,
    drafter: str | None,
    log_drafts: bool,
    policy_line: str | None,
    hidden_tokens: int,
    threads: int | None,
    **rules: Any,
) -> None:
    """Make seeded traces with the reference engine, honest or with one deviation.

    The traces always declare the honest model, prompt, seed and parameters.

    \b
    Examples:
      audit generate --out honest.jsonl.gz --requests 200
      audit generate --out cheat.jsonl.gz --deviation weights/int4 --seed 1
      audit generate --out json.jsonl.gz --json-schema schema.json --repetition-penalty 1.1
      audit generate --out graded.jsonl.gz --fingerprints int8:16
      audit generate --out fast.jsonl.gz --speculation coupled --drafter suffix
      audit generate --out drafted.jsonl.gz --speculation block
      audit generate --out cut.jsonl.gz --policy 'kv/h2o budget=64'
      audit generate --out trusted.jsonl.gz --like texts.jsonl --each 16 --seed 77
    """
    from auditor.errors import OptionError  # noqa: PLC0415
    from auditor.generation import Provider, derived_seed  # noqa: PLC0415
    from auditor.generation import generate as run  # noqa: PLC0415
    from auditor.profiles import companion_model  # noqa: PLC0415
    from auditor.reference.demo.prompts import demo_conversations  # noqa: PLC0415
    from auditor.reference.deviations import deviation as named  # noqa: PLC0415
    from auditor.reference.loading import load_model  # noqa: PLC0415
    from auditor.reference.policies import Policy  # noqa: PLC0415
    from auditor.reference.sampling import SamplingSpec  # noqa: PLC0415
    from auditor.trace_files import TraceWriter  # noqa: PLC0415

    options.set_threads(threads)
    wanted = named(deviation)
    kind = None if fingerprint_text is None else fingerprint_kind(fingerprint_text)
    provider = Provider.load(
        model_directory or options.demo_model(), dtype=dtype, batch_size=batch_size, adapter=adapter
    )
    if like is not None and prompts is not None:
        raise OptionError("are both where requests come from", where="--like and --prompts", fix="give one")
    other = other_model or (companion_model(provider.model.digest) if wanted.needs_other_model else None)
    spec = SamplingSpec(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        max_tokens=max_tokens,
        **rules_of(**rules),
    )
    if like is not None:
        asked = requests_like(like, each)
    else:
        made = read_conversations(prompts, requests) if prompts else demo_conversations(requests, seed)
        asked = [(spec, list(made))]
    other_model_loaded = load_model(other, dtype=provider.model.dtype) if other is not None else None
    policy = None if policy_line is None else Policy.parse(policy_line)
    drafting = None if speculation is None else drafting_by(speculation, drafter, log_drafts, provider)
    traces = chain.from_iterable(
        run(
            provider,
            conversations,
            deviation=wanted,
            seed=seed if like is None else derived_seed(seed, n),
            noise=noise,
            sampling=sampling,
            other_model=other_model_loaded,
            fingerprints=kind,
            drafting=drafting,
            policy=policy,
            hidden_tokens=hidden_tokens,
        )
        for n, (sampling, conversations) in enumerate(asked)
    )
    count, tokens = sum(len(conversations) for _, conversations in asked), 0
    with (
        TraceWriter(out, overwrite=force) as writer,
        options.progress_bar("generating", count) as advance,
    ):
        for trace in traces:
            writer.write(trace)
            tokens += len(trace.output_token_ids or ())
            advance(1)
    click.echo(f"{out}: {count} requests, {tokens:,} output tokens, {provider.recipe}", err=True)


def drafting_by(rule: str, drafter: str | None, logged: bool, provider: Provider) -> Drafting:
    """How the provider speculates.

    Raises:
        OptionError: a rule that is not known or does not take such drafts, no model to draft with, or one of
            another vocabulary.
        ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError, ModelCorruptError: see `load_model`.
    """
    from auditor.errors import OptionError  # noqa: PLC0415
    from auditor.generation import Drafting  # noqa: PLC0415
    from auditor.profiles import companion_model  # noqa: PLC0415
    from auditor.reference.drafters import DRAFTERS, ModelDrafter  # noqa: PLC0415
    from auditor.reference.loading import load_model  # noqa: PLC0415
    from auditor.reference.speculation import RULES  # noqa: PLC0415

    known = dict.fromkeys(["coupled", *(r.name for r in RULES)])
    if rule not in known:
        raise OptionError(f"rule {rule!r} is not one of: {', '.join(known)}", where="--speculation")
    if rule == "coupled" and (drafter is None or drafter in DRAFTERS):
        return Drafting(rule, DRAFTERS[drafter or "blend"]())
    if drafter in DRAFTERS and not Path(drafter).is_dir():
        raise OptionError(
            f"rule {rule!r} judges the drafts of a model", where="--drafter", fix="name its directory"
        )
    directory = Path(drafter) if drafter else companion_model(provider.model.digest)
    if directory is None:
        raise OptionError("no model to draft with", where="--drafter", fix="name a smaller model's directory")
    model = load_model(directory, dtype=provider.model.dtype)
    vocabularies = [m.config.vocab_size for m in (model, provider.model)]
    if vocabularies[0] != vocabularies[1]:
        raise OptionError(
            f"a vocabulary of {vocabularies[0]:,} tokens beside {vocabularies[1]:,}", where="--drafter"
        )
    return Drafting(rule, ModelDrafter(model, noise_aware=rule == "coupled"), logged)


def fingerprint_kind(text: str) -> FingerprintKind:
    """The kind that `CODE:K` or `CODE:K:WINDOW` names.

    Raises:
        OptionError: not of this form, or out of range.
    """
    from auditor.errors import OptionError  # noqa: PLC0415
    from auditor.fingerprints.activation_difr import FingerprintKind  # noqa: PLC0415

    try:
        return FingerprintKind.parse(text)
    except ValueError as error:
        raise OptionError(str(error), where="--fingerprints", fix="for example int8:16") from error


def requests_like(log: Path, each: int) -> list[tuple[SamplingSpec, list[Conversation]]]:
    """The distinct sampled requests of a log, each `each` times, by sampling parameters.

    Raises:
        AuditError: the log or a line of it cannot be read.
        OptionError: nothing sampled, or a request without messages, whose prompt no template can make again.
    """
    from auditor.errors import AuditError, OptionError  # noqa: PLC0415

    found: dict[str, tuple[SamplingSpec, dict[str, Conversation]]] = {}
    for item in options.log_source((str(log),), "auto", None, None)():
        if isinstance(item, AuditError):
            raise item
        if item.sampling.greedy:
            continue
        if item.messages is None:
            raise OptionError("has no messages to answer", where=item.where, fix="log them")
        if item.sampling.max_tokens is None:
            raise OptionError(
                "does not say how long its answer may get", where=item.where, fix="log max_tokens"
            )
        _, conversations = found.setdefault(repr(item.sampling), (item.sampling, {}))
        messages = tuple(dict(message) for message in item.messages)
        conversations.setdefault(repr(messages), messages)
    if not found:
        raise OptionError("holds no sampled request", where=str(log))
    return [(spec, [c for c in asked.values() for _ in range(each)]) for spec, asked in found.values()]


def read_conversations(path: Path, most: int) -> list[Conversation]:
    """The first `most` conversations of a JSON Lines file.

    Raises:
        TraceFileError, TraceSyntaxError, TraceFieldError: the file or a line cannot be used.
    """
    from auditor.errors import TraceFieldError, TraceFileError, TraceSyntaxError  # noqa: PLC0415

    conversations = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceFileError(f"cannot be read: {error}", where=str(path)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise TraceSyntaxError(f"not JSON: {error}", where=where) from error
        messages = value.get("messages") if isinstance(value, dict) else None
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages) or not messages:
            raise TraceFieldError("field messages: not a list of messages", where=where)
        conversations.append(tuple(messages))
        if len(conversations) == most:
            break
    return conversations


def _list(context: click.Context) -> None:
    from auditor.reference.deviations import DEVIATIONS  # noqa: PLC0415

    for name, deviation in DEVIATIONS.items():
        click.echo(f"{name:22} {deviation.gain}")
    context.exit()
