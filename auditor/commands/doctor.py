"""`audit doctor`: what this installation can replay, and whether its environment is in order."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditor.commands import options

if TYPE_CHECKING:
    from auditor.doctor import Check, SchemeRow


@click.command()
@click.option(
    "--database",
    default=None,
    metavar="URL",
    help="Check a service's database instead: every invariant, in one transaction.",
)
@click.option(
    "--blobs",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    metavar="DIR",
    help="With --database: check too that every log's bytes are there.",
)
@options.format_option
def doctor(database: str | None, blobs: Path | None, output_format: str) -> None:
    """Print the noise schemes that are replayed, those that are refused and why, and check the environment.

    \b
    audit doctor                    tables
    audit doctor --format json      the same, for programs
    audit doctor --database postgresql://auditor@db/auditor --blobs /srv/blobs

    confirmed: a recorded trace of that engine was replayed. unconfirmed: derived from the engine's source and
    compared with its own code on a CPU where that runs; no recording of the engine at work was at hand.

    Exit status 0, or 2 when a check fails.
    """
    if database is not None:
        raise click.exceptions.Exit(_check_service(database, blobs, output_format))
    from auditor.doctor import environment_checks, scheme_rows  # noqa: PLC0415  torch loads slowly

    rows, checks = scheme_rows(), environment_checks()
    if output_format == "json":
        schemes, found = [asdict(row) for row in rows], [asdict(check) for check in checks]
        click.echo(json.dumps({"schema": "auditor.doctor/v1", "schemes": schemes, "checks": found}, indent=1))
    else:
        _print(rows, checks, terminal=sys.stdout.isatty())
    if any(check.ok is False for check in checks):
        raise click.exceptions.Exit(2)


def _check_service(database: str, folder: Path | None, output_format: str) -> int:
    from auditor.service.invariants import check_all  # noqa: PLC0415
    from auditor.service.places import open_blobs  # noqa: PLC0415
    from auditor.store import Store  # noqa: PLC0415

    with Store.open(database) as store, store.transaction() as connection:
        found = check_all(connection, None if folder is None else open_blobs(folder, None))
    if output_format == "json":
        value = [
            {
                "name": f.invariant.name,
                "holds": not f.broken_by,
                "says": f.invariant.sentence,
                "broken_by": f.broken_by,
            }
            for f in found
        ]
        click.echo(json.dumps({"schema": "auditor.invariants/v1", "invariants": value}, indent=1))
    else:
        for number, item in enumerate(found, 1):
            mark = "FAILS" if item.broken_by else "ok"
            broken = f": {', '.join(item.broken_by)}" if item.broken_by else ""
            click.echo(
                f"{number:2d}  {mark:5s}  {item.invariant.name:21s}  {item.invariant.sentence}{broken}"
            )
    return 2 if any(item.broken_by for item in found) else 0


def _print(rows: list[SchemeRow], checks: list[Check], *, terminal: bool) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(width=None if terminal else 180)
    schemes = Table("scheme", "engine", "versions", "status", "source", "needs, or why not")
    for row in rows:
        schemes.add_row(row.scheme, row.engine, row.versions, row.status, row.source, row.needs)
    console.print(schemes)
    environment = Table("check", "", "found")
    marks = {True: "ok", None: "-", False: "FAILS"}
    for check in checks:
        environment.add_row(check.name, marks[check.ok], check.detail)
    console.print(environment)
