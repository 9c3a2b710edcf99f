"""Logs too large for one request: announced with size and digest, sent in parts, then made whole.

Parts are files `UPLOAD_ID/NUMBER` of a folder of their own; nothing a caller names becomes part of a path.
A part is on disk before it is acknowledged, so an upload survives a crash of either side. Memory: one part.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from auditor.durable_files import write_durably
from auditor.errors import StoreError
from auditor.service import audits, erasure
from auditor.service.blobs import CHUNK_BYTES
from auditor.service.clock import now as time_now
from auditor.service.containers import check_log
from auditor.service.errors import ConflictError, DigestMismatchError, NotFoundError
from auditor.service.identifiers import new_id
from auditor.service.parquet_check import check_parquet
from auditor.store_schema import upload as upload_table
from auditor.trace_streams import container_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.service.audits import TraceLog
    from auditor.service.blobs import Blobs
    from auditor.store import Store

MOST_PART_BYTES = 8 << 20
MOST_PARTS = 8192
MOST_UPLOAD_BYTES = MOST_PART_BYTES * MOST_PARTS


@dataclass(frozen=True, slots=True)
class Upload:
    """What was announced; `trace_log_id` once it is whole. `digest` is `sha256:...` of all bytes."""

    id: str
    tenant_id: str
    name: str
    digest: str
    size: int
    created: int
    trace_log_id: str | None = None


def announce(connection: Connection, tenant_id: str, name: str, digest: str, size: int) -> str:
    """Begin an upload; returns its id."""
    made = Upload(new_id("upl"), tenant_id, name, digest, size, time_now(connection))
    connection.execute(insert(upload_table).values(asdict(made)))
    return made.id


def find(connection: Connection, tenant_id: str, upload_id: str, *, lock: bool = False) -> Upload:
    """One upload.

    Raises:
        NotFoundError: the tenant has no such upload.
    """
    column = upload_table.c
    wanted = select(upload_table).where(column.tenant_id == tenant_id, column.id == upload_id)
    row = connection.execute(wanted.with_for_update() if lock else wanted).one_or_none()
    if row is None:
        raise NotFoundError("no such upload")
    return Upload(*row)


def put_part(folder: Path, upload: Upload, number: int, data: bytes | bytearray, digest: bytes) -> None:
    """Keep a part; sent again, it replaces what was there.

    Raises:
        ConflictError: the upload is whole already.
        DigestMismatchError: these are not the bytes whose SHA-256 was announced.
        StoreError: the disk is full or gone.
    """
    if upload.trace_log_id is not None:
        raise ConflictError("the upload is complete")
    if hashlib.sha256(data).digest() != digest:
        raise DigestMismatchError("other bytes than announced", where="Content-Digest", fix="send it again")
    try:
        write_durably(folder / upload.id / str(number), data, mode=0o600)
    except OSError as error:
        raise StoreError(f"cannot be kept: {error.strerror}", where=str(folder)) from error


def parts(folder: Path, upload: Upload) -> dict[int, int]:
    """Number -> bytes of the parts that are there, in order."""
    try:
        found = [path for path in (folder / upload.id).iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return {}
    return dict(sorted((int(path.name), path.stat().st_size) for path in found))


def complete(store: Store, blobs: Blobs, folder: Path, upload: Upload) -> TraceLog:
    """Make the log whole; again is the same as once.

    Raises:
        ConflictError: parts are missing, or their sizes do not add up.
        DigestMismatchError: together they are not the bytes that were announced.
        RequestInvalidError, CompressionBombError: they are no log.
    """
    if upload.trace_log_id is None:
        there = parts(folder, upload)
        if list(there) != list(range(len(there))) or sum(there.values()) != upload.size:
            missing = next((n for n in range(len(there) + 1) if n not in there), 0)
            raise ConflictError(
                f"{sum(there.values())} of {upload.size} bytes are there; part {missing} is the first missing"
            )
        if _digest(folder, upload, len(there)) != upload.digest:
            raise DigestMismatchError("the parts are not the bytes that were announced", where="digest")
        check_log(_chunks(folder, upload, len(there)))

        def put() -> None:
            blobs.put_all(_chunks(folder, upload, len(there)), expected=upload.digest)

        put()
        if container_of(next(_chunks(folder, upload, len(there)))) == "parquet":
            check_parquet(blobs.path(upload.digest))
    with store.transaction(writes=True) as connection:
        now = find(connection, upload.tenant_id, upload.id, lock=True)
        if now.trace_log_id is None:
            erasure.keep(connection, upload.digest, blobs, put)
            log = audits.keep_log(connection, upload.tenant_id, upload.digest, upload.name, upload.size)
            made = update(upload_table).where(upload_table.c.id == upload.id)
            connection.execute(made.values(trace_log_id=log.id))
        else:
            log = audits.find_log(connection, upload.tenant_id, now.trace_log_id)
    shutil.rmtree(folder / upload.id, ignore_errors=True)
    return log


def _chunks(folder: Path, upload: Upload, count: int) -> Iterator[bytes]:
    for number in range(count):
        with (folder / upload.id / str(number)).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


def _digest(folder: Path, upload: Upload, count: int) -> str:
    running = hashlib.sha256()
    for chunk in _chunks(folder, upload, count):
        running.update(chunk)
    return f"sha256:{running.hexdigest()}"
