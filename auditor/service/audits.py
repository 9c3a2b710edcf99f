"""Audits: a log, how it is to be judged, and what came out. Every function names the tenant.

Submitting commits the audit, its job, its first event, the log entry that tells of it and the Idempotency-Key
together, or nothing. Finishing (see `worker.py`) commits evidence, verdict, log entry and the job's end
together.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, or_, select, tuple_, update

from auditor.service import jobs, log_entries, ordering, providers, tracing, webhooks
from auditor.service.clock import stamp, to_text
from auditor.service.errors import (
    ConflictError,
    EvidenceErasedError,
    IdempotencyKeyReusedError,
    NotFinishedError,
    NotFoundError,
    RequestInvalidError,
)
from auditor.service.identifiers import new_id
from auditor.store_engine import insert_if_absent
from auditor.store_schema import audit as audit_table
from auditor.store_schema import event as event_table
from auditor.store_schema import evidence as evidence_table
from auditor.store_schema import exhibit as exhibit_table
from auditor.store_schema import idempotency_key as idempotency_table
from auditor.store_schema import job as job_table
from auditor.store_schema import log_entry as log_entry_table
from auditor.store_schema import trace_log as log_table
from auditor.store_schema import verdict as verdict_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Row, Select

    from auditor.service.ordering import NewAudit


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """How a log is judged; as the options of `audit verify` of the same names."""

    alpha: float = 0.001
    input_format: str = "auto"
    engine_recipe: str | None = None
    noise: str | None = None
    served_model: str | None = None

    def __post_init__(self) -> None:
        """Refuse what `verify` would.

        Raises:
            RequestInvalidError: alpha is no rate.
        """
        if not 0.0 < self.alpha < 1.0:
            raise RequestInvalidError("alpha lies between 0 and 1", where="alpha")

    @lru_cache(maxsize=256)  # noqa: B019  # a few small values, and most ask for the same
    def text(self) -> str:
        """Canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class TraceLog:
    """Bytes that a tenant handed in; `name` is a label and nothing else. `erased`: when its bytes went."""

    id: str
    tenant_id: str
    digest: str
    name: str
    size: int
    created: int
    erased: int | None = None

    def require_bytes(self) -> None:
        """Raise when they are gone.

        Raises:
            EvidenceErasedError: they were erased.
        """
        if self.erased is not None:
            raise EvidenceErasedError(f"the log was erased on {to_text(self.erased)}", where=self.id)


@dataclass(frozen=True, slots=True)
class Audit:
    """An audit and where it stands. Times are microseconds since 1970; `outcome` is None until it is done."""

    id: str
    tenant_id: str
    created: int
    options: AuditOptions
    provider: str
    log: TraceLog
    state: str
    attempts: int
    lost_leases: int
    error_code: str | None
    error: str | None
    finished: int | None
    outcome: str | None
    verdict_digest: str | None
    events: int
    provider_id: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """A line of an audit's progress; `sequence` counts from 1 without a gap."""

    sequence: int
    kind: str
    data: dict[str, Any]
    created: int


def keep_log(connection: Connection, tenant_id: str, digest: str, name: str, size: int) -> TraceLog:
    """The tenant's log with these bytes, which are kept already; the same bytes are one log.

    Bytes that were erased and are handed in again are there again.
    """
    made = TraceLog(new_id("log"), tenant_id, digest, name, size, stamp(connection))
    if insert_if_absent(connection, log_table, asdict(made)):
        return made
    found = _find_log(connection, tenant_id, log_table.c.digest == digest)
    if found is None:
        raise NotFoundError("no such log")
    if found.erased is None:
        return found
    values = {"erased": None, "created": made.created, "name": name}
    connection.execute(update(log_table).where(log_table.c.id == found.id).values(values))
    return replace(found, erased=None, created=made.created, name=name)


def find_log(connection: Connection, tenant_id: str, log_id: str) -> TraceLog:
    """One log.

    Raises:
        NotFoundError: the tenant has no such log.
    """
    found = _find_log(connection, tenant_id, log_table.c.id == log_id)
    if found is None:
        raise NotFoundError("no such log")
    return found


def _find_log(connection: Connection, tenant_id: str, same: Any) -> TraceLog | None:
    wanted = select(*_LOG_COLUMNS).where(log_table.c.tenant_id == tenant_id, same)
    row = connection.execute(wanted).one_or_none()
    return None if row is None else TraceLog(*row)


def _made_before(connection: Connection, tenant_id: str, key: str, request_sha256: bytes) -> str | None:
    """The id of what an earlier request with this Idempotency-Key made; None when there was none.

    Raises:
        IdempotencyKeyReusedError: that was another request.
    """
    column = idempotency_table.c
    wanted = select(column.request_sha256, column.resource_id)
    row = connection.execute(wanted.where(column.tenant_id == tenant_id, column.key == key)).one_or_none()
    if row is None:
        return None
    if bytes(row.request_sha256) != request_sha256:
        raise IdempotencyKeyReusedError("was used for another request", where="Idempotency-Key")
    return str(row.resource_id)


def once(
    connection: Connection, tenant_id: str, key: str, request_sha256: bytes, make: Callable[[], str]
) -> tuple[str, bool]:
    """The id of what this request makes, or made before; and whether it was made before.

    Raises:
        IdempotencyKeyReusedError: the Idempotency-Key came with another request.
    """
    found = _made_before(connection, tenant_id, key, request_sha256)
    if found is not None:
        return found, True
    made = make()
    values = {"tenant_id": tenant_id, "key": key, "request_sha256": request_sha256, "resource_id": made}
    if insert_if_absent(connection, idempotency_table, {**values, "created": stamp(connection)}):
        return made, False
    raise ConflictError("a request with this key is under way", where="Idempotency-Key", retry_after=1)


def submit(connection: Connection, log: TraceLog, options: AuditOptions, provider: str = "") -> str:
    """Order an audit of a log of that provider; returns its id.

    A name that is registered is that provider; one that is registered later will be (`providers.create`).

    Raises:
        EvidenceErasedError: its bytes are gone.
    """
    log.require_bytes()
    registered = providers.named(connection, log.tenant_id, provider)
    made = ordering.NewAudit(new_id("aud"), log, options, provider, registered, tracing.traceparent())
    ordering.write(connection, [made], stamp(connection))
    return made.id


def ordered(new: NewAudit, now: int) -> Audit:
    """An audit as `find` has it at the moment it was ordered."""
    ends = (None, None, None, None, None)
    whose, log = (new.options, new.provider), new.log
    return Audit(new.id, log.tenant_id, now, *whose, log, "queued", 0, 0, *ends, 1, new.provider_id)


def record(
    connection: Connection, audit: Audit, body: bytes, outcome: str, traces: list[bytes], now: int
) -> None:
    """Write what an audit found, in the transaction that ends its job."""
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    values = {"audit_id": audit.id, "outcome": outcome, "digest": digest, "created": now, "body": body}
    connection.execute(insert(verdict_table).values(values))
    if traces:
        rows = [{"audit_id": audit.id, "number": n, "body": trace} for n, trace in enumerate(traces)]
        connection.execute(insert(evidence_table), rows)
    fact = {"audit": audit.id, "log": audit.log.digest, "verdict": digest}
    log_fact(connection, audit.id, audit.tenant_id, "verdict", fact)
    told = {"audit": audit.id, "state": "done", "verdict": outcome, "verdict_digest": digest}
    webhooks.enqueue(connection, audit.tenant_id, "audit.done", told)


def log_fact(connection: Connection, subject: str, tenant_id: str, kind: str, fact: dict[str, str]) -> None:
    """Have the transparency log tell of something, once for each subject and kind.

    Digests and ids only: the log is public, and a verdict is the tenant's to publish.
    """
    body = ordering.entry_body(tenant_id, kind, fact)
    connection.execute(insert(log_entry_table).values(subject=subject, kind=kind, body=body))


def find(connection: Connection, tenant_id: str, audit_id: str) -> Audit:
    """One audit.

    Raises:
        NotFoundError: the tenant has no such audit.
    """
    row = connection.execute(_audits(tenant_id).where(audit_table.c.id == audit_id)).one_or_none()
    if row is None:
        raise NotFoundError("no such audit")
    return _audit(row)


def listed(
    connection: Connection,
    tenant_id: str,
    *,
    after: tuple[int, str] | None,
    limit: int,
    state: str | None = None,
    outcome: str | None = None,
    provider: str | None = None,
) -> list[Audit]:
    """A tenant's audits, newest first, after the (created, id) of another.

    Args:
        provider: audits of this provider: said by who submitted it, else by the log, if by it alone.
    """
    column = audit_table.c
    wanted = _audits(tenant_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) < after)
    if state is not None:
        wanted = wanted.where(job_table.c.state == state)
    if outcome is not None:
        wanted = wanted.where(verdict_table.c.outcome == outcome)
    if provider is not None:
        shown = exhibit_table.c
        named = select(shown.audit_id).where(shown.tenant_id == tenant_id, shown.provider == provider)
        wanted = wanted.where(or_(column.provider == provider, column.id.in_(named)))
    rows = connection.execute(wanted.order_by(column.created.desc(), column.id.desc()).limit(limit))
    return [_audit(row) for row in rows]


def cancel(connection: Connection, tenant_id: str, audit_id: str) -> None:
    """Stop an audit; again is the same as once.

    Raises:
        NotFoundError: the tenant has no such audit.
        ConflictError: it has ended.
    """
    find(connection, tenant_id, audit_id)
    job = jobs.locked(connection, audit_id)
    if job is None:
        raise NotFoundError("no such audit")
    jobs.cancel(connection, job)


def verdict(connection: Connection, tenant_id: str, audit_id: str) -> tuple[bytes, str]:
    """The verdict's bytes and their digest.

    Raises:
        NotFoundError: the tenant has no such audit.
        NotFinishedError: there is no verdict yet, or there will be none.
    """
    audit = find(connection, tenant_id, audit_id)
    column = verdict_table.c
    row = connection.execute(
        select(column.body, column.digest).where(column.audit_id == audit_id)
    ).one_or_none()
    if row is None:
        raise NotFinishedError(f"there is no verdict: the audit is {audit.state}")
    return bytes(row.body), row.digest


def evidence(
    connection: Connection, tenant_id: str, audit_id: str, *, after: int, limit: int
) -> list[tuple[int, bytes]]:
    """(number, JSON) of an audit's traces in order, those numbered above `after`.

    Raises:
        NotFoundError: the tenant has no such audit.
        NotFinishedError: there is no verdict yet, or there will be none.
    """
    audit = find(connection, tenant_id, audit_id)
    if audit.outcome is None:
        raise NotFinishedError(f"there is no evidence: the audit is {audit.state}")
    column = evidence_table.c
    wanted = select(column.number, column.body).where(column.audit_id == audit_id, column.number > after)
    rows = connection.execute(wanted.order_by(column.number).limit(limit))
    return [(row.number, bytes(row.body)) for row in rows]


def events(connection: Connection, tenant_id: str, audit_id: str, *, after: int, limit: int) -> list[Event]:
    """Progress of an audit in order, what came after the event of that number.

    Raises:
        NotFoundError: the tenant has no such audit.
    """
    find(connection, tenant_id, audit_id)
    column = event_table.c
    wanted = select(column.sequence, column.kind, column.data, column.created)
    wanted = wanted.where(column.audit_id == audit_id, column.sequence > after)
    rows = connection.execute(wanted.order_by(column.sequence).limit(limit))
    return [Event(row.sequence, row.kind, json.loads(row.data), row.created) for row in rows]


def log_entry(connection: Connection, tenant_id: str, audit_id: str, kind: str) -> tuple[int | None, bytes]:
    """The place in the log, once it has one, and the bytes of an audit's entry.

    Raises:
        NotFoundError: the tenant has no such audit.
        NotFinishedError: there is no such entry yet, or there will be none.
    """
    audit = find(connection, tenant_id, audit_id)
    found = log_entries.find(connection, audit_id, kind)
    if found is None:
        raise NotFinishedError(f"there is no {kind} entry: the audit is {audit.state}")
    return found


_LOG_COLUMNS = tuple(
    log_table.c[name] for name in ("id", "tenant_id", "digest", "name", "size", "created", "erased")
)


def _audits(tenant_id: str) -> Select[Any]:
    told = select(func.coalesce(func.max(event_table.c.sequence), 0))
    told = told.where(event_table.c.audit_id == audit_table.c.id)
    state = ("state", "attempts", "lost_leases", "error_code", "error", "finished")
    return (
        select(
            *(audit_table.c[name] for name in ("id", "tenant_id", "created", "options", "provider")),
            *(column.label(f"log_{column.name}") for column in _LOG_COLUMNS),
            *(job_table.c[name] for name in state),
            verdict_table.c.outcome,
            verdict_table.c.digest,
            told.scalar_subquery().label("events"),
            audit_table.c.provider_id,
        )
        .join(log_table, log_table.c.id == audit_table.c.trace_log_id)
        .join(job_table, job_table.c.audit_id == audit_table.c.id)
        .outerjoin(verdict_table, verdict_table.c.audit_id == audit_table.c.id)
        .where(audit_table.c.tenant_id == tenant_id)
    )


def _audit(row: Row[Any]) -> Audit:
    values = list(row)
    audit_id, tenant_id, created, options, provider = values[:5]
    end = 5 + len(_LOG_COLUMNS)
    log = TraceLog(*values[5:end])
    return Audit(
        audit_id, tenant_id, created, AuditOptions(**json.loads(options)), provider, log, *values[end:]
    )
