"""`audit schedule`: a client of the service's timetable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.commands import options
from auditor.commands.extras import service_extra
from auditor.commands.submit import service_options

if TYPE_CHECKING:
    from auditor.service.client import Client

_STATUSES = {"inconsistent": 1, "inconclusive": 3, "consistent": 0}
_ID = click.argument("schedule_id")


def client_of(command: str, url: str | None, key: str | None) -> Client:
    """A client of the service.

    Raises:
        OptionError: no key, no address, or a package is missing.
    """
    with service_extra(command):
        from auditor.service.client import Client  # noqa: PLC0415
    return Client(url, key)


@click.group()
def schedule() -> None:
    """Audit a provider's new traffic again and again, and keep its standing."""


@schedule.command()
@click.option("--cron", required=True, help='Minute, hour, day, month, day of week: "0 6 * * 1".')
@click.option("--zone", default="UTC", show_default=True, help="Time zone of --cron, e.g. Europe/Berlin.")
@click.option("--provider", required=True, help="As its logs name it.")
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="`audit schedule policy` prints one.",
)
@service_options
@options.format_option
def add(
    cron: str,
    zone: str,
    provider: str,
    policy_file: Path,
    url: str | None,
    key: str | None,
    output_format: str,
) -> None:
    """Add a schedule; prints its id.

    Slots are moments in UTC; a time of day that the clock skips fires when the skipped hour ends, one that
    comes twice fires once. A slot that nobody was there to fire fires once, late.

    \b
    Example:
      audit schedule add --cron "0 6 * * 1" --zone Europe/Berlin --provider acme --policy strict.toml
    """
    from auditor.errors import TraceFileError  # noqa: PLC0415
    from auditor.schedules.policy import parse_policy  # noqa: PLC0415
    from auditor.schedules.timetable import Timetable  # noqa: PLC0415

    try:
        text = policy_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceFileError(f"cannot be read: {error}", where=str(policy_file)) from None
    parse_policy(text, provider, where=str(policy_file))
    Timetable(cron, zone)
    value = {"provider": provider, "cron": cron, "zone": zone, "policy": text}
    with client_of("schedule add", url, key) as client:
        made = client.make("/v1/schedules", value)
    click.echo(json.dumps(made) if output_format == "json" else made["id"])


@schedule.command(name="list")
@service_options
@options.format_option
def list_(url: str | None, key: str | None, output_format: str) -> None:
    """List schedules."""
    with client_of("schedule list", url, key) as client:
        found = list(client.items("/v1/schedules"))
    if output_format == "json":
        click.echo(json.dumps(found))
        return
    for one in found:
        last = one["last"] or {}
        when = one["next"] or one["state"]
        said = last.get("verdict") or last.get("state") or "-"
        click.echo(f"{one['id']}  {one['provider']:<16}  {one['cron']!r} {one['zone']}  {when}  {said}")


@schedule.command()
@_ID
@service_options
@options.format_option
@click.pass_context
def show(
    context: click.Context, schedule_id: str, url: str | None, key: str | None, output_format: str
) -> None:
    """Show a schedule and its periods, newest first.

    Exit status: of the newest verdict on the provider, as of `audit verify`; 2 where there is none yet.
    """
    with client_of("schedule show", url, key) as client:
        found = client.call("GET", f"/v1/schedules/{schedule_id}")
        periods = list(client.items(f"/v1/schedules/{schedule_id}/periods"))
    if output_format == "json":
        click.echo(json.dumps({"schedule": found, "periods": periods}))
    else:
        policy = found["policy"]
        click.echo(f"{found['provider']}  {found['cron']!r} {found['zone']}  {found['state']}")
        click.echo(f"  policy {policy['name']} {policy['version']}, alpha {policy['alpha']:g}")
        click.echo(f"  next {found['next'] or '-'}")
        for period in periods:
            click.echo(_line(period))
    newest = next((p["verdict"] for p in periods if p["verdict"] is not None), None)
    context.exit(2 if newest is None else _STATUSES[newest])


def _line(period: dict[str, Any]) -> str:
    if period["verdict"] is None:
        said = period["state"] if period["error"] is None else f"{period['state']} [{period['error']}]"
        return f"  {period['slot'][:16]}  {said}"
    drawn = period["drawn"] or {}
    cause = f"  {period['causes'][0]['cause']}" if period["causes"] else ""
    tokens = f"{drawn.get('sampled_tokens', 0):,} of {drawn.get('tokens', 0):,} tokens"
    line = f"  {period['slot'][:16]}  {period['verdict']:<12}  e 10^{period['log10_e']}  {tokens}{cause}"
    return line + "".join(f"\n      {reason}" for reason in period["reasons"][:2])


@schedule.command()
@_ID
@service_options
def pause(schedule_id: str, url: str | None, key: str | None) -> None:
    """Fire no more until resumed."""
    _move("pause", schedule_id, url, key)


@schedule.command()
@_ID
@service_options
def resume(schedule_id: str, url: str | None, key: str | None) -> None:
    """Fire again, from the next slot on."""
    _move("resume", schedule_id, url, key)


def _move(move: str, schedule_id: str, url: str | None, key: str | None) -> None:
    with client_of(f"schedule {move}", url, key) as client:
        found = client.call("POST", f"/v1/schedules/{schedule_id}/{move}")
    click.echo(found["next"] or found["state"])


@schedule.command()
@_ID
@service_options
def remove(schedule_id: str, url: str | None, key: str | None) -> None:
    """End a schedule; its periods and the provider's standing stay."""
    with client_of("schedule remove", url, key) as client:
        client.call("DELETE", f"/v1/schedules/{schedule_id}")


@schedule.command()
@_ID
@service_options
def run(schedule_id: str, url: str | None, key: str | None) -> None:
    """End a period now, beside the timetable; prints its id."""
    with client_of("schedule run", url, key) as client:
        click.echo(client.call("POST", f"/v1/schedules/{schedule_id}/run")["id"])


@schedule.command()
def policy() -> None:
    """Print a policy file with every default."""
    from auditor.schedules.policy import EXAMPLE  # noqa: PLC0415

    click.echo(EXAMPLE, nl=False)
