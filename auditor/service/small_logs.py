"""Small logs lie in the database, in rows that are committed with the submission that brings them.

A file would have to be on disk before the commit: two more flushes of the disk, one after the other, for each
submission. A row is as durable as the commit, costs no flush of its own, and goes in the transaction that
erases it. Larger logs, Parquet (which readers map into memory) and what comes in parts are blobs as ever. A
log that lies in both places is erased in both.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import delete, select

from auditor.store_engine import insert_all_absent
from auditor.store_schema import small_log as small_table
from auditor.store_schema import trace_log as log_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import BinaryIO

    from sqlalchemy import Connection

    from auditor.service.blobs import Blobs
    from auditor.store import Store

MOST_BYTES = 64 << 10


def keep(connection: Connection, bodies: Mapping[str, bytes]) -> None:
    """Keep logs by their digests, whoever else has the same; durable when the transaction is."""
    rows = [{"digest": digest, "body": bodies[digest]} for digest in sorted(bodies)]
    if rows:
        insert_all_absent(connection, small_table, rows, small_table.c.digest)


def remove(connection: Connection, digest: str) -> None:
    """Erase a log's row; again is the same as once."""
    connection.execute(delete(small_table).where(small_table.c.digest == digest))


def digests_without_logs(connection: Connection) -> set[str]:
    """Of rows that nobody has who was not erased."""
    live = select(log_table.c.digest).where(log_table.c.erased.is_(None))
    return set(connection.execute(select(small_table.c.digest).except_(live)).scalars())


@dataclass
class _Copy:
    path: Path
    descriptor: int | None
    users: int = 0


class SmallLogs:
    """Blobs, and the logs that lie in the database: to readers they are blobs, too.

    Attributes:
        rest: what is no small log.
    """

    def __init__(self, store: Store, rest: Blobs) -> None:
        self._store, self.rest = store, rest
        self._lock = threading.Lock()
        self._copies: dict[str, _Copy] = {}

    def prepare(self) -> None:
        """Make ready what holds the rest."""
        self.rest.prepare()

    def put(self, data: bytes) -> str:
        """Keep bytes as a blob; returns `sha256:...`."""
        return self.rest.put(data)

    def put_all(self, chunks: Iterable[bytes], *, expected: str) -> None:
        """Keep a stream as a blob."""
        self.rest.put_all(chunks, expected=expected)

    def holds(self, digest: str) -> bool:
        """Whether it is there."""
        return self._body(digest) is not None or self.rest.holds(digest)

    def path(self, digest: str) -> Path:
        """A file with its bytes, until `release`; of a small log one that is in memory only.

        Raises:
            StoreError: it is not there, or the database refused.
        """
        body = self._body(digest)
        if body is None:
            return self.rest.path(digest)
        with self._lock:
            if digest not in self._copies:
                self._copies[digest] = _in_memory(body)
            self._copies[digest].users += 1
            return self._copies[digest].path

    def open(self, digest: str) -> BinaryIO:
        """Read it.

        Raises:
            StoreError: it is not there, or the database refused.
        """
        body = self._body(digest)
        return self.rest.open(digest) if body is None else io.BytesIO(body)

    def release(self, digest: str) -> None:
        """Say that the file is not needed any more."""
        with self._lock:
            copy = self._copies.get(digest)
            if copy is not None:
                copy.users -= 1
                if copy.users == 0:
                    _forget(self._copies.pop(digest))
        if copy is None:
            self.rest.release(digest)

    def remove(self, digest: str) -> None:
        """Remove the blob; its row goes with `remove` of this module."""
        self.rest.remove(digest)

    def _body(self, digest: str) -> bytes | None:
        wanted = select(small_table.c.body).where(small_table.c.digest == digest)
        with self._store.transaction() as connection:
            found = connection.execute(wanted).scalar_one_or_none()
        return None if found is None else bytes(found)


def _in_memory(body: bytes) -> _Copy:
    """A file that no disk sees where the system has such, so that nothing outlives an erasure by a crash."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("log")
        with open(descriptor, "wb", closefd=False) as stream:  # it has no path
            stream.write(body)
        return _Copy(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), descriptor)
    descriptor, name = tempfile.mkstemp()
    with open(descriptor, "wb") as stream:  # noqa: PTH123
        stream.write(body)
    return _Copy(Path(name), None)


def _forget(copy: _Copy) -> None:
    if copy.descriptor is not None:
        os.close(copy.descriptor)
    else:
        with suppress(OSError):
            copy.path.unlink()
