"""Backup and restore of a service: the same files from SQLite and PostgreSQL, and never a fork of the log.

A backup is a folder: `backup.json` (revision, counts and digests of the tables, size of the log), one
`tables/NAME.jsonl` for each table, `log/` (the tree) and, unless they lie elsewhere, `blobs/`. Keys are not
in it: they are kept apart, or whoever has a backup can sign.

Backup: 1. placing is held up; 2. the tree is copied; 3. the tables are read in one snapshot. So the tree is
never ahead of the tables, which is the one thing that must not be.

Restore, into an empty database of the same revision, all or nothing: 1. every file is whole; 2. neither the
tree that is there nor what the signer remembers is longer than the backup's places: else entries would be
given places that others have, and the log would fork; 3. rows; 4. invariants; 5. tree and blobs, where
there are none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, func, insert, select

from auditor.durable_files import locked, write_durably
from auditor.errors import AuditError, LogForkError, StoreError
from auditor.service.invariants import check_all
from auditor.store_migrations import read_revision
from auditor.store_schema import log_entry as entry_table
from auditor.store_schema import metadata, small_log, trace_log
from auditor.store_schema import tenant as tenant_table
from auditor.transparency_log import TransparencyLog, read_head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Table

    from auditor.service.blobs import Blobs
    from auditor.store import Store

SCHEMA = "auditor.backup/v1"
_ROWS = 500


class BackupError(AuditError):
    """A backup that is not whole, or that does not fit where it is to be restored."""

    code = "backup"


def backup(store: Store, log_folder: Path, out: Path, blobs: Blobs | None = None) -> dict[str, Any]:
    """Write a backup to a new folder; returns what `backup.json` says.

    Args:
        store: the database.
        log_folder: of the transparency log.
        out: must not exist.
        blobs: to copy; None where they are kept some other way (snapshots, a bucket with versions).

    Raises:
        BackupError: the folder exists.
        StoreError: the database or the disk refused.
    """
    if out.exists():
        raise BackupError("exists already", where=str(out), fix="name a new folder")
    try:
        (out / "tables").mkdir(parents=True, mode=0o700)
        with locked(log_folder.with_name(log_folder.name + ".placing")):
            if log_folder.is_dir():
                shutil.copytree(log_folder, out / "log")
            with store.transaction() as connection:
                said = _read_all(connection, out)
        for digest in said.pop("digests") if blobs is not None else ():
            _copy_blob(blobs, digest, out / "blobs")
        said.pop("digests", None)
        write_durably(out / "backup.json", json.dumps(said, indent=1, sort_keys=True).encode(), mode=0o600)
    except OSError as error:
        raise StoreError(f"cannot be written: {error.strerror}", where=str(out)) from error
    return said


def _read_all(connection: Connection, out: Path) -> dict[str, Any]:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    tables = {}
    for table in metadata.sorted_tables:
        running, count = hashlib.sha256(), 0
        with (out / "tables" / f"{table.name}.jsonl").open("xb") as stream:
            for line in _lines(connection, table):
                running.update(line)
                count += stream.write(line) > 0
            stream.flush()
            os.fsync(stream.fileno())
        tables[table.name] = {"rows": count, "digest": f"sha256:{running.hexdigest()}"}
    elsewhere = trace_log.c.digest.not_in(select(small_log.c.digest))  # that table was just written
    digests = select(trace_log.c.digest).where(trace_log.c.erased.is_(None), elsewhere).distinct()
    return {
        "schema": SCHEMA,
        "revision": read_revision(connection).found,
        "placed": _placed(connection),
        "tables": tables,
        "digests": list(connection.execute(digests).scalars()),
    }


def _placed(connection: Connection) -> int:
    placed = select(func.count()).where(entry_table.c.position.is_not(None))
    return int(connection.execute(placed).scalar_one())


def _lines(connection: Connection, table: Table) -> Iterator[bytes]:
    binary = {column.name for column in table.columns if isinstance(column.type, LargeBinary)}
    ordered = select(table).order_by(*table.primary_key.columns)
    for row in connection.execution_options(yield_per=_ROWS).execute(ordered).mappings():
        value = {
            name: base64.b64encode(bytes(item)).decode() if name in binary and item is not None else item
            for name, item in row.items()
        }
        yield json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _copy_blob(blobs: Blobs | None, digest: str, folder: Path) -> None:
    if blobs is None or not blobs.holds(digest):
        return  # erased since the snapshot
    target = folder / digest.removeprefix("sha256:")
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.copyfile(blobs.path(digest), target)
    blobs.release(digest)


def restore(store: Store, source: Path, log_folder: Path, key_file: Path, blobs: Blobs) -> dict[str, Any]:
    """Fill an empty database from a backup; returns what `backup.json` says.

    Args:
        store: the database, at its newest revision and without tenants.
        source: folder of the backup.
        log_folder: of the transparency log: absent, or not ahead of the backup.
        key_file: of the log's signer, whose memory is beside it.
        blobs: receives the backup's blobs.

    Raises:
        BackupError: the backup is damaged or of another revision, the database is not empty, or an invariant
            does not hold.
        LogForkError: the log has entries that the backup lacks.
    """
    said = _checked(source)
    _refuse_fork(said["placed"], source, log_folder, key_file)
    with store.transaction(writes=True) as connection:
        found = read_revision(connection).found
        if found != said["revision"]:
            raise BackupError(
                f"is of revision {said['revision']}, the database of {found}",
                where=str(source),
                fix="restore with the release that made it, then upgrade",
            )
        if connection.execute(select(func.count()).select_from(tenant_table)).scalar_one():
            raise BackupError("the database holds tenants already", fix="restore into an empty one")
        for table in metadata.sorted_tables:
            _fill(connection, table, source)
        broken = [f.invariant.name for f in check_all(connection) if f.broken_by]
        if broken:
            raise BackupError(f"does not hold: {', '.join(broken)}", where=str(source))
    if not log_folder.exists() and (source / "log").is_dir():
        shutil.copytree(source / "log", log_folder)
    for path in sorted((source / "blobs").glob("*")):
        blobs.put_all(_chunks(path), expected=f"sha256:{path.name}")
    return said


def _checked(source: Path) -> dict[str, Any]:
    try:
        said = json.loads((source / "backup.json").read_bytes())
    except (OSError, ValueError):
        said = None
    if (
        not isinstance(said, dict)
        or said.get("schema") != SCHEMA
        or set(said.get("tables", ())) != {table.name for table in metadata.sorted_tables}
    ):
        raise BackupError("is no backup of this release", where=str(source))
    for name, known in said["tables"].items():
        running = hashlib.sha256()
        try:
            for chunk in _chunks(source / "tables" / f"{name}.jsonl"):
                running.update(chunk)
        except OSError as error:
            raise BackupError(f"table {name}: {error.strerror}", where=str(source)) from None
        if f"sha256:{running.hexdigest()}" != known["digest"]:
            raise BackupError(f"table {name} is not what was written", where=str(source), fix="copy it again")
    return said


def _refuse_fork(placed: int, source: Path, log_folder: Path, key_file: Path) -> None:
    head = read_head(key_file.with_name(key_file.name + ".head"))
    lengths = {
        str(log_folder): TransparencyLog(log_folder).size if (log_folder / ".log").exists() else 0,
        f"{key_file}.head": 0 if head is None else head.size,
    }
    for where, size in lengths.items():
        if size > placed:
            raise LogForkError(
                f"the log has {size} entries, the backup gave places to {placed}",
                where=where,
                fix="restore a newer backup, or begin a new log under a new key and publish both",
            )
    if (
        head is not None
        and head.size
        and not (log_folder / ".log").exists()
        and not (source / "log").is_dir()
    ):
        raise LogForkError(
            "the signer remembers a log that is neither here nor in the backup", where=str(source)
        )


def _fill(connection: Connection, table: Table, source: Path) -> None:
    binary = {column.name for column in table.columns if isinstance(column.type, LargeBinary)}
    rows: list[dict[str, Any]] = []
    with (source / "tables" / f"{table.name}.jsonl").open("rb") as stream:
        for line in stream:
            row = json.loads(line)
            rows.append(
                {k: base64.b64decode(v) if k in binary and v is not None else v for k, v in row.items()}
            )
            if len(rows) >= _ROWS:
                connection.execute(insert(table), rows)
                rows = []
    if rows:
        connection.execute(insert(table), rows)
    if (
        connection.dialect.name == "postgresql"
        and "number" in table.columns
        and "number" in table.primary_key
    ):
        connection.exec_driver_sql(
            f"SELECT setval(pg_get_serial_sequence('{table.name}', 'number'),"  # noqa: S608  # names of ours
            f" (SELECT coalesce(max(number), 0) + 1 FROM {table.name}), false)"
        )


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk
