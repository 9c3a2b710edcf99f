"""The one clock of a service: that of the database's host, in whole microseconds since 1970 (UTC).

Workers on several hosts must agree on when a lease ends; on SQLite there is only one host.

Tests of weeks shift it (`unsafe_shift`). No option, variable, file or row does: only a program that imports
this module and calls that function, and a test sees to it that no module of ours does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, RootTransaction, text

SECOND = 1_000_000
_SERVER_TIME = text("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)")
_shift: Callable[[], int] | None = None


def unsafe_shift(by: Callable[[], int] | None) -> None:
    """For tests: let this process's service run `by()` microseconds ahead of the clock; None ends it."""
    global _shift  # noqa: PLW0603  # one clock a process
    _shift = by


_stamps: WeakKeyDictionary[RootTransaction, int] = WeakKeyDictionary()


def now(connection: Connection) -> int:
    """The time, in microseconds."""
    ahead = 0 if _shift is None else _shift()
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1000 + ahead
    return int(connection.execute(_SERVER_TIME).scalar_one()) + ahead


def stamp(connection: Connection) -> int:
    """When this transaction first asked: for what it makes, never for what others may change meanwhile."""
    transaction = connection.get_transaction()
    if transaction is None:
        return now(connection)
    found = _stamps.get(transaction)
    if found is None:
        found = _stamps[transaction] = now(connection)
    return found


def to_text(moment: int) -> str:
    """RFC 3339 with microseconds, in UTC."""
    return datetime.fromtimestamp(moment / SECOND, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
