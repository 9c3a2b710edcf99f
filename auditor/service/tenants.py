"""Tenants and their API keys.

A key is `ak_ID.SECRET`: 256 random bits, shown once. Only their SHA-256 is kept (they cannot be guessed, so
no slow hash is needed), found by the id and compared in constant time, against a decoy where there is none.
Or it is the public half of a provider's own key, which signs submissions (`signatures.py`) and no more.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Double, func, insert, literal, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from auditor.service.clock import SECOND, stamp
from auditor.service.clock import now as time_now
from auditor.service.errors import (
    ConflictError,
    NotFoundError,
    RateLimitedError,
    RequestInvalidError,
    ScopeMissingError,
    UnauthenticatedError,
)
from auditor.service.identifiers import new_id
from auditor.store_engine import insert_if_absent
from auditor.store_schema import api_key as key_table
from auditor.store_schema import tenant as tenant_table

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection

SCOPES = {
    "audits:read": "read audits, evidence, verdicts and progress",
    "audits:write": "upload logs, submit and cancel audits",
    "keys": "make, list and revoke the tenant's keys",
    "webhooks": "make, list and delete the tenant's webhooks",
    "disputes": "answer and resolve disputes",
    "operator": "make and list tenants, and keys for any tenant",
}
SIGNING_SCOPE = "audits:write"
MOST_RUNNING = 4
MOST_KEY_DAYS = 366
SUBMISSIONS_A_SECOND = 50.0
SUBMISSIONS_AT_ONCE = 500.0
_DECOY = hashlib.sha256(secrets.token_bytes(32)).digest()


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody whose audits nobody else sees; `most_running` of them at once.

    Bytes of logs are erased after `retention_days`; never when None.
    """

    id: str
    name: str
    created: int
    most_running: int
    retention_days: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret; `public_key` (a vkey) of one that signs. Times: microseconds since 1970."""

    id: str
    tenant_id: str
    name: str
    scopes: tuple[str, ...]
    created: int
    expires: int
    revoked: int | None = None
    public_key: str | None = None

    def require(self, scope: str) -> None:
        """Raise unless the key has the scope.

        Raises:
            ScopeMissingError: it has not.
        """
        if scope not in self.scopes:
            raise ScopeMissingError(f"this needs a key with the scope {scope}")


def create_tenant(
    connection: Connection, name: str, *, most_running: int = MOST_RUNNING, retention_days: int | None = None
) -> Tenant:
    """A new tenant.

    Raises:
        ConflictError: the name is taken.
    """
    made = Tenant(new_id("ten"), name, time_now(connection), most_running, retention_days)
    try:
        with connection.begin_nested():
            connection.execute(insert(tenant_table).values(asdict(made)))
    except IntegrityError:
        raise ConflictError("there is a tenant of that name", where="name") from None
    return made


def tenants(connection: Connection, *, after: tuple[int, str] | None, limit: int) -> list[Tenant]:
    """Tenants in order of making, after the (created, id) of another."""
    column = tenant_table.c
    wanted = select(*_TENANT_COLUMNS)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) > after)
    rows = connection.execute(wanted.order_by(column.created, column.id).limit(limit))
    return [Tenant(*row) for row in rows]


def set_retention(connection: Connection, tenant_id: str, days: int | None) -> Tenant:
    """Erase a tenant's logs after so many days, the old ones too; never when None.

    Raises:
        NotFoundError: there is no such tenant.
    """
    column = tenant_table.c
    connection.execute(update(tenant_table).where(column.id == tenant_id).values(retention_days=days))
    return find_tenant(connection, tenant_id)


def find_tenant(connection: Connection, tenant_id: str) -> Tenant:
    """One tenant.

    Raises:
        NotFoundError: there is none.
    """
    column = tenant_table.c
    row = connection.execute(select(*_TENANT_COLUMNS).where(column.id == tenant_id)).one_or_none()
    if row is None:
        raise NotFoundError("no such tenant")
    return Tenant(*row)


def create_key(
    connection: Connection,
    tenant_id: str,
    name: str,
    scopes: Collection[str],
    *,
    days: float,
    public_key: str | None = None,
) -> tuple[ApiKey, str]:
    """A new key, and its text, which cannot be had again; with a public key there is none.

    Raises:
        RequestInvalidError: an unknown scope, none at all, one that a signing key has no use for, or a life
            beyond `MOST_KEY_DAYS`.
    """
    unknown = sorted(set(scopes) - SCOPES.keys())
    if unknown or not scopes:
        said = f"unknown: {', '.join(unknown)}" if unknown else "none given"
        raise RequestInvalidError(said, where="scopes", fix=f"choose from {', '.join(SCOPES)}")
    if not 0 < days <= MOST_KEY_DAYS:
        raise RequestInvalidError(f"a key lives up to {MOST_KEY_DAYS} days", where="days")
    if public_key is not None and set(scopes) != {SIGNING_SCOPE}:
        raise RequestInvalidError(f"a signing key has the scope {SIGNING_SCOPE} alone", where="scopes")
    now = time_now(connection)
    ends = now + round(days * 86_400 * SECOND)
    key = ApiKey(new_id("ak"), tenant_id, name, tuple(sorted(set(scopes))), now, ends, None, public_key)
    secret = secrets.token_urlsafe(32)
    connection.execute(
        insert(key_table).values(
            id=key.id,
            tenant_id=tenant_id,
            name=name,
            secret_sha256=_digest(secret) if public_key is None else b"",
            public_key=public_key,
            scopes=" ".join(key.scopes),
            created=now,
            expires=key.expires,
            allowance=SUBMISSIONS_AT_ONCE,
            allowance_at=now,
        )
    )
    return key, f"{key.id}.{secret}" if public_key is None else ""


def authenticate(connection: Connection, text: str) -> ApiKey:
    """The key of this text.

    Raises:
        UnauthenticatedError: unknown, expired or revoked; which of these is not said.
    """
    key_id, _, secret = text.partition(".")
    key_id = key_id.replace("\0", "")  # PostgreSQL has no such text
    wanted = select(*_KEY_COLUMNS, key_table.c.secret_sha256).where(key_table.c.id == key_id)
    row = connection.execute(wanted).one_or_none()
    right = hmac.compare_digest(_DECOY if row is None else bytes(row.secret_sha256), _digest(secret))
    if row is None or not right or row.revoked is not None or row.expires <= time_now(connection):
        raise UnauthenticatedError("the key is unknown, expired or revoked")
    return _key(row[:-1])


def person_key(
    connection: Connection, tenant: str, issuer: str, subject: str, scopes: tuple[str, ...]
) -> ApiKey:
    """The key that stands for a person of an issuer: nobody has its secret; revoking it locks the person out.

    It is made when the person first comes. It holds their allowance, and who came is listed with the keys.

    Raises:
        UnauthenticatedError: there is no such tenant, or the person was locked out; which is not said.
    """
    named = or_(tenant_table.c.id == tenant, tenant_table.c.name == tenant)
    tenant_ids = connection.execute(select(tenant_table.c.id).where(named)).scalars().all()
    if len(tenant_ids) != 1:
        raise UnauthenticatedError("the token is not taken")
    key_id = f"person_{hashlib.sha256(repr((tenant_ids[0], issuer, subject)).encode()).hexdigest()[:32]}"
    wanted = select(*_KEY_COLUMNS).where(key_table.c.id == key_id)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        now = time_now(connection)
        values = {
            "id": key_id,
            "tenant_id": tenant_ids[0],
            "name": f"{subject} of {issuer}"[:200],
            "secret_sha256": secrets.token_bytes(32),  # of no text that anybody knows
            "scopes": " ".join(scopes),
            "created": now,
            "expires": now,  # as a key; tokens have their own end
            "allowance": SUBMISSIONS_AT_ONCE,
            "allowance_at": now,
        }
        insert_if_absent(connection, key_table, values)
        row = connection.execute(wanted).one()
    if row.revoked is not None:
        raise UnauthenticatedError("the token is not taken")
    return replace(_key(row), scopes=scopes)


def living_key(connection: Connection, key_id: str) -> ApiKey | None:
    """The key of this id, which its holder has proved before; None once it is expired or revoked."""
    row = connection.execute(select(*_KEY_COLUMNS).where(key_table.c.id == key_id)).one_or_none()
    if row is None or row.revoked is not None or row.expires <= time_now(connection):
        return None
    return _key(row)


def signing_key(connection: Connection, key_id: str) -> ApiKey | None:
    """A key that signs; None where it is unknown, expired or revoked, or has a secret instead."""
    wanted = select(*_KEY_COLUMNS).where(key_table.c.id == key_id.replace("\0", ""))
    row = connection.execute(wanted.where(key_table.c.public_key.is_not(None))).one_or_none()
    if row is None or row.revoked is not None or row.expires <= time_now(connection):
        return None
    return _key(row)


def keys(
    connection: Connection, tenant_id: str, *, after: tuple[int, str] | None, limit: int
) -> list[ApiKey]:
    """A tenant's keys in order of making, the revoked too."""
    column = key_table.c
    wanted = select(*_KEY_COLUMNS).where(column.tenant_id == tenant_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) > after)
    return [_key(row) for row in connection.execute(wanted.order_by(column.created, column.id).limit(limit))]


def revoke_key(connection: Connection, tenant_id: str, key_id: str) -> ApiKey:
    """End a key's life now; doing it again changes nothing.

    Raises:
        NotFoundError: the tenant has no such key.
    """
    column = key_table.c
    same = (column.tenant_id == tenant_id, column.id == key_id)
    stamp = update(key_table).where(*same, column.revoked.is_(None)).values(revoked=time_now(connection))
    connection.execute(stamp)
    row = connection.execute(select(*_KEY_COLUMNS).where(*same)).one_or_none()
    if row is None:
        raise NotFoundError("no such key")
    return _key(row)


def take_allowance(connection: Connection, key: ApiKey) -> float:
    """Count one submission against a key's token bucket; returns what is left.

    Last in its transaction: others who use the key wait from here on until it ends.

    Raises:
        RateLimitedError: nothing is left.
    """
    column, now = key_table.c, stamp(connection)
    least, most = (func.min, func.max) if connection.dialect.name == "sqlite" else (func.least, func.greatest)
    # A clock that was set back gives nothing, and takes nothing away.
    gained = most(0, now - column.allowance_at) * (SUBMISSIONS_A_SECOND / SECOND)
    left = least(literal(SUBMISSIONS_AT_ONCE, Double), column.allowance + gained)
    taken = (
        update(key_table)
        .where(column.id == key.id, left >= 1.0)
        .values(allowance=left - 1.0, allowance_at=most(now, column.allowance_at))
        .returning(column.allowance)
    )
    found = connection.execute(taken).scalar_one_or_none()
    if found is None:
        wait = int(1.0 / SUBMISSIONS_A_SECOND) + 1
        raise RateLimitedError("too many submissions with this key", retry_after=wait)
    return float(found)


_TENANT_COLUMNS = tuple(
    tenant_table.c[name] for name in ("id", "name", "created", "most_running", "retention_days")
)
_KEY_COLUMNS = tuple(
    key_table.c[name]
    for name in ("id", "tenant_id", "name", "scopes", "created", "expires", "revoked", "public_key")
)


def _key(row: Sequence[Any]) -> ApiKey:
    key_id, tenant_id, name, scopes, *others = row
    return ApiKey(key_id, tenant_id, name, tuple(scopes.split()), *others)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
