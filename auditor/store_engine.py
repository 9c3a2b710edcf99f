"""Where the store is, and connections to it: one set of transaction rules on SQLite and PostgreSQL.

SQLite: write-ahead log, `synchronous=FULL`, foreign keys enforced, up to `LOCK_SECONDS` of waiting for
another writer. A transaction that will write begins `IMMEDIATE` (see `for_writing`): it never fails half-way
because somebody else wrote first. The driver's own implicit transactions are off: they leave DDL outside.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_data_dir
from sqlalchemy import URL, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from auditor.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Column, Connection, Engine, Insert, Table
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

LOCK_SECONDS = 30.0
VARIABLE = "AUDITOR_DATABASE_URL"
_FORMS = "sqlite:////folder/file.sqlite3 or postgresql://user@host/database"
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
# Of a process: as many at once as a server answers requests at once (40), so that none waits for one;
# those of a usual day stay open: SQLite settles its journal whenever the last one closes.
_POOL: dict[str, Any] = {"pool_size": 10, "max_overflow": 34}
_CONNECT_DEFAULTS = {"connect_timeout": 10, "application_name": "auditor"}


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A database.

    Attributes:
        url: with driver and password.
        embedded: the SQLite file that nobody asked for by name, so nobody else looks after.
    """

    url: URL
    embedded: bool = False

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file."""
        return self.url.get_backend_name() == "sqlite"

    def __str__(self) -> str:
        """Name it in a message: a file, or a server without any secret."""
        if self.is_sqlite:
            return str(self.url.database)
        bare = URL.create("postgresql", host=self.url.host, port=self.url.port, database=self.url.database)
        return bare.render_as_string()


def find_place(url: str | None) -> StorePlace:
    """Find the database of `url`, else of AUDITOR_DATABASE_URL, else the embedded one.

    Raises:
        StoreError: not a URL of a database that can keep anything.
    """
    named = url or os.environ.get(VARIABLE)
    if not named:
        file = Path(user_data_dir("auditor")) / "auditor.sqlite3"
        return StorePlace(URL.create("sqlite", database=str(file)), embedded=True)
    where = "database URL" if url else VARIABLE
    try:
        parsed = make_url(named)
    except (ArgumentError, ValueError) as error:  # neither may repeat the text: it can hold a password
        raise StoreError("not a database URL", where=where, fix=_FORMS) from error
    if parsed.drivername in _POSTGRESQL:
        return StorePlace(parsed.set(drivername="postgresql+psycopg"))
    if parsed.drivername != "sqlite":
        raise StoreError(f"{parsed.drivername} is not supported", where=where, fix=_FORMS)
    if not parsed.database or parsed.database.startswith((":memory:", "file:")) or parsed.query:
        raise StoreError("SQLite needs the name of a file, without options", where=where, fix=_FORMS)
    return StorePlace(parsed)


def reach(place: StorePlace) -> None:
    """Make the embedded folder and, readable by its owner only, the SQLite file.

    Raises:
        StoreError: the location cannot be written.
    """
    if not place.is_sqlite:
        return
    file = Path(str(place.url.database))
    try:
        if place.embedded:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(
            f"the database cannot be written: {error.strerror}",
            where=str(place),
            fix=f"set {VARIABLE}: {_FORMS}",
        ) from error


def connect_to(place: StorePlace, *, foreign_keys: bool = True) -> Engine:
    """Make the engine; nothing is opened yet.

    Raises:
        StoreError: the driver is not installed.
    """
    if place.is_sqlite:
        return _sqlite_engine(place, foreign_keys=foreign_keys)
    try:
        return create_engine(
            place.url,
            pool_pre_ping=True,
            hide_parameters=True,
            **_POOL,
            connect_args={k: v for k, v in _CONNECT_DEFAULTS.items() if k not in place.url.query},
        )
    except ImportError as error:
        raise StoreError(
            "the PostgreSQL driver is not installed",
            where=str(place),
            fix="pip install 'verifiable-inference-auditor[postgres]'",
        ) from error


def insert_if_absent(connection: Connection, table: Table, values: dict[str, Any]) -> bool:
    """Insert a row unless a unique column stands against it; whether it was inserted.

    On PostgreSQL this waits for another transaction that is inserting the same.
    """
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    key = next(iter(table.primary_key))
    new = insert(table).values(values).on_conflict_do_nothing().returning(key)
    return connection.execute(new).first() is not None


def insert_all_absent(
    connection: Connection, table: Table, rows: Sequence[dict[str, Any]], key: Column[Any]
) -> set[Any]:
    """Insert rows unless a unique column stands against one; the values of `key` in those that were inserted.

    On PostgreSQL this waits for others that are inserting the same: insert in one order everywhere.
    """
    return set(connection.execute(_insert_absent(connection.dialect.name, table, key), rows).scalars())


@cache
def _insert_absent(dialect: str, table: Table, key: Column[Any]) -> Insert:
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing().returning(key)


@contextmanager
def sent_together(connection: Connection) -> Iterator[None]:
    """Statements that return nothing, sent to PostgreSQL without waiting for each one's answer.

    Whoever waits for an answer is woken by a system that has other work; a submission is a dozen statements.

    Raises:
        DBAPIError: one was refused; the transaction is at its end.
    """
    driver = connection.connection.driver_connection
    if connection.dialect.name == "sqlite" or driver is None:
        yield
        return
    refused = connection.dialect.loaded_dbapi
    try:
        with driver.pipeline():
            yield
    except refused.OperationalError as error:
        raise OperationalError(None, None, error) from error
    except refused.Error as error:
        raise DBAPIError(None, None, error) from error


def for_writing(connection: Connection) -> Connection:
    """Mark a fresh connection: its transactions take the write lock when they begin."""
    return connection.execution_options(auditor_writes=True)


@contextmanager
def one_line_errors(place: StorePlace) -> Iterator[None]:
    """Say in one line what the database refused.

    Raises:
        StoreError: whatever went wrong inside.
    """
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        raise StoreError(str(cause) or type(cause).__name__, where=str(place)) from error


def _sqlite_engine(place: StorePlace, *, foreign_keys: bool) -> Engine:
    engine = create_engine(place.url, hide_parameters=True, **_POOL, connect_args={"timeout": LOCK_SECONDS})

    def prepare(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        if not isinstance(connection, sqlite3.Connection):
            raise TypeError(type(connection).__name__)
        connection.isolation_level = None
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")  # what is erased is overwritten
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")

    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("auditor_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", begin)
    return engine


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    # While two processes switch one new file at once, SQLite may say "locked" without waiting.
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
            continue
        if mode != "wal":
            raise sqlite3.OperationalError(f"no write-ahead log on this file system (journal is {mode})")
        return
