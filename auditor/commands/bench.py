"""`audit bench`: this machine, and what share of it the reference core reaches."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditor.commands import options

if TYPE_CHECKING:
    from auditor.benchmark import Measurement


@click.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="Checkpoint to measure. [default: the demo model]",
)
@click.option("--dtype", type=options.DTYPE_NAMES, default="float32", show_default=True)
@options.device_option
@options.threads_option
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="JSON is for tracking.",
)
def bench(model: Path | None, dtype: str, device: str, threads: int | None, output_format: str) -> None:
    """Measure this machine's limits, then prefill, head, scoring and decoding against them.

    \b
    audit bench                                the demo model, a table
    audit bench --model DIR --format json      your model, for tracking
    audit bench --model DIR --device cuda --dtype bfloat16

    Figures move with whatever else the machine does; compare shares of the limit, measured in the same run.
    """
    from auditor.benchmark import measure  # noqa: PLC0415  torch loads slowly
    from auditor.reference.model import Model  # noqa: PLC0415

    options.set_threads(threads)
    directory = options.demo_model() if model is None else model
    loaded = Model.load(directory, **options.replay_on(device, dtype))
    click.echo(f"measuring {directory.name} in {dtype} on {device}; half a minute or so", err=True)
    found = measure(loaded)
    if output_format == "json":
        rows = [{"name": m.name, "value": round(m.value, 3), "unit": m.unit, "limit": m.limit} for m in found]
        click.echo(
            json.dumps(
                {"schema": "auditor.bench/v1", "digest": loaded.digest, "measurements": rows}, indent=1
            )
        )
        return
    _print(found, terminal=sys.stdout.isatty())


def _print(found: list[Measurement], *, terminal: bool) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("measurement")
    for column in ("value", "unit", "limit here", "share"):
        table.add_column(column, justify="right")
    for m in found:
        limit = "" if m.limit is None else f"{m.limit:,.0f}"
        share = "" if m.limit is None or m.unit == "%" else f"{m.value / m.limit:.0%}"
        table.add_row(m.name, f"{m.value:,.1f}" if m.value < 100 else f"{m.value:,.0f}", m.unit, limit, share)
    Console(width=None if terminal else 100).print(table)
