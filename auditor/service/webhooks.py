"""Webhooks: where a tenant wants to be told, and what is still to be delivered there.

A message is committed with what it tells of (`enqueue` runs in that transaction), so it is told at least
once, and never of something that did not happen. A sender claims a delivery under a lease and a fencing
token; what came of it is recorded under that token. Receivers know a message that comes again by its
`webhook-id`. Retries as the example schedule of Standard Webhooks (standardwebhooks.com): 10 attempts over
75.6 hours, with jitter.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqlalchemy import and_, delete, func, insert, or_, select, tuple_, update

from auditor.service.clock import SECOND, to_text
from auditor.service.clock import now as time_now
from auditor.service.errors import ConflictError, NotFoundError, RequestInvalidError
from auditor.service.identifiers import new_id
from auditor.store_schema import delivery as delivery_table
from auditor.store_schema import tenant as tenant_table
from auditor.store_schema import webhook as webhook_table

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection, Row

TYPES = {
    "audit.done": "an audit has a verdict",
    "audit.dead": "an audit failed for good",
    "audit.quarantined": "an audit's workers died over it three times",
    "audit.cancelled": "an audit was cancelled",
    "provider.verdict-changed": "a scheduled period changed the verdict on a provider",
    "schedule.failed": "a scheduled period was given up",
    "dispute.changed": "a dispute was filed, answered or resolved",
}
"""Type of message -> when it is sent; whoever calls `enqueue` with another type adds it here."""

WAITS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds between one attempt and the next; after the last there is none."""
JITTER = 0.2
LEASE_SECONDS = 60
MOST_WEBHOOKS = 20
MOST_URL_CHARACTERS = 2000
AT_ONCE = 4
"""Deliveries under way for one tenant, so that slow receivers of one hold nobody else up."""
_URL = re.compile(r"https://[!-~]+")


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a tenant wants to be told of `types` (empty: of everything); times as in `ApiKey`."""

    id: str
    tenant_id: str
    url: str
    types: tuple[str, ...]
    created: int
    disabled: int | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way to one webhook.

    Attributes:
        state: `pending`, `delivered` or `failed`.
        status: of the last answer; `error` says why the last attempt failed.
    """

    id: str
    webhook_id: str
    type: str
    created: int
    state: str
    attempts: int
    next_at: int
    status: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Sending:
    """A claimed delivery."""

    id: str
    tenant_id: str
    webhook_id: str
    url: str
    body: bytes
    attempts: int
    token: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt: delivered where `error` is None, for good where `gone`."""

    status: int | None
    error: str | None = None
    gone: bool = False


def check_url(url: str) -> None:
    """Refuse what can never be sent to; addresses are checked when it is sent.

    Raises:
        RequestInvalidError: not https, or with a password, a fragment or no host.
    """
    wrong = RequestInvalidError("an https URL without user, password and fragment", where="url")
    if len(url) > MOST_URL_CHARACTERS or _URL.fullmatch(url) is None:
        raise wrong
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise wrong from None
    if not usable or "@" in parts.netloc or parts.fragment or "\\" in url:
        raise wrong


def create(connection: Connection, tenant_id: str, url: str, types: Collection[str]) -> str:
    """A new webhook; returns its id.

    Raises:
        RequestInvalidError: see `check_url`; or an unknown type.
        ConflictError: the tenant has `MOST_WEBHOOKS`.
    """
    check_url(url)
    unknown = sorted(set(types) - TYPES.keys())
    if unknown:
        raise RequestInvalidError("an unknown type", where="types", fix=f"choose from {', '.join(TYPES)}")
    # The tenant's row is locked: who counts must be alone in doing so.
    alone = select(tenant_table.c.id).where(tenant_table.c.id == tenant_id).with_for_update(key_share=True)
    connection.execute(alone)
    count = select(func.count()).where(webhook_table.c.tenant_id == tenant_id)
    if connection.execute(count).scalar_one() >= MOST_WEBHOOKS:
        raise ConflictError(f"a tenant has at most {MOST_WEBHOOKS} webhooks", fix="delete one")
    made = new_id("whk")
    values = {"id": made, "tenant_id": tenant_id, "url": url, "types": " ".join(sorted(set(types)))}
    connection.execute(insert(webhook_table).values(**values, created=time_now(connection), disabled=None))
    return made


def find(connection: Connection, tenant_id: str, webhook_id: str) -> Webhook:
    """One webhook.

    Raises:
        NotFoundError: the tenant has no such webhook.
    """
    column = webhook_table.c
    wanted = select(webhook_table).where(column.tenant_id == tenant_id, column.id == webhook_id)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFoundError("no such webhook")
    return _webhook(row)


def listed(
    connection: Connection, tenant_id: str, *, after: tuple[int, str] | None, limit: int
) -> list[Webhook]:
    """A tenant's webhooks in order of making."""
    column = webhook_table.c
    wanted = select(webhook_table).where(column.tenant_id == tenant_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) > after)
    rows = connection.execute(wanted.order_by(column.created, column.id).limit(limit))
    return [_webhook(row) for row in rows]


def remove(connection: Connection, tenant_id: str, webhook_id: str) -> None:
    """Forget a webhook and what was to be delivered there; an attempt under way may still arrive.

    Raises:
        NotFoundError: the tenant has no such webhook.
    """
    column = webhook_table.c
    same = (column.tenant_id == tenant_id, column.id == webhook_id)
    if connection.execute(select(column.id).where(*same).with_for_update()).first() is None:
        raise NotFoundError("no such webhook")
    connection.execute(delete(delivery_table).where(delivery_table.c.webhook_id == webhook_id))
    connection.execute(delete(webhook_table).where(*same))


def deliveries(
    connection: Connection, tenant_id: str, webhook_id: str, *, after: tuple[int, str] | None, limit: int
) -> list[Delivery]:
    """What was, is or will be delivered to a webhook, newest first.

    Raises:
        NotFoundError: the tenant has no such webhook.
    """
    find(connection, tenant_id, webhook_id)
    column = delivery_table.c
    names = ("id", "webhook_id", "type", "created", "state", "attempts", "next_at", "status", "error")
    wanted = select(*(column[name] for name in names)).where(column.webhook_id == webhook_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) < after)
    rows = connection.execute(wanted.order_by(column.created.desc(), column.id.desc()).limit(limit))
    return [Delivery(*row) for row in rows]


def enqueue(connection: Connection, tenant_id: str, type: str, payload: dict[str, Any]) -> int:  # noqa: A002
    """Tell a tenant's webhooks, once this transaction is committed; returns how many will be told.

    Args:
        type: one of `TYPES`.
        payload: JSON; identifiers and digests rather than contents.
    """
    if type not in TYPES:
        raise KeyError(type)
    column = webhook_table.c
    wanted = select(column.id, column.types).where(column.tenant_id == tenant_id, column.disabled.is_(None))
    # Locked against removal: a delivery whose webhook went away would undo what it tells of.
    found = connection.execute(wanted.with_for_update(read=True, key_share=True)).all()
    told = [row.id for row in found if not row.types or type in row.types.split()]
    if not told:
        return 0
    now = time_now(connection)
    message = {"type": type, "timestamp": to_text(now), "data": payload}
    body = json.dumps(message, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    same = {"tenant_id": tenant_id, "type": type, "body": body, "created": now, "next_at": now}
    same |= {"state": "pending", "attempts": 0, "token": 0, "status": None, "error": None}
    connection.execute(
        insert(delivery_table), [{**same, "id": new_id("msg"), "webhook_id": webhook} for webhook in told]
    )
    return len(told)


def is_due(connection: Connection) -> bool:
    """Whether a claim would find something; needs no write lock."""
    column = delivery_table.c
    due = select(column.id).where(column.state == "pending", column.next_at <= time_now(connection))
    return connection.execute(due.limit(1)).first() is not None


def claim(connection: Connection, most: int, busy: dict[str, int]) -> list[Sending]:
    """Take what is due, oldest first, under a lease of `LEASE_SECONDS`.

    Args:
        most: of them.
        busy: tenant -> how many of its deliveries the caller has under way.
    """
    now = time_now(connection)
    column = delivery_table.c
    turn = func.row_number().over(partition_by=column.tenant_id, order_by=column.next_at)
    ready = (column.state == "pending", column.next_at <= now)
    due = select(column.id, column.tenant_id, turn.label("turn")).where(*ready).subquery()
    free = or_(
        and_(due.c.tenant_id.not_in(busy), due.c.turn <= AT_ONCE),
        *(and_(due.c.tenant_id == name, due.c.turn <= AT_ONCE - count) for name, count in busy.items()),
    )
    wanted = (
        select(delivery_table, webhook_table.c.url, webhook_table.c.disabled)
        .join(webhook_table, webhook_table.c.id == column.webhook_id)
        .where(column.id.in_(select(due.c.id).where(free)), *ready)
        .order_by(column.next_at)
        .limit(most)
        .with_for_update(skip_locked=True, of=[delivery_table])
    )
    claimed = []
    for row in connection.execute(wanted).all():
        if row.disabled is not None or row.attempts > len(WAITS):  # the last sender died in its attempt
            values: dict[str, Any] = {"state": "failed", "error": row.error or "no answer was recorded"}
        else:
            values = {"attempts": row.attempts + 1, "next_at": now + LEASE_SECONDS * SECOND}
            what = (row.id, row.tenant_id, row.webhook_id, row.url, bytes(row.body))
            claimed.append(Sending(*what, attempts=row.attempts + 1, token=row.token + 1))
        values["token"] = row.token + 1
        connection.execute(update(delivery_table).where(column.id == row.id).values(values))
    return claimed


def next_wait(attempts: int, chance: float) -> float | None:
    """Seconds from a failed attempt to the next; None after the last.

    Args:
        attempts: made so far, from 1.
        chance: uniform in [0, 1).
    """
    if attempts > len(WAITS):
        return None
    return WAITS[attempts - 1] * (1.0 - JITTER + 2.0 * JITTER * chance)


def settle(connection: Connection, sending: Sending, outcome: Outcome, chance: float) -> bool:
    """Record what came of an attempt; False where another sender holds the delivery, or it is no more."""
    now = time_now(connection)
    values: dict[str, Any] = {"status": outcome.status, "error": outcome.error}
    wait = next_wait(sending.attempts, chance)
    if outcome.error is None:
        values["state"] = "delivered"
    elif outcome.gone or wait is None:
        values["state"] = "failed"
    else:
        values["next_at"] = now + round(wait * SECOND)
    this = webhook_table.c.id == sending.webhook_id
    if outcome.gone:  # locked before its deliveries, as `remove` does
        connection.execute(select(webhook_table.c.id).where(this).with_for_update())
    column = delivery_table.c
    same = (column.id == sending.id, column.token == sending.token, column.state == "pending")
    if connection.execute(update(delivery_table).where(*same).values(values)).rowcount != 1:
        return False
    if outcome.gone:
        connection.execute(update(webhook_table).where(this).values(disabled=now))
    return True


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(row.id, row.tenant_id, row.url, tuple(row.types.split()), row.created, row.disabled)
