"""`audit report html`, `pdf`, `oscal`, `junit`, `rows`, `schema`: what a report can become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.errors import OptionError

if TYPE_CHECKING:
    from auditor.reports.pack_verification import VerifiedPack

MAX_SOURCE_BYTES = 512 * 1024 * 1024
SOURCE = click.argument("source", type=click.Path(path_type=Path))
OUT = click.option(
    "--out", type=click.Path(path_type=Path), default=None, metavar="FILE", help="[default: stdout]"
)


def read_file(path: Path, limit: int) -> bytes:
    """A file's bytes, up to a limit."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)
    except OSError as error:
        raise OptionError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if len(raw) > limit:
        raise OptionError(f"longer than {limit} bytes", where=str(path))
    return raw


def save(data: bytes, out: Path | None) -> None:
    """To a file, whole or not at all, or to standard output."""
    from auditor.durable_files import write_durably  # noqa: PLC0415

    if out is None:
        click.echo(data, nl=False)
        return
    try:
        write_durably(out, data)
    except OSError as error:
        raise OptionError(f"cannot be written: {error.strerror}", where=str(out)) from None


def read_report(source: Path) -> tuple[dict[str, Any], str]:
    """A report and its digest, from `report.json` or from a pack; nothing is verified."""
    from auditor.reports.canonical import digest  # noqa: PLC0415
    from auditor.reports.packs import read_pack  # noqa: PLC0415
    from auditor.strict_json import load_object  # noqa: PLC0415

    raw = read_file(source, MAX_SOURCE_BYTES)
    body = read_pack(raw, str(source)).get("report.json", b"") if raw.startswith(b"PK") else raw
    document = load_object(body, where=str(source), max_bytes=MAX_SOURCE_BYTES)
    if document.get("schema") != "auditor.report/v1":
        raise OptionError("is no report", where=str(source), fix="give report.json or an evidence pack")
    return document, digest(body)


@click.command()
@SOURCE
@OUT
def html(source: Path, out: Path | None) -> None:
    """SOURCE (report.json or a pack) as one HTML file for people: no script, no network, prints well."""
    from auditor.reports.html import render_report  # noqa: PLC0415

    save(render_report(*read_report(source)).encode(), out)


@click.command()
@SOURCE
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE")
def pdf(source: Path, out: Path) -> None:
    """SOURCE as PDF, with the digest of report.json on every page (needs the `pdf` extra)."""
    from auditor.reports.pdf import render_pdf  # noqa: PLC0415

    save(render_pdf(*read_report(source)), out)


@click.command()
@SOURCE
@OUT
def oscal(source: Path, out: Path | None) -> None:
    """SOURCE as OSCAL 1.2 assessment results (JSON)."""
    from auditor.reports.oscal import report_to_oscal  # noqa: PLC0415

    save(report_to_oscal(*read_report(source)).encode(), out)


@click.command()
@SOURCE
@OUT
def junit(source: Path, out: Path | None) -> None:
    """SOURCE as JUnit XML: a test case for each control of each provider."""
    from auditor.reports.junit import report_to_junit  # noqa: PLC0415

    save(report_to_junit(read_report(source)[0]).encode(), out)


@click.command()
@click.argument("name", metavar="REPORT")
@click.option("--database", default=None, metavar="URL", help="[default: AUDITOR_DATABASE_URL]")
@click.option("--tenant", default=None, help="Name or id; may be left out where there is only one.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Ends in .csv or .parquet."
)
def rows(name: str, database: str | None, tenant: str | None, out: Path) -> None:
    """The audited requests under a stored REPORT, one a row."""
    from auditor.commands.report import tenant_of  # noqa: PLC0415
    from auditor.reports import find_report  # noqa: PLC0415
    from auditor.reports.row_export import write_rows  # noqa: PLC0415
    from auditor.store import Store  # noqa: PLC0415

    with Store.open(database) as store:
        with store.transaction() as connection:
            owner = tenant_of(connection, tenant)
            _, body, _ = find_report(connection, owner, name)
        count = write_rows(store, owner, json.loads(body), out)
    click.echo(f"{count:,} requests", err=True)


@click.command()
def schema() -> None:
    """The JSON Schema of `auditor.report/v1`."""
    from importlib.resources import files  # noqa: PLC0415

    path = files("auditor.reports") / "schema" / "report-v1.json"
    click.echo(path.read_text(encoding="utf-8"), nl=False)


def shown(found: VerifiedPack, output_format: str) -> str:
    """What a verified pack is, for a terminal or a program."""
    document = found.document
    value = {
        "verified": True,
        "report": document["id"],
        "digest": found.digest,
        "period": document["period"],
        "grade": document["grade"]["letter"],
        "verdict": document["verdict"],
        "signed_by": [key.name for key in found.keys],
        "log": found.approval.log.key.name,
        "log_index": found.log_index,
        "witnesses": list(found.approval.witnesses),
        "texts": len(found.disclosed),
        "withheld": found.withheld,
        "disputes": list(found.disputes),
        "has_time_stamp": found.has_stamp,
        "time_stamp": None if found.stamped is None else found.stamped.isoformat(),
    }
    if output_format == "json":
        return json.dumps(value)
    period, witnesses = document["period"], ", ".join(found.approval.witnesses) or "no witness"
    lines = [
        f"verified  report {document['id']}  {found.digest}",
        f"  {period['start'][:10]} to {period['end'][:10]}, grade {value['grade']}, {value['verdict']}",
        f"  signed by {', '.join(key.name for key in found.keys)}",
        f"  entry {found.log_index} of log {value['log']}, cosigned by {witnesses}",
        f"  {value['texts']} texts open their commitments, {value['withheld']} are withheld",
    ]
    if found.has_stamp:
        unchecked = "there is one; check it with --tsa-ca"
        lines.append(f"  time stamp: {value['time_stamp'] or unchecked}")
    lines += [f"  {p['name']}: {p['verdict']}, grade {p['grade']}" for p in document["providers"]]
    return "\n".join(lines)


EXPORTS = (html, pdf, oscal, junit, rows, schema)
