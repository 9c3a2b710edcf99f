"""The one clock of a service: that of the database's host, in whole microseconds since 1970 (UTC).

Workers on several hosts must agree on when a lease ends; on SQLite there is only one host.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, RootTransaction, text

SECOND = 1_000_000
_SERVER_TIME = text("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)")

_stamps: WeakKeyDictionary[RootTransaction, int] = WeakKeyDictionary()


def now(connection: Connection) -> int:
    """The time, in microseconds."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1000
    return int(connection.execute(_SERVER_TIME).scalar_one())


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
