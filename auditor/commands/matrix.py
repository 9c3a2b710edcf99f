"""`audit matrix`: every deviation simulated, and what it takes to catch it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.commands import options

if TYPE_CHECKING:
    from auditor.matrix import HonestProvider


@click.command()
@click.argument("names", nargs=-1)
@click.option("--list", "only_list", is_flag=True, help="Name the deviations, with what a provider gains.")
@options.model_option
@options.other_model_option
@options.dtype_option
@options.batch_size_option
@click.option(
    "--requests",
    type=click.IntRange(min=16),
    default=128,
    show_default=True,
    help="Requests of the audited log; three times as many calibrate.",
)
@click.option(
    "--alpha", type=click.FloatRange(1e-6, 0.5), default=0.01, show_default=True, help="False-alarm rate."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Remember finished rows there; the same command goes on where an earlier one stopped.",
)
@click.option(
    "--honest-audits",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Disjoint audits of fresh honest requests besides, eight requests each.",
)
@click.option(
    "--diagnosis/--no-diagnosis",
    default=True,
    show_default=True,
    help="Name the cause of every row that is caught; some 90 passes over 24 requests.",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "csv", "markdown", "html"]),
    default="table",
    show_default=True,
)
@options.threads_option
def matrix(
    names: tuple[str, ...],
    only_list: bool,
    model_directory: Path | None,
    other_model: Path | None,
    dtype: str,
    batch_size: int,
    requests: int,
    alpha: float,
    out: Path | None,
    honest_audits: int,
    diagnosis: bool,
    output_format: str,
    threads: int | None,
) -> None:
    """Simulate dishonest providers and measure how many tokens it takes to catch each.

    An honest provider serves the model and is logged twice: one log calibrates, on the other every deviation
    draws, at each logged prefix, the token that it would have returned. Power is the share of logs, made of
    requests drawn from it, that the verdict's e-value convicts, with activation fingerprints and without.
    NAMES are families (`kv`) or deviations (`kv/fp8`); without any, all of them.

    \b
    Examples:
      audit matrix --list
      audit matrix weights kv/fp8 --requests 64
      audit matrix --out matrix.jsonl --format markdown > matrix.md
      audit matrix --out matrix.jsonl --format html > matrix.html
    """
    from auditor.matrix import Run, chosen  # noqa: PLC0415
    from auditor.matrix.honest_audits import honest_audits as audited  # noqa: PLC0415
    from auditor.matrix.summary import report  # noqa: PLC0415

    wanted = chosen(names)
    if only_list:
        _list(wanted)
        return
    options.set_threads(threads)
    provider = provider_of(model_directory, other_model, dtype, batch_size, requests)
    run, rows, fresh = Run.of(provider, alpha, out), [], None
    with options.progress_bar("simulating dishonest providers", len(wanted) + 1) as advance:
        for row in run.rows(wanted):
            rows.append(row)
            advance(1)
    if diagnosis:
        rows = run.name_causes(rows)
    if honest_audits:
        with options.progress_bar("auditing honest providers", honest_audits) as advance:
            fresh = audited(provider, honest_audits, run.memory, advance)
    found = report(
        rows,
        model_digest=provider.provider.model.digest,
        recipe=provider.provider.recipe,
        alpha=alpha,
        honest_audits=fresh,
    )
    if output_format == "table":
        _print(found)
    else:
        click.echo(_written(found, output_format))


def _written(found: dict[str, Any], output_format: str) -> str:
    from auditor.matrix.page import render_matrix  # noqa: PLC0415
    from auditor.matrix.tables import comma_separated, markdown  # noqa: PLC0415

    if output_format == "json":
        return json.dumps(found)
    if output_format == "html":
        return render_matrix(found).rstrip("\n")
    return markdown(found) if output_format == "markdown" else comma_separated(found).rstrip("\n")


def _list(names: list[str]) -> None:
    from auditor.reference.deviations import CATALOGUE  # noqa: PLC0415

    width = max(map(len, names))
    for name in names:
        entry = CATALOGUE[name]
        click.echo(f"{name:{width}}  {entry.gain}  [{entry.source}]")


def provider_of(
    directory: Path | None, other: Path | None, dtype: str, batch_size: int, requests: int
) -> HonestProvider:
    """The honest provider that options describe."""
    from auditor.generation import Provider  # noqa: PLC0415
    from auditor.matrix import HonestProvider  # noqa: PLC0415
    from auditor.profiles import companion_model  # noqa: PLC0415
    from auditor.reference.loading import load_model  # noqa: PLC0415
    from auditor.replay import Reference  # noqa: PLC0415

    place = directory or options.demo_model()
    provider = Provider.load(place, dtype=dtype, batch_size=batch_size)
    reference = Reference.load(place)
    companion = other or companion_model(reference.model.digest)
    if companion is not None:
        second = load_model(companion, dtype=provider.model.dtype, wide_matmul=dtype != "float32")
    else:  # every second layer dropped stands in for a smaller relative
        second = provider.model.replace(
            skip_layers=frozenset(range(1, provider.model.config.num_hidden_layers, 2))
        )
    return HonestProvider(provider, reference, second, requests)


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table  # noqa: PLC0415

    from auditor.commands.screen import FILE_WIDTH, Screen  # noqa: PLC0415
    from auditor.matrix.tables import honest_text, tokens_text  # noqa: PLC0415

    console = Screen(highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    table = Table("deviation", "shows", box=None, padding=(0, 2))
    for column in ("mismatches", "fused, 90 %", "99 %", "tokens alone", "fingerprints", "published", "named"):
        table.add_column(column, justify="right")
    for row in found["rows"]:
        rate = f"{row['mismatches'] / max(row['tokens'], 1):.4f}"
        ways = ("fused", "0.9"), ("fused",), ("tokens_alone",), ("fingerprints",), ("published",)
        named = [cause for cause, _ in row.get("diagnosis", {}).get("named", ())]
        table.add_row(
            row["name"],
            row["timing"],
            rate,
            *(tokens_text(row, *way) for way in ways),
            named[0] if named else "",
        )
    console.print(table)
    alarms = found["false_alarms"]
    low, high = alarms["interval"]
    console.print(
        f"alpha {found['alpha']:g}: of {alarms['audits']:,} honest logs at any size at most "
        f"{alarms['most']['fused']:.4f} convicted (95 %: {low:.4f} to {high:.4f}), "
        f"drawn from {alarms['requests']} requests"
    )
    if found["honest_audits"] is not None:
        console.print(honest_text(found))
    console.print(f"{found['caught']} of {found['rows_measured']} deviations caught with power 0.99")
