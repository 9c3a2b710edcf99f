"""`audit report`: reports of stored audits, what proves them, and what of them is shown to whom."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditor.commands.keys import passphrase
from auditor.commands.report_exports import EXPORTS, read_file, save
from auditor.errors import OptionError, VerificationFailedError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.merkle.policy import Policy as LogPolicy
    from auditor.reports.packing import Logs
    from auditor.reports.policy import Policy
    from auditor.reports.trust_files import Trust
    from auditor.store import Store

MAX_PACK_BYTES = 512 * 1024 * 1024
REFUSED = 1
DATABASE = click.option("--database", default=None, metavar="URL", help="[default: AUDITOR_DATABASE_URL]")
TENANT = click.option("--tenant", default=None, help="Name or id; may be left out where there is only one.")
OUT = click.option(
    "--out", type=click.Path(path_type=Path), default=None, metavar="FILE", help="[default: stdout]"
)
PACK = click.argument("pack", type=click.Path(path_type=Path))


@click.group()
def report() -> None:
    """Compliance reports of stored audits, signed and logged; `verify` checks one offline."""


def tenant_of(connection: Connection, named: str | None) -> str:
    """The id of the tenant with this name or id, or of the only one."""
    from auditor.service import tenants  # noqa: PLC0415

    found = tenants.tenants(connection, after=None, limit=1000)
    chosen = [tenant for tenant in found if named in {tenant.id, tenant.name}] if named else found
    if len(chosen) != 1:
        names = ", ".join(tenant.name for tenant in found[:10]) or "none: nothing was submitted yet"
        raise OptionError("say whose audits", where="--tenant", fix=f"there are: {names}")
    return chosen[0].id


def _opened(database: str | None) -> Store:
    from auditor.store import Store  # noqa: PLC0415

    return Store.open(database)


@report.command()
@DATABASE
@TENANT
@click.option("--provider", default="", help="As audits were submitted with it. [default: all]")
@click.option("--from", "start", required=True, help="Begin of the period: a day (UTC) or a time with zone.")
@click.option("--to", "end", default=None, help="End of the period, not included. [default: now]")
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    default=None,
    help="TOML, as `audit schedule policy` prints it, or the policy.toml of a pack.",
)
@OUT
def make(
    database: str | None,
    tenant: str | None,
    provider: str,
    start: str,
    end: str | None,
    policy_file: Path | None,
    out: Path | None,
) -> None:
    """Make the report of a period, store it with its log entry, and print it (`auditor.report/v1`).

    The same period, provider and policy give the same report, whoever asks and however often.
    """
    from auditor.reports import make_report  # noqa: PLC0415
    from auditor.service.clock import now  # noqa: PLC0415

    began, policy = _moment(start, "--from"), read_policy(policy_file, provider)
    with _opened(database) as store:
        with store.transaction() as connection:
            owner = tenant_of(connection, tenant)
            ended = now(connection) if end is None else _moment(end, "--to")
        save(make_report(store, owner, provider, began, ended, policy), out)


def read_policy(path: Path | None, provider: str) -> Policy:
    """The policy, or a pack's record of one, as reports print it; the default policy without a file."""
    from auditor.reports.policy import MAX_POLICY_BYTES, Policy, parse_policy  # noqa: PLC0415

    if path is None:
        return Policy()
    raw = read_file(path, MAX_POLICY_BYTES)
    if b'"auditor.policy/v1"' in raw:
        from auditor.schedules import policy as schedules  # noqa: PLC0415
        from auditor.schedules.period_work import report_policy  # noqa: PLC0415

        return report_policy(
            schedules.parse_policy(raw.decode("utf-8", "replace"), provider, where=str(path))
        )
    return parse_policy(raw, str(path))


def _moment(text: str, where: str) -> int:
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise OptionError(f"{text[:40]!r} is no day or time", where=where, fix="such as 2026-11-02") from None
    if moment.tzinfo is None:
        if len(text) > len("2026-11-02"):
            raise OptionError(f"{text[:40]!r} has no zone", where=where, fix=f"such as {text[:20]}Z")
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


@report.command("list")
@DATABASE
@TENANT
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table")
def list_(database: str | None, tenant: str | None, output_format: str) -> None:
    """List reports, newest first."""
    import json  # noqa: PLC0415
    from dataclasses import asdict  # noqa: PLC0415

    from auditor.reports import listed_reports  # noqa: PLC0415
    from auditor.service.clock import to_text  # noqa: PLC0415

    with _opened(database) as store, store.transaction() as connection:
        found = listed_reports(connection, tenant_of(connection, tenant), limit=1000)
    for one in found:
        if output_format == "json":
            times = {name: to_text(getattr(one, name)) for name in ("start", "end", "created")}
            click.echo(json.dumps(asdict(one) | times))
        else:
            days = f"{to_text(one.start)[:10]} to {to_text(one.end)[:10]}"
            click.echo(f"{one.id}  {days}  {one.provider or 'all'}  {one.digest}")


@report.command()
@click.argument("name", metavar="REPORT")
@DATABASE
@TENANT
def remake(name: str, database: str | None, tenant: str | None) -> None:
    """Make a stored REPORT again from the rows and compare: exit status 1 if other bytes come out."""
    from auditor.commands import print_error  # noqa: PLC0415
    from auditor.reports import remake_report  # noqa: PLC0415

    with _opened(database) as store:
        with store.transaction() as connection:
            owner = tenant_of(connection, tenant)
        try:
            body = remake_report(store, owner, name)
        except VerificationFailedError as error:
            print_error(error)
            sys.exit(REFUSED)
    click.echo(f"{name}: the same {len(body):,} bytes")


@report.command()
@click.argument("name", metavar="REPORT")
@DATABASE
@TENANT
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Signs the report; not the log's key. [default: report.key beside the blobs]",
)
@click.option(
    "--log",
    "log_folder",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="[default: log beside the blobs]",
)
@click.option("--blobs", type=click.Path(path_type=Path), default=None, metavar="DIR")
@click.option("--texts/--no-texts", default=True, help="Put in prompts, outputs and reproductions.")
@click.option(
    "--timestamp",
    "authority",
    default=None,
    metavar="URL",
    help="Have this RFC 3161 time-stamping authority stamp the report's statement.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE")
def pack(
    name: str,
    database: str | None,
    tenant: str | None,
    key_file: Path | None,
    log_folder: Path | None,
    blobs: Path | None,
    texts: bool,
    authority: str | None,
    out: Path,
) -> None:
    """Put a stored REPORT with all that proves it into one file."""
    from auditor.key_files import read_key  # noqa: PLC0415
    from auditor.reports.packing import make_pack  # noqa: PLC0415
    from auditor.reports.time_stamps import over_http  # noqa: PLC0415
    from auditor.service.places import blob_folder  # noqa: PLC0415
    from auditor.transparency_log import TransparencyLog  # noqa: PLC0415

    folder = blob_folder(database, blobs)
    signer = read_key(key_file or folder.parent / "report.key", passphrase())
    log = TransparencyLog(log_folder or folder.parent / "log")
    with _opened(database) as store:
        with store.transaction() as connection:
            owner = tenant_of(connection, tenant)
        logs = _logs(store, folder) if texts else None
        ask = None if authority is None else over_http(authority)
        save(make_pack(store, owner, name, log, signer, logs, ask), out)


def _logs(store: Store, folder: Path) -> Logs:
    from auditor.profiles import shipped_profiles  # noqa: PLC0415
    from auditor.reports.packing import Logs  # noqa: PLC0415
    from auditor.service.places import open_logs  # noqa: PLC0415

    shipped = {profile.id: profile for profile in shipped_profiles().values()}
    return Logs(open_logs(store, folder, None), lambda name: store.get_profile(name) or shipped.get(name))


@report.command()
@PACK
@click.option("--vkey", "vkeys", multiple=True, help="Trust this report key, at any time.")
@click.option("--log-vkey", "log_vkeys", multiple=True, help="Trust this log's key, and need no witness.")
@click.option(
    "--trust",
    "trust_file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Keys with the time they were in force, and the log policy (TOML).",
)
@click.option(
    "--tsa-ca",
    "authorities",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Roots (PEM) of time-stamping authorities that you trust: the pack must hold a stamp of one.",
)
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table")
def verify(
    pack: Path,
    vkeys: tuple[str, ...],
    log_vkeys: tuple[str, ...],
    trust_file: Path | None,
    authorities: Path | None,
    output_format: str,
) -> None:
    """Check an evidence PACK offline, against keys that you got from the auditor and not from the pack.

    Exit status: 0 it holds, 1 it does not, 2 it cannot be read.
    """
    from auditor.commands import print_error  # noqa: PLC0415
    from auditor.commands.report_exports import shown  # noqa: PLC0415
    from auditor.reports.pack_verification import verify_pack  # noqa: PLC0415
    from auditor.reports.time_stamps import MAX_BYTES, read_roots  # noqa: PLC0415

    trusted = _trusted(vkeys, log_vkeys, trust_file)
    roots = () if authorities is None else read_roots(read_file(authorities, MAX_BYTES), str(authorities))
    raw = read_file(pack, MAX_PACK_BYTES)
    try:
        found = verify_pack(raw, trusted.reports, trusted.log, str(pack), roots=roots)
    except VerificationFailedError as error:
        print_error(error)
        sys.exit(REFUSED)
    click.echo(shown(found, output_format))


def _trusted(vkeys: tuple[str, ...], log_vkeys: tuple[str, ...], trust_file: Path | None) -> Trust:
    from auditor.merkle.keys import parse_vkey  # noqa: PLC0415
    from auditor.reports.pack_verification import trust  # noqa: PLC0415
    from auditor.reports.trust_files import MAX_TRUST_BYTES, Trust, parse_trust  # noqa: PLC0415

    if trust_file is not None:
        if vkeys or log_vkeys:
            raise OptionError("give either --trust FILE or keys", where="--trust")
        return parse_trust(read_file(trust_file, MAX_TRUST_BYTES), str(trust_file))
    if not vkeys or not log_vkeys:
        raise OptionError("say whom to trust", fix="give --vkey KEY and --log-vkey KEY, or --trust FILE")
    return Trust(tuple(trust([parse_vkey(vkey) for vkey in vkeys])), _logs_of(log_vkeys))


def _logs_of(log_vkeys: tuple[str, ...]) -> LogPolicy:
    from auditor.merkle.keys import parse_vkey  # noqa: PLC0415
    from auditor.merkle.policy import Policy as LogPolicy  # noqa: PLC0415

    return LogPolicy(tuple(parse_vkey(vkey) for vkey in log_vkeys))


@report.command()
@PACK
@click.option("--keep", multiple=True, metavar="PATTERN", help="Members to leave in: 'disclosures/3-*'.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE")
def redact(pack: Path, keep: tuple[str, ...], out: Path) -> None:
    """Take prompts, outputs and reproductions out of a PACK; what is left still verifies. Needs no key."""
    from auditor.reports.packing import redact as cut_down  # noqa: PLC0415

    save(cut_down(read_file(pack, MAX_PACK_BYTES), keep, str(pack)), out)


for command in EXPORTS:
    report.add_command(command)
