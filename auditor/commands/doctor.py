"""`audit doctor`: what this installation can replay, and whether its environment is in order."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from auditor.commands import options

if TYPE_CHECKING:
    from auditor.doctor import Check, SchemeRow


@click.command()
@options.format_option
def doctor(output_format: str) -> None:
    """Print the noise schemes that are replayed, those that are refused and why, and check the environment.

    \b
    audit doctor                    tables
    audit doctor --format json      the same, for programs

    confirmed: a recorded trace of that engine was replayed. unconfirmed: derived from the engine's source and
    compared with its own code on a CPU where that runs; no recording of the engine at work was at hand.

    Exit status 0, or 2 when a check fails.
    """
    from auditor.doctor import environment_checks, scheme_rows  # noqa: PLC0415  torch loads slowly

    rows, checks = scheme_rows(), environment_checks()
    if output_format == "json":
        schemes, found = [asdict(row) for row in rows], [asdict(check) for check in checks]
        click.echo(json.dumps({"schema": "auditor.doctor/v1", "schemes": schemes, "checks": found}, indent=1))
    else:
        _print(rows, checks, terminal=sys.stdout.isatty())
    if any(check.ok is False for check in checks):
        raise click.exceptions.Exit(2)


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
