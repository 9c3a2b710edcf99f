"""`audit demo`: the whole story on the shipped model."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from auditor.commands import options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from auditor.demonstration import Audit, Demonstration


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("audit-demo.html"),
    show_default=True,
    metavar="FILE",
    help="Where the page goes; an earlier demo's page is replaced. Its profile is put beside it.",
)
@click.option(
    "--alpha", type=float, default=0.001, show_default=True, help="False-alarm rate of each verdict."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Master seed: other prompts, other requests."
)
@options.format_option
@options.threads_option
def demo(out: Path, alpha: float, seed: int, output_format: str, threads: int | None) -> None:
    r"""Audit honest and dishonest providers of the shipped model, and write a page about it.

    Takes a minute or two. Needs no files, no network and no accelerator. Exit status 0 whatever the verdicts.

    \b
    Example:
      audit demo --out demo.html
    """
    from auditor.demonstration import demo as run  # noqa: PLC0415
    from auditor.demonstration import demonstration_to_json  # noqa: PLC0415
    from auditor.page import check_place, profile_place, write_page  # noqa: PLC0415

    options.set_threads(threads)
    check_place(out)
    with _pacing_bar() as progress:
        demonstration = run(alpha=alpha, seed=seed, progress=progress)
    write_page(out, demonstration)
    if output_format == "json":
        files = {"page": str(out), "profile_file": str(profile_place(out))}
        click.echo(json.dumps({**demonstration_to_json(demonstration), **files}, allow_nan=False))
    else:
        print_demonstration(demonstration, out)


@contextmanager
def _pacing_bar() -> Iterator[Callable[[str, float, float], None]]:
    """Show what is being done and the time left, on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    columns = (
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=120.0,
    ) as bar:
        task = bar.add_task("loading the model", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)


def print_demonstration(
    demonstration: Demonstration, page: Path | None, console: Console | None = None
) -> None:
    """Print the story: what was done, the table, how to read it, what to do next."""
    from auditor.commands.screen import FILE_WIDTH, Screen  # noqa: PLC0415

    console = console or Screen(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    profile = demonstration.profile
    console.print(
        f"\nAll providers claim to run the same model, [bold]{escape(demonstration.model)}[/].\n"
        f"Their logs were replayed on the real one; what honest rounding looks like was learned first,\n"
        f"from {profile.honest_tokens:,} tokens of a provider known to be honest.\n"
    )
    console.print(_table(demonstration.audits))
    bar = f"{1 / demonstration.alpha:,.0f}"
    console.print(
        f"\n[bold]match[/]    how often the replay returns the same token; honest rounding costs a little"
        f"\n[bold]e-value[/]  how much better cheating explains the log than the best honest excuse;"
        f"\n         convicted at {bar}, which honest providers reach in at most one audit of {bar} "
        f"(alpha {demonstration.alpha:g})"
        f"\n[bold]power[/]    chance that a log of this size convicts; where low, no conviction means nothing"
    )
    if page is not None:
        from auditor.page import next_steps, profile_place  # noqa: PLC0415

        console.print(
            f"\n{demonstration.seconds:.0f} seconds. The page, with plots: [bold]{escape(str(page))}[/]"
        )
        console.print("\n[bold]Next[/]")
        for command, why in next_steps(str(profile_place(page))):
            console.print(f"  [cyan]{escape(command)}[/]\n      {escape(why)}", soft_wrap=True)


def _table(audits: tuple[Audit, ...]) -> Table:
    from auditor.commands.screen import styled  # noqa: PLC0415
    from auditor.demonstration import conclusion, evidence_text  # noqa: PLC0415

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("provider", no_wrap=True)
    table.add_column("what it really ran")
    table.add_column("match", justify="right", no_wrap=True)
    table.add_column("e-value", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("tokens to convict")
    for audit in audits:
        table.add_row(
            escape(audit.cause),
            escape(audit.really_ran),
            f"{audit.match_rate:.2%}",
            evidence_text(audit.result.log_e),
            styled(audit.result.outcome),
            escape(conclusion(audit)),
        )
    return table
