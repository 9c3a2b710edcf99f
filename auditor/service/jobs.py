"""Jobs in the database: each function reads rows under a lock, asks `queue.py` what follows, and writes that.

The same statements on SQLite (whose writing transactions are one after the other) and on PostgreSQL (row
locks; workers skip rows that others hold).
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, insert, or_, select, update

from auditor.service import queue, webhooks
from auditor.service.clock import now as time_now
from auditor.service.errors import LeaseLostError
from auditor.service.queue import Job, Terms
from auditor.store_schema import checkpoint as checkpoint_table
from auditor.store_schema import event as event_table
from auditor.store_schema import job as job_table
from auditor.store_schema import tenant as tenant_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row

_COLUMNS = [job_table.c[field.name] for field in fields(Job)]


def enqueue(connection: Connection, ordered: Sequence[tuple[str, str, str | None]], now: int) -> None:
    """Add the jobs of new audits; they exist if the audits do: one commit.

    Args:
        ordered: of each (audit, tenant, trace context in which it was ordered).
    """
    new = {name: getattr(Job("", "", run_at=now), name) for name in Job.__slots__}
    made = [
        {**new, "audit_id": audit_id, "tenant_id": tenant_id, "traceparent": context}
        for audit_id, tenant_id, context in ordered
    ]
    connection.execute(insert(job_table).inline(), made)
    first = {"sequence": 1, "kind": "queued", "data": "{}", "created": now}
    connection.execute(insert(event_table), [{"audit_id": audit_id, **first} for audit_id, _, _ in ordered])


def any_due(connection: Connection) -> bool:
    """Whether a claim is worth a try. Takes no lock: on SQLite idle workers would hold up who writes."""
    column, now = job_table.c, time_now(connection)
    queued = and_(column.state == "queued", column.run_at <= now)
    orphaned = and_(column.state == "running", column.lease_until <= now)
    due = select(column.number).where(or_(queued, orphaned)).limit(1)
    return connection.execute(due).first() is not None


def traceparent(connection: Connection, audit_id: str) -> str | None:
    """The trace context in which an audit was ordered; None where nobody traced."""
    wanted = select(job_table.c.traceparent).where(job_table.c.audit_id == audit_id)
    return connection.execute(wanted).scalar_one_or_none()


def state(connection: Connection, audit_id: str) -> str:
    """Where an audit's job stands."""
    return str(
        connection.execute(select(job_table.c.state).where(job_table.c.audit_id == audit_id)).scalar_one()
    )


def claim(connection: Connection, worker: str, terms: Terms) -> Job | None:
    """Take the job that has been due longest of a tenant that may run more; a poison one is quarantined.

    None when there is none, or when another worker was in the way: ask again after a moment.
    """
    now = time_now(connection)
    row = connection.execute(_due(now)).one_or_none()
    if row is None:
        return None
    job = _job(row)
    if job.state == "queued" and _running(connection, job.tenant_id) >= row.most_running:
        return None  # another worker took one of this tenant's since our snapshot
    claimed = queue.claim(job, worker, now, terms)
    _save(connection, job, claimed)
    if claimed.state == "running":
        tell(connection, job.audit_id, "running", {"lost_leases": claimed.lost_leases}, now)
        return claimed
    _tell_end(connection, claimed, now)
    return None


def _due(now: int) -> Any:
    column = job_table.c
    other = job_table.alias()
    running = (
        select(func.count())
        .where(other.c.tenant_id == column.tenant_id, other.c.state == "running")
        .scalar_subquery()
    )
    queued = and_(column.state == "queued", column.run_at <= now, running < tenant_table.c.most_running)
    orphaned = and_(column.state == "running", column.lease_until <= now)
    return (
        select(*_COLUMNS, tenant_table.c.most_running)
        .join(tenant_table, tenant_table.c.id == column.tenant_id)
        .where(or_(queued, orphaned))
        .order_by(column.run_at, column.number)
        .limit(1)
        # The tenant's row too: who counts its running jobs must be alone in doing so. `key_share` lets
        # others refer to the tenant meanwhile.
        .with_for_update(skip_locked=True, key_share=True, of=[job_table, tenant_table])
    )


def _running(connection: Connection, tenant_id: str) -> int:
    column = job_table.c
    counted = select(func.count()).where(column.tenant_id == tenant_id, column.state == "running")
    return int(connection.execute(counted).scalar_one())


def held(connection: Connection, job: Job) -> Job:
    """The job's row, locked for the rest of the transaction.

    Raises:
        LeaseLostError: `job.token` is not the newest.
    """
    found = locked(connection, job.audit_id)
    if found is None or found.state != "running" or found.token != job.token:
        raise LeaseLostError("another worker holds it, or it was cancelled", where=job.audit_id)
    return found


def locked(connection: Connection, audit_id: str) -> Job | None:
    """The job of an audit, locked for the rest of the transaction."""
    wanted = select(*_COLUMNS).where(job_table.c.audit_id == audit_id).with_for_update()
    row = connection.execute(wanted).one_or_none()
    return None if row is None else _job(row)


def renew(connection: Connection, job: Job, terms: Terms) -> None:
    """Count the lease from now.

    Raises:
        LeaseLostError: another worker holds the job, or it was cancelled.
    """
    found = held(connection, job)
    _save(connection, found, queue.renew(found, job.token, time_now(connection), terms))


def save_checkpoint(
    connection: Connection, job: Job, step: int, output: bytes, progress: dict[str, Any], terms: Terms
) -> None:
    """Keep what a step made, tell how far the audit is, and renew the lease, all or nothing.

    Raises:
        LeaseLostError: another worker holds the job, or it was cancelled.
    """
    found = held(connection, job)
    now = time_now(connection)
    _save(connection, found, queue.renew(found, job.token, now, terms))
    values = {"audit_id": job.audit_id, "step": step, "token": job.token, "output": output}
    connection.execute(insert(checkpoint_table).values(values))
    tell(connection, job.audit_id, "progress", progress, now)


def checkpoints(connection: Connection, audit_id: str) -> list[bytes]:
    """What the steps so far made, in order."""
    column = checkpoint_table.c
    wanted = select(column.output).where(column.audit_id == audit_id).order_by(column.step)
    return [bytes(output) for output in connection.execute(wanted).scalars()]


def finish(connection: Connection, job: Job) -> int:
    """End a job; what it found is written in the same transaction. Returns the time.

    Raises:
        LeaseLostError: another worker holds the job, or it was cancelled.
    """
    found = held(connection, job)
    now = time_now(connection)
    ended = queue.finish(found, job.token, now)
    _save(connection, found, ended)
    _tell_end(connection, ended, now)
    return now


def fail(
    connection: Connection, job: Job, terms: Terms, *, code: str, error: str, chance: float, final: bool
) -> Job:
    """Queue a job again after an error, or bury it; see `queue.fail`.

    Raises:
        LeaseLostError: another worker holds the job, or it was cancelled.
    """
    found = held(connection, job)
    now = time_now(connection)
    after = queue.fail(found, job.token, now, terms, code=code, error=error, chance=chance, final=final)
    _save(connection, found, after)
    if after.state == "queued":
        tell(connection, job.audit_id, "retry", {"code": code, "attempts": after.attempts}, now)
    else:
        _tell_end(connection, after, now)
    return after


def hand_back(connection: Connection, job: Job) -> None:
    """Let another worker have it at once.

    Raises:
        LeaseLostError: another worker holds the job, or it was cancelled.
    """
    found = held(connection, job)
    now = time_now(connection)
    _save(connection, found, queue.hand_back(found, job.token, now))
    tell(connection, job.audit_id, "queued", {}, now)


def cancel(connection: Connection, job: Job) -> Job:
    """Cancel a job whose row is locked.

    Raises:
        ConflictError: it has ended already.
    """
    now = time_now(connection)
    after = queue.cancel(job, now)
    if after != job:
        _save(connection, job, after)
        _tell_end(connection, after, now)
    return after


def tell(connection: Connection, audit_id: str, kind: str, data: dict[str, Any], now: int) -> None:
    """Add to what followers of an audit read. The job's row is locked, or nobody knows of it yet."""
    column = event_table.c
    last = select(func.coalesce(func.max(column.sequence), 0)).where(column.audit_id == audit_id)
    connection.execute(
        insert(event_table).values(
            audit_id=audit_id,
            sequence=last.scalar_subquery() + 1,
            kind=kind,
            data=json.dumps(data, sort_keys=True),
            created=now,
        )
    )


def _tell_end(connection: Connection, job: Job, now: int) -> None:
    data = {"code": job.error_code, "error": job.error} if job.error_code else {}
    tell(connection, job.audit_id, job.state, data, now)
    if job.state != "done":  # `audits.record` tells of a verdict
        told = {"audit": job.audit_id, "state": job.state, "code": job.error_code}
        webhooks.enqueue(connection, job.tenant_id, f"audit.{job.state}", told)


def _save(connection: Connection, before: Job, after: Job) -> None:
    column = job_table.c
    values = {name: value for name, value in asdict(after).items() if value != getattr(before, name)}
    same = (column.audit_id == before.audit_id, column.token == before.token, column.state == before.state)
    if connection.execute(update(job_table).where(*same).values(values)).rowcount != 1:
        raise LeaseLostError("the row changed under its lock", where=before.audit_id)


def _job(row: Row[Any]) -> Job:
    return replace(Job("", "", 0), **{field.name: getattr(row, field.name) for field in fields(Job)})
