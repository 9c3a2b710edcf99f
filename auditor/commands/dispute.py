"""`audit dispute`: contest a verdict, answer, resolve."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from auditor.commands import options
from auditor.commands.schedule import client_of
from auditor.commands.submit import service_options


def _statement(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--evidence", multiple=True, metavar="ID", help="AUDIT/N, or any name; repeatable."),
        click.option("--statement", required=True, help="What is said."),
        click.option("--by", required=True, help="Who says it."),
    ):
        command = option(command)
    return command


@click.group()
def dispute() -> None:
    """Contest the verdict of an audit; an upheld dispute takes its evidence out of the standing."""


@dispute.command()
@click.argument("audit_id")
@_statement
@service_options
@options.format_option
def file(
    audit_id: str,
    by: str,
    statement: str,
    evidence: tuple[str, ...],
    url: str | None,
    key: str | None,
    output_format: str,
) -> None:
    """File a dispute about an audit; prints its id.

    \b
    Example:
      audit dispute file aud_019acb7d3f4b7d0f8e6a0c1b2d3e4f50 --by "Jo, acme" --statement "it was declared"
    """
    value = {"audit": audit_id, "by": by, "statement": statement, "evidence": list(evidence)}
    with client_of("dispute file", url, key) as client:
        made = client.make("/v1/disputes", value)
    click.echo(json.dumps(made) if output_format == "json" else made["id"])


@dispute.command()
@click.argument("dispute_id")
@_statement
@service_options
def answer(
    dispute_id: str, by: str, statement: str, evidence: tuple[str, ...], url: str | None, key: str | None
) -> None:
    """Answer in a dispute."""
    value = {"by": by, "statement": statement, "evidence": list(evidence)}
    with client_of("dispute answer", url, key) as client:
        click.echo(client.call("POST", f"/v1/disputes/{dispute_id}/answer", json=value)["state"])


@dispute.command()
@click.argument("dispute_id")
@click.argument("outcome", type=click.Choice(["upheld", "rejected", "withdrawn"]))
@_statement
@service_options
def resolve(
    dispute_id: str,
    outcome: str,
    by: str,
    statement: str,
    evidence: tuple[str, ...],
    url: str | None,
    key: str | None,
) -> None:
    """Resolve a dispute for good; `upheld` says that the provider was right."""
    value = {"outcome": outcome, "by": by, "statement": statement, "evidence": list(evidence)}
    with client_of("dispute resolve", url, key) as client:
        click.echo(client.call("POST", f"/v1/disputes/{dispute_id}/resolve", json=value)["outcome"])


@dispute.command()
@click.argument("dispute_id")
@service_options
@options.format_option
def show(dispute_id: str, url: str | None, key: str | None, output_format: str) -> None:
    """Show a dispute with everything said."""
    with client_of("dispute show", url, key) as client:
        found = client.call("GET", f"/v1/disputes/{dispute_id}")
    if output_format == "json":
        click.echo(json.dumps(found))
        return
    click.echo(f"{found['audit']}  {found['provider']}  {found['outcome'] or found['state']}")
    for one in found["statements"]:
        click.echo(f"  {one['at'][:16]}  {one['kind']} by {one['by']}: {one['statement']}")
        for evidence in one["evidence"]:
            click.echo(f"      {evidence}")


@dispute.command(name="list")
@service_options
@options.format_option
def list_(url: str | None, key: str | None, output_format: str) -> None:
    """List disputes, newest first."""
    with client_of("dispute list", url, key) as client:
        found = list(client.items("/v1/disputes"))
    if output_format == "json":
        click.echo(json.dumps(found))
        return
    for one in found:
        click.echo(f"{one['id']}  {one['audit']}  {one['provider']:<16}  {one['outcome'] or one['state']}")
