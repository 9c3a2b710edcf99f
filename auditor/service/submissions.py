"""Submissions: several that wait at once are checked and committed together (`group_commit.py`).

What an order gets wrong is its own error and writes nothing; the others are none the worse for it.
In this order, so that two processes that commit at once never wait for each other in a circle:

1. orders whose Idempotency-Key was used before: answered as then, or refused;
2. keys, by id: alive still, and the allowance taken; their rows are locked from here on;
3. Idempotency-Keys; another process that is using one at this moment makes its order a conflict;
4. digests, in order: an erasure waits, and a blob that one removed meanwhile is kept again; small logs are
   kept here;
5. logs, audits, jobs, events, log entries.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, select
from sqlalchemy.exc import OperationalError

from auditor.errors import AuditError, StoreError
from auditor.service import audits, erasure, ordering, providers, signatures, small_logs, tenants, tracing
from auditor.service.audits import Audit, AuditOptions, TraceLog
from auditor.service.clock import stamp
from auditor.service.errors import ConflictError, IdempotencyKeyReusedError
from auditor.service.group_commit import GroupCommit
from auditor.service.identifiers import new_id
from auditor.service.small_logs import SmallLogs
from auditor.store_engine import insert_all_absent, sent_together
from auditor.store_schema import idempotency_key as idempotency_table
from auditor.store_schema import trace_log as log_table
from auditor.trace_streams import container_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.service.blobs import Blobs
    from auditor.service.signatures import Signed
    from auditor.service.tenants import ApiKey
    from auditor.store import Store

MOST_AT_ONCE = 64
"""Orders in one transaction: others who use their keys wait for all of it."""
_used = idempotency_table.c
_USED = select(_used.tenant_id, _used.key, _used.request_sha256, _used.resource_id).where(
    _used.tenant_id.in_(bindparam("owners", expanding=True)),
    _used.key.in_(bindparam("keys", expanding=True)),
)
"""Those asked for, and maybe more of the same tenants: for pairs in one `IN` SQLite reads the whole table."""


@dataclass(frozen=True, slots=True)
class InlineLog:
    """A log that came with its order; its bytes are kept already, and `put` keeps them again.

    Attributes:
        body: the bytes, where they are not kept already but will be with the order's rows.
    """

    digest: str
    name: str
    size: int
    put: Callable[[], object]
    body: bytes | None = None

    @classmethod
    def of(cls, body: bytes, name: str, blobs: Blobs) -> InlineLog:
        """For checked bytes. Unless they will lie in the database, they are on disk when it returns.

        Raises:
            StoreError: the disk is full or gone.
        """
        if lies_in_rows(body, blobs):
            return cls(f"sha256:{hashlib.sha256(body).hexdigest()}", name, len(body), lambda: None, body)
        return cls(blobs.put(body), name, len(body), lambda: blobs.put(body))


def lies_in_rows(body: bytes, blobs: Blobs) -> bool:
    """Whether a log will be kept in the database, so that keeping it waits for no disk."""
    small = isinstance(blobs, SmallLogs) and len(body) <= small_logs.MOST_BYTES
    return small and container_of(body) != "parquet"  # which readers map into memory, and link to


@dataclass(frozen=True, slots=True)
class Order:
    """A submission.

    Attributes:
        caller: whose key it came with, as it was a moment ago.
        request_sha256: tells another request with the same `idempotency_key` from this one.
        log: that came with it, or the id of one that was handed in before.
        signed: the signature that it uses up, where it came with one.
        traceparent: the trace context of its request, in whose thread it is made.
    """

    caller: ApiKey
    idempotency_key: str
    request_sha256: bytes
    options: AuditOptions
    provider: str
    log: InlineLog | str
    signed: Signed | None = None
    traceparent: str | None = field(default_factory=tracing.traceparent)

    @property
    def once(self) -> tuple[str, str]:
        """What makes it the same order as another."""
        return self.caller.tenant_id, self.idempotency_key


@dataclass(frozen=True, slots=True)
class Accepted:
    """An order on disk; `again`: since earlier. `left` of the key's allowance."""

    audit: Audit
    again: bool
    left: float


@dataclass
class _Draft:
    order: Order
    audit_id: str = field(default_factory=lambda: new_id("aud"))
    error: AuditError | None = None
    before: Audit | None = None
    ordered: Audit | None = None
    left: float = 0.0
    log: TraceLog | None = None

    @property
    def fresh(self) -> bool:
        return self.error is None and self.before is None


class Submissions:
    """Takes the orders of one process's requests."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs
        self._group = GroupCommit[Order, Accepted](self._commit, MOST_AT_ONCE)

    def submit(self, order: Order) -> Accepted:
        """Order an audit; committed when this returns.

        Raises:
            IdempotencyKeyReusedError: the key came with another request.
            ConflictError: a request with this key is under way.
            UnauthenticatedError: the API key is no longer good.
            SignatureReplayedError: the signature was used before.
            RateLimitedError: nothing is left of the key's allowance.
            NotFoundError, EvidenceErasedError: there is no such log, or its bytes are gone.
            StoreError: the database or the storage refused.
        """
        if order.signed is not None:  # its error undoes what it used up: alone in its transaction
            return _outcome(self._commit([order])[0])
        return self._group(order)

    async def submit_soon(self, order: Order) -> Accepted:
        """As `submit`, for a coroutine."""
        if order.signed is not None:
            return await asyncio.to_thread(self.submit, order)
        return await self._group.soon(order)

    def _commit(self, orders: list[Order]) -> Sequence[Accepted | BaseException]:
        # Of orders with one Idempotency-Key the later ones see what became of the first.
        first: dict[tuple[str, str], Order] = {}
        for order in orders:
            first.setdefault(order.once, order)
        later = [order for order in orders if first[order.once] is not order]
        found = {
            id(order): made
            for order, made in zip(first.values(), self._together([*first.values()]), strict=True)
        }
        for order in later:
            found[id(order)] = self._together([order])[0]
        return [found[id(order)] for order in orders]

    def _together(self, orders: list[Order]) -> Sequence[Accepted | BaseException]:
        try:
            with self._store.transaction(writes=True) as connection:
                accepted = accept(connection, orders, self._blobs)
                if len(orders) == 1 and isinstance(accepted[0], AuditError):
                    raise accepted[0]
        except AuditError as error:
            if len(orders) == 1 or not isinstance(error, StoreError):
                return [error] * len(orders)
            return self._one_by_one(orders)
        return accepted

    def _one_by_one(self, orders: list[Order]) -> Sequence[Accepted | BaseException]:
        """After the database refused all of them: whichever it was, the others may be taken."""
        made = list[Accepted | BaseException]()
        for order in orders:
            made += self._together([order])
            if isinstance(made[-1], StoreError) and isinstance(made[-1].__cause__, OperationalError):
                return made + [made[-1]] * (len(orders) - len(made))  # it refuses everybody
        return made


def accept(connection: Connection, orders: Sequence[Order], blobs: Blobs) -> list[Accepted | AuditError]:
    """What becomes of each order in this transaction; no two have the same `once`.

    A signed order comes alone: an error, its own too, undoes the use of the signature.

    Raises:
        SignatureReplayedError: the signature was used before.
        StoreError: the database or the storage refused; nothing of this transaction may be committed.
    """
    for order in orders:
        if order.signed is not None:
            signatures.use_up(connection, order.signed)
    drafts = [_Draft(order) for order in orders]
    _find_used_keys(connection, drafts)
    _find_uploaded(connection, drafts)
    _take_allowances(connection, [draft for draft in drafts if draft.error is None])
    _use_keys(connection, [draft for draft in drafts if draft.fresh])
    fresh = [draft for draft in drafts if draft.fresh]
    if fresh:
        _keep_logs(connection, fresh, blobs)
        _write(connection, fresh)
    return [draft.error or _accepted(draft) for draft in drafts]


def _find_used_keys(connection: Connection, drafts: Sequence[_Draft]) -> None:
    owners, keys = (sorted(set(some)) for some in zip(*(draft.order.once for draft in drafts), strict=True))
    asked = connection.execute(_USED, {"owners": owners, "keys": keys})
    used = {(row.tenant_id, row.key): row for row in asked}
    for draft in drafts:
        row = used.get(draft.order.once)
        if row is None:
            continue
        if bytes(row.request_sha256) != draft.order.request_sha256:
            draft.error = IdempotencyKeyReusedError("was used for another request", where="Idempotency-Key")
        else:
            draft.before = audits.find(connection, draft.order.caller.tenant_id, row.resource_id)


def _find_uploaded(connection: Connection, drafts: Sequence[_Draft]) -> None:
    for draft in drafts:
        if draft.fresh and isinstance(draft.order.log, str):
            try:
                draft.log = audits.find_log(connection, draft.order.caller.tenant_id, draft.order.log)
                draft.log.require_bytes()
            except AuditError as error:
                draft.error = error


def _take_allowances(connection: Connection, drafts: Sequence[_Draft]) -> None:
    taken = tenants.take_allowances(connection, [draft.order.caller for draft in drafts])
    for draft, left in zip(drafts, taken, strict=True):
        if isinstance(left, AuditError):
            draft.error = left
        else:
            draft.left = left


def _use_keys(connection: Connection, drafts: Sequence[_Draft]) -> None:
    if not drafts:
        return
    now, rows = stamp(connection), []
    for draft in sorted(drafts, key=lambda draft: draft.order.once):
        tenant_id, key = draft.order.once
        row = {"tenant_id": tenant_id, "key": key, "request_sha256": draft.order.request_sha256}
        rows.append(row | {"resource_id": draft.audit_id, "created": now})
    made = insert_all_absent(connection, idempotency_table, rows, idempotency_table.c.resource_id)
    for draft in drafts:
        if draft.audit_id not in made:
            said = "a request with this key is under way"
            draft.error = ConflictError(said, where="Idempotency-Key", retry_after=1)


def _keep_logs(connection: Connection, drafts: Sequence[_Draft], blobs: Blobs) -> None:
    inline = [(draft, draft.order.log) for draft in drafts if isinstance(draft.order.log, InlineLog)]
    if not inline:
        return
    kept = {log.digest: log.put for _, log in inline if log.body is None}
    erasure.keep_all(
        connection, kept, blobs, {log.digest: log.body for _, log in inline if log.body is not None}
    )
    now, made = stamp(connection), dict[tuple[str, str], TraceLog]()
    for draft, log in inline:
        owner = draft.order.caller.tenant_id
        new = TraceLog(new_id("log"), owner, log.digest, log.name, log.size, now)
        made.setdefault((owner, log.digest), new)
    rows = [{name: getattr(made[same], name) for name in TraceLog.__slots__} for same in sorted(made)]
    there = insert_all_absent(connection, log_table, rows, log_table.c.id)
    for draft, log in inline:
        owner = draft.order.caller.tenant_id
        draft.log = made[owner, log.digest]
        if draft.log.id not in there:
            draft.log = audits.keep_log(connection, owner, log.digest, log.name, log.size)


def _write(connection: Connection, drafts: Sequence[_Draft]) -> None:
    names = {(draft.order.caller.tenant_id, draft.order.provider) for draft in drafts if draft.order.provider}
    registered = providers.named_all(connection, names)
    now, made = stamp(connection), []
    for draft in drafts:
        order, log = draft.order, draft.log
        if log is None:
            raise TypeError(draft.audit_id)
        whose = registered.get((log.tenant_id, order.provider))
        new = (draft.audit_id, log, order.options, order.provider, whose, order.traceparent)
        made.append(ordering.NewAudit(*new))
    with sent_together(connection):
        ordering.write(connection, made, now)
    for draft, audit in zip(drafts, made, strict=True):
        draft.ordered = audits.ordered(audit, now)


def _accepted(draft: _Draft) -> Accepted:
    if draft.before is not None:
        return Accepted(draft.before, again=True, left=draft.left)
    if draft.ordered is None:
        raise TypeError(draft.audit_id)
    return Accepted(draft.ordered, again=False, left=draft.left)


def _outcome(outcome: Accepted | BaseException) -> Accepted:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
