"""Sessions of browsers: a cookie's random secret stands for an API key, and never outlives it.

256 random bits; their SHA-256 is kept, so the table signs nobody in. A key that ends, ends its sessions.
Pages are the tenant's own: a key that was given to a provider has no session.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select

from auditor.service import tenants
from auditor.service.clock import SECOND
from auditor.service.clock import now as time_now
from auditor.service.errors import ScopeMissingError
from auditor.store_schema import session as session_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.service.tenants import ApiKey

SESSION_HOURS = 12


def sign_in(connection: Connection, key_text: str) -> str:
    """A new session of a key; returns the cookie's secret. Sessions that are over are swept.

    Raises:
        UnauthenticatedError: the key is unknown, expired or revoked.
        ScopeMissingError: it was given to a provider.
    """
    key = tenants.authenticate(connection, key_text)
    if key.provider_id is not None:
        raise ScopeMissingError(
            "this key was given to a provider: it can commit and open over the API, and sees no pages",
            fix="sign in with a key of your own",
        )
    now = time_now(connection)
    connection.execute(delete(session_table).where(session_table.c.expires <= now))
    secret = secrets.token_urlsafe(32)
    connection.execute(
        insert(session_table).values(
            secret_sha256=_digest(secret),
            api_key_id=key.id,
            created=now,
            expires=min(key.expires, now + SESSION_HOURS * 3600 * SECOND),
        )
    )
    return secret


def find(connection: Connection, secret: str) -> ApiKey | None:
    """The key that a session stands for; None when the session or its key is over, or is a provider's."""
    column = session_table.c
    wanted = select(column.api_key_id, column.expires).where(column.secret_sha256 == _digest(secret))
    row = connection.execute(wanted).one_or_none()
    if row is None or row.expires <= time_now(connection):
        return None
    key = tenants.living_key(connection, row.api_key_id)
    return None if key is None or key.provider_id is not None else key


def sign_out(connection: Connection, secret: str) -> None:
    """End a session; again is the same as once."""
    connection.execute(delete(session_table).where(session_table.c.secret_sha256 == _digest(secret)))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
