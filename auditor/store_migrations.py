"""The schema's revision: checked at every open, moved under a lock, all or nothing.

A database without tables is brought to the newest revision. One at an older revision is moved only when
asked: other, older programs may still be using it. One at a revision we do not know, or with tables but no
revision, is never touched. Steps of a move, in one transaction:

1. Take the lock (SQLite `BEGIN IMMEDIATE`; PostgreSQL advisory lock): one mover at a time.
2. Read the revision again: whoever held the lock before may have moved it.
3. Run the revisions with foreign keys off (SQLite copies whole tables), and check them afterwards.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, inspect, text

from auditor.errors import StoreError
from auditor.store_commitments import metadata  # with every table of the schema
from auditor.store_engine import StorePlace, connect_to, for_writing, one_line_errors

REVISIONS = Path(str(files("auditor.migrations")))
"""The scripts: `migrations/` of the checkout, `auditor/migrations/` of a wheel."""

_VERSION_TABLE = "alembic_version"
_LOCK_NUMBER = 0x61756469746F72  # "auditor"
_alembic_is_not_thread_safe = threading.Lock()


@dataclass(frozen=True, slots=True)
class Revision:
    """Where a database stands.

    Attributes:
        found: its revision, None without one. newest: ours. known: whether we have a script for `found`.
        empty: no tables.
    """

    found: str | None
    newest: str
    known: bool
    empty: bool

    @property
    def is_newest(self) -> bool:
        """Nothing to do."""
        return self.found == self.newest


def alembic_config(scripts: Path = REVISIONS) -> Config:
    """Alembic's settings, without a file."""
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["metadata"] = metadata
    return config


def read_revision(connection: Connection, scripts: Path = REVISIONS) -> Revision:
    """Where the database stands.

    Raises:
        StoreError: more than one revision at once, which we never leave behind.
    """
    directory = ScriptDirectory.from_config(alembic_config(scripts))
    heads = MigrationContext.configure(connection).get_current_heads()
    if len(heads) > 1:
        raise StoreError(f"the schema is at several revisions at once: {', '.join(sorted(heads))}")
    found = heads[0] if heads else None
    tables = set(inspect(connection).get_table_names()) - {_VERSION_TABLE}
    known = found is None or found in {script.revision for script in directory.walk_revisions()}
    return Revision(found, directory.get_current_head() or "", known, not tables)


def prepare(place: StorePlace, engine: Engine, *, move_older: bool, scripts: Path = REVISIONS) -> None:
    """Leave the database at the newest revision, or say why not.

    Args:
        place: the database.
        engine: connections to it.
        move_older: whether an older revision is moved rather than refused.
        scripts: the revisions.

    Raises:
        StoreError: older than ours and not to be moved, unknown, not ours at all, or a revision that failed.
    """
    with one_line_errors(place):
        with engine.connect() as connection:
            revision = read_revision(connection, scripts)
        if revision.is_newest:
            return
        _refuse_unknown(place, revision)
        if revision.found and not move_older:
            raise StoreError(
                f"the schema is at revision {revision.found}, this program needs {revision.newest}",
                where=str(place),
                fix="back the database up, stop older programs, then call auditor.store.Store.upgrade(url)",
            )
        mover = connect_to(place, foreign_keys=False)
        try:
            _move(place, mover, scripts)
        finally:
            mover.dispose()


def downgrade(place: StorePlace, revision: str, *, scripts: Path = REVISIONS) -> None:
    """Go back to a revision ("base": none). Data that the older schema has no room for is lost.

    Raises:
        StoreError: the revision is unknown, or failed.
    """
    mover = connect_to(place, foreign_keys=False)
    try:
        with one_line_errors(place), for_writing(mover.connect()) as connection, connection.begin():
            _lock(connection)
            _run(place, connection, revision, scripts, up=False)
    finally:
        mover.dispose()


def _refuse_unknown(place: StorePlace, revision: Revision) -> None:
    if not revision.known:
        raise StoreError(
            f"the schema is at revision {revision.found}; the newest this program knows is {revision.newest}",
            where=str(place),
            fix="use the version of the program that wrote it, or a newer one",
        )
    if revision.found is None and not revision.empty:
        raise StoreError(
            "the database holds tables but no schema revision: it is not a store of this program",
            where=str(place),
            fix="give the store a database of its own",
        )


def _move(place: StorePlace, mover: Engine, scripts: Path) -> None:
    with for_writing(mover.connect()) as connection, connection.begin():
        _lock(connection)
        revision = read_revision(connection, scripts)
        if revision.is_newest:
            return
        _refuse_unknown(place, revision)
        _run(place, connection, "head", scripts, up=True)


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})


def _run(place: StorePlace, connection: Connection, target: str, scripts: Path, *, up: bool) -> None:
    config = alembic_config(scripts)
    config.attributes["connection"] = connection
    with _alembic_is_not_thread_safe:
        try:
            (command.upgrade if up else command.downgrade)(config, target)
        except CommandError as error:
            raise StoreError(f"the schema cannot be moved to {target}: {error}", where=str(place)) from error
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken is not None:
            raise StoreError(f"the move would break references of table {broken[0]}", where=str(place))
