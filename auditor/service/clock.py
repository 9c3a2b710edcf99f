"""The one clock of a service: that of the database's host, in whole microseconds since 1970 (UTC).

Workers on several hosts must agree on when a lease ends; on SQLite there is only one host.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from sqlalchemy import Connection, text

SECOND = 1_000_000
_SERVER_TIME = text("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)")


def now(connection: Connection) -> int:
    """The time, in microseconds."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1000
    return int(connection.execute(_SERVER_TIME).scalar_one())


def to_text(moment: int) -> str:
    """RFC 3339 with microseconds, in UTC."""
    return datetime.fromtimestamp(moment / SECOND, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
