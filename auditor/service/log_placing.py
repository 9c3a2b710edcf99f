"""From rows to the transparency log: entries that were committed get a place, then a signed tree holds them.

1. In one transaction, under a lock, entries without a place get the next ones, in the order of writing.
2. Placed entries that the tree lacks are appended to its folder; a crash in between is made good next time.
3. The tree is signed, by a signer that refuses to shrink or fork (`transparency_log.py`).

A tree that is longer than the placed entries is of another database, or this one is an old copy: nothing is
appended, because that would put two entries in one place.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

from auditor.durable_files import locked
from auditor.errors import LogForkError
from auditor.key_files import PASSPHRASE_VARIABLE, generate, read_key, write_key
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.store_schema import log_entry as entry_table
from auditor.transparency_log import TransparencyLog, read_head

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.store import Store

ORIGIN = "auditor.localhost/log"
REPORTS = "auditor.localhost/reports"
_BATCH = 5000


@dataclass(frozen=True, slots=True)
class ServiceLog:
    """A service's log and who signs it; `head_file` is beside the key."""

    folder: Path
    signer: SeedSigner
    head_file: Path


def open_log(folder: Path, key_file: Path) -> ServiceLog:
    """The log of a service; the first time, with a fresh key, whose name is its origin.

    Raises:
        KeyFileError, LogStateError: a file is there that cannot be used.
    """
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    with locked(key_file.with_name(key_file.name + ".lock")):
        if not key_file.exists():
            write_key(key_file, generate(ORIGIN, Algorithm.ED25519), passphrase)
        signer = read_key(key_file, passphrase)
        if not (folder / ".log").exists():
            TransparencyLog.create(folder, signer.public.name)
    return ServiceLog(folder, signer, key_file.with_name(key_file.name + ".head"))


def open_report_key(key_file: Path) -> SeedSigner:
    """The key that signs reports, beside the log's and apart from it; a fresh one the first time.

    Raises:
        KeyFileError: a file is there that cannot be used.
    """
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    with locked(key_file.with_name(key_file.name + ".lock")):
        if not key_file.exists():
            write_key(key_file, generate(REPORTS, Algorithm.ED25519), passphrase)
        return read_key(key_file, passphrase)


def place(store: Store, log: ServiceLog) -> int:
    """Place what is new and sign; returns the size of the signed tree.

    Raises:
        StoreError: the database refused.
        LogForkError: the tree is not of this database.
        LogShrinkError, TileError, LogStateError: the folder is an old copy, or damaged.
    """
    with locked(log.folder.with_name(log.folder.name + ".placing")):
        placed = _give_places(store)
        tree = TransparencyLog(log.folder)
        if tree.size > placed:
            raise LogForkError(
                f"the tree has {tree.size} entries, the database placed {placed}",
                where=str(log.folder),
                fix="an old copy of the database? restore the newest one",
            )
        while tree.size < placed:
            tree.append(_entries(store, tree.size))
        head = read_head(log.head_file)
        # Both: whoever died between the two remembers a head that nobody was shown.
        if head is None or head.size != tree.size or _shown(tree) != tree.size:
            tree.sign([log.signer], log.head_file, int(time.time()))
        return tree.size


def _shown(tree: TransparencyLog) -> int | None:
    """Size of the head that is published."""
    if not (tree.folder / "checkpoint").exists():
        return None
    return tree.checkpoint()[1].size


def newest_entries(connection: Connection, below: int, limit: int) -> list[tuple[int, bytes]]:
    """(place, bytes) of the last entries of a tree of that size, the newest first; they are public."""
    column = entry_table.c
    wanted = select(column.position, column.body).where(column.position < below)
    rows = connection.execute(wanted.order_by(column.position.desc()).limit(limit))
    return [(row.position, bytes(row.body)) for row in rows]


def _give_places(store: Store) -> int:
    column = entry_table.c
    with store.transaction(writes=True) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("LOCK TABLE log_entry IN SHARE ROW EXCLUSIVE MODE")
        # In one statement: who submits waits meanwhile.
        placed = func.coalesce(select(func.max(column.position) + 1).scalar_subquery(), 0)
        order = func.row_number().over(order_by=column.number) - 1
        fresh = (
            select(column.number, (placed + order).label("place")).where(column.position.is_(None)).subquery()
        )
        same = update(entry_table).where(column.number == fresh.c.number)
        connection.execute(same.values(position=fresh.c.place))
        size = connection.execute(select(func.max(column.position) + 1)).scalar_one()
    return size or 0


def _entries(store: Store, start: int) -> list[bytes]:
    column = entry_table.c
    wanted = select(column.body).where(column.position >= start).order_by(column.position).limit(_BATCH)
    with store.transaction() as connection:
        return [bytes(body) for body in connection.execute(wanted).scalars()]
