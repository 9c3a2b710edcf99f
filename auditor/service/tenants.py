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

from sqlalchemy import bindparam, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from auditor.service.clock import SECOND, stamp
from auditor.service.clock import now as time_now
from auditor.service.errors import (
    ConflictError,
    NotFoundError,
    RateLimitedError,
    RequestInvalidError,
    ScopeMissingError,
    ServiceError,
    UnauthenticatedError,
)
from auditor.service.identifiers import new_id
from auditor.store_engine import insert_if_absent
from auditor.store_schema import api_key as key_table
from auditor.store_schema import provider as provider_table
from auditor.store_schema import tenant as tenant_table

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection, Row

SCOPES = {
    "audits:read": "read audits, evidence, verdicts and progress",
    "audits:write": "upload logs, submit and cancel audits",
    "trust": "say who sells which models, whose signatures count, and which profiles no longer do",
    "keys": "make, list and revoke the tenant's keys",
    "webhooks": "make, list and delete the tenant's webhooks",
    "disputes": "answer and resolve disputes",
    "operator": "make and list tenants, and keys for any tenant",
}
PROVIDER_SCOPE = "provider"
"""Of a key that is given to a provider, the only one it has: to commit, and to open what is challenged."""
SIGNING_SCOPE = "audits:write"
MOST_RUNNING = 4
MOST_KEY_DAYS = 366
SUBMISSIONS_A_SECOND = 50.0
SUBMISSIONS_AT_ONCE = 500.0
_PERSON = "person_"
"""Such a key stands for a person: it has no end of its own, their tokens have."""
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
    """A key without its secret. Times are microseconds since 1970.

    Attributes:
        public_key: a vkey, of a key that signs.
        provider_id: the provider that holds it; None for the tenant's own.
    """

    id: str
    tenant_id: str
    name: str
    scopes: tuple[str, ...]
    created: int
    expires: int
    revoked: int | None = None
    public_key: str | None = None
    provider_id: str | None = None

    def require(self, *scopes: str) -> None:
        """Raise unless the key has one of the scopes.

        Raises:
            ScopeMissingError: it has not.
        """
        if not set(scopes) & set(self.scopes):
            raise ScopeMissingError(f"this needs a key with the scope {' or '.join(scopes)}")


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
    provider_id: str | None = None,
) -> tuple[ApiKey, str]:
    """A new key, and its text, which cannot be had again; with a public key there is none.

    Args:
        provider_id: whom the key is for, with `PROVIDER_SCOPE` as its only scope.

    Raises:
        RequestInvalidError: an unknown scope, none at all, one that a signing key has no use for, a life
            beyond `MOST_KEY_DAYS`, or a provider's key with other scopes.
        NotFoundError: the tenant has no such provider.
    """
    if (provider_id is not None or PROVIDER_SCOPE in scopes) and set(scopes) != {PROVIDER_SCOPE}:
        raise RequestInvalidError(f"a provider's key has the scope {PROVIDER_SCOPE} alone", where="scopes")
    if PROVIDER_SCOPE in scopes:
        _check_provider(connection, tenant_id, provider_id)
    unknown = sorted(set(scopes) - SCOPES.keys() - {PROVIDER_SCOPE})
    if unknown or not scopes:
        said = f"unknown: {', '.join(unknown)}" if unknown else "none given"
        raise RequestInvalidError(said, where="scopes", fix=f"choose from {', '.join(SCOPES)}")
    if not 0 < days <= MOST_KEY_DAYS:
        raise RequestInvalidError(f"a key lives up to {MOST_KEY_DAYS} days", where="days")
    if public_key is not None and set(scopes) != {SIGNING_SCOPE}:
        raise RequestInvalidError(f"a signing key has the scope {SIGNING_SCOPE} alone", where="scopes")
    now = time_now(connection)
    ends, ordered = now + round(days * 86_400 * SECOND), tuple(sorted(set(scopes)))
    key = ApiKey(new_id("ak"), tenant_id, name, ordered, now, ends, None, public_key, provider_id)
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
            provider_id=provider_id,
        )
    )
    return key, f"{key.id}.{secret}" if public_key is None else ""


def _check_provider(connection: Connection, tenant_id: str, provider_id: str | None) -> None:
    if provider_id is None:
        raise RequestInvalidError("name the provider whose key it is", where="provider")
    column = provider_table.c
    wanted = select(column.id).where(column.tenant_id == tenant_id, column.id == provider_id)
    if connection.execute(wanted).one_or_none() is None:
        raise NotFoundError("no such provider")


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
    key_id = f"{_PERSON}{hashlib.sha256(repr((tenant_ids[0], issuer, subject)).encode()).hexdigest()[:32]}"
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


def take_allowances(connection: Connection, callers: Sequence[ApiKey]) -> list[float | ServiceError]:
    """Count submissions against their keys' token buckets: what is left after each, or why one is refused.

    Others who use these keys wait from here on until the transaction ends.
    Whether the keys are still good is looked up here, in the transaction of what they submit: it counts
    whatever was found out about them before.
    """
    now = stamp(connection)
    rows = connection.execute(_ALLOWANCES, {"keys": [*{key.id for key in callers}]})
    found = {row.id: row for row in rows}
    # A clock that was set back gives nothing, and takes nothing away.
    rate = SUBMISSIONS_A_SECOND / SECOND
    left = {
        row.id: min(SUBMISSIONS_AT_ONCE, row.allowance + max(0, now - row.allowance_at) * rate)
        for row in found.values()
    }
    taken = [_taken(found.get(key.id), now, left) for key in callers]
    used = {key.id for key, one in zip(callers, taken, strict=True) if not isinstance(one, ServiceError)}
    if used:
        changes = [
            {"key": key, "allowance": left[key], "allowance_at": max(now, found[key].allowance_at)}
            for key in sorted(used)
        ]
        connection.execute(_ALLOW, changes)
    return taken


_ALLOWANCES = (
    select(*(key_table.c[name] for name in ("id", "revoked", "expires", "allowance", "allowance_at")))
    .where(key_table.c.id.in_(bindparam("keys", expanding=True)))
    # Locked in one order: nobody waits in a circle. `key_share` lets others refer to a key meanwhile.
    .order_by(key_table.c.id)
    .with_for_update(key_share=True)
)
_ALLOW = update(key_table).where(key_table.c.id == bindparam("key"))


def _taken(row: Row[Any] | None, now: int, left: dict[str, float]) -> float | ServiceError:
    if row is None or row.revoked is not None or (row.expires <= now and not row.id.startswith(_PERSON)):
        return UnauthenticatedError("the key is unknown, expired or revoked")
    if left[row.id] < 1.0:
        wait = int(1.0 / SUBMISSIONS_A_SECOND) + 1
        return RateLimitedError("too many submissions with this key", retry_after=wait)
    left[row.id] -= 1.0
    return left[row.id]


_TENANT_COLUMNS = tuple(
    tenant_table.c[name] for name in ("id", "name", "created", "most_running", "retention_days")
)
_KEY_COLUMNS = tuple(
    key_table.c[name]
    for name in (
        *("id", "tenant_id", "name", "scopes", "created", "expires", "revoked"),
        *("public_key", "provider_id"),
    )
)


def _key(row: Sequence[Any]) -> ApiKey:
    key_id, tenant_id, name, scopes, *others = row
    return ApiKey(key_id, tenant_id, name, tuple(scopes.split()), *others)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
