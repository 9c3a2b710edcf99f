"""Slots as work: claimed, renewed, handed back and ended by the rules of `service/queue.py`, as audits are.

A slot is due when its time has come, no earlier period of its provider is under way (a standing is told in
order), and the audit that it waits for, if it waits for one, has ended. A worker writes about a slot only
under its fencing token, so one that was stopped past its lease writes nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, func, or_, select, tuple_, update

from auditor.service import queue
from auditor.service.clock import now as time_now
from auditor.service.errors import LeaseLostError, NotFoundError
from auditor.service.identifiers import new_id
from auditor.service.queue import UNFINISHED, Job, Terms
from auditor.store_engine import insert_if_absent
from auditor.store_schedules import slot as slot_table
from auditor.store_schedules import taken_log as taken_log_table
from auditor.store_schema import job as job_table

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

    from auditor.schedules.schedules import Schedule


def has_ordered(connection: Connection, audit_id: str) -> bool:
    """Whether an audit is of a slot's sample, and not ordered by a person."""
    wanted = select(slot_table.c.id).where(slot_table.c.audit_id == audit_id)
    return connection.execute(wanted).first() is not None


@dataclass(frozen=True, slots=True)
class Slot:
    """A firing and the period that it ends. Times are microseconds since 1970 (UTC).

    Attributes:
        missed: slots before it that nobody was there to fire.
        number: of the period in its provider's standing; None until the population is fixed.
        seed: of the sample, drawn when the population was fixed.
        budget_tokens: output tokens to audit at most.
        drawn: what the sample was drawn from and how; None until then.
        verdict: on the provider, after this period; None until it is judged.
        log_e, suspicion: of the standing (`standing.py`).
        findings: why, causes and what else the report's reader may ask; None until the period is judged.
    """

    id: str
    tenant_id: str
    schedule_id: str
    provider: str
    slot_at: int
    missed: int
    created: int
    state: str
    finished: int | None
    error_code: str | None
    error: str | None
    number: int | None
    seed: str | None
    budget_tokens: int | None
    audit_id: str | None
    drawn: dict[str, Any] | None
    period_start: int | None
    period_end: int | None
    verdict: str | None
    log_e: float | None
    suspicion: float | None
    findings: dict[str, Any] | None
    report_id: str | None


_COLUMNS = tuple(slot_table.c[field.name] for field in fields(Slot))
_JOB = {field.name: slot_table.c["id" if field.name == "audit_id" else field.name] for field in fields(Job)}


def create(connection: Connection, schedule: Schedule, slot_at: int, missed: int, now: int) -> str | None:
    """Make the slot; None where it exists already."""
    made = new_id("slt")
    job = asdict(Job(made, schedule.tenant_id, now))
    values = {"id": job.pop("audit_id"), "schedule_id": schedule.id, "provider": schedule.provider}
    values |= {"slot_at": slot_at, "missed": missed, "created": now, **job}
    return made if insert_if_absent(connection, slot_table, values) else None


def unfinished(connection: Connection, schedule_id: str) -> bool:
    """Whether a period of the schedule is under way."""
    column = slot_table.c
    wanted = select(column.id).where(column.schedule_id == schedule_id, column.state.in_(UNFINISHED))
    return connection.execute(wanted.limit(1)).first() is not None


def _ready(now: int) -> Any:
    column = slot_table.c
    other = slot_table.alias()
    earlier = select(other.c.id).where(
        other.c.tenant_id == column.tenant_id,
        other.c.provider == column.provider,
        other.c.state.in_(UNFINISHED),
        tuple_(other.c.slot_at, other.c.id) < tuple_(column.slot_at, column.id),
    )
    audited = select(job_table.c.audit_id).where(
        job_table.c.audit_id == column.audit_id, job_table.c.state.in_(UNFINISHED)
    )
    queued = and_(column.state == "queued", column.run_at <= now)
    orphaned = and_(column.state == "running", column.lease_until <= now)
    return and_(or_(queued, orphaned), ~earlier.exists(), ~audited.exists())


def is_due(connection: Connection) -> bool:
    """Whether `claim` would find something; needs no write lock."""
    wanted = select(slot_table.c.id).where(_ready(time_now(connection)))
    return connection.execute(wanted.limit(1)).first() is not None


def claim(connection: Connection, worker: str, terms: Terms) -> Job | None:
    """Take the slot that is due longest; None when there is none. The job's `audit_id` is the slot's.

    One whose workers died over it too often comes back quarantined: nobody holds it.
    """
    now = time_now(connection)
    column = slot_table.c
    due = select(*_JOB.values()).where(_ready(now)).order_by(column.run_at, column.slot_at, column.id)
    row = connection.execute(due.limit(1).with_for_update(skip_locked=True, of=[slot_table])).one_or_none()
    if row is None:
        return None
    job = Job(*row)
    claimed = queue.claim(job, worker, now, terms)
    _save(connection, job, claimed)
    if claimed.state != "running":
        release(connection, claimed)
    return claimed


def held(connection: Connection, job: Job) -> Slot:
    """The slot, its row locked for the rest of the transaction.

    Raises:
        LeaseLostError: `job.token` is not the newest.
    """
    _held(connection, job)
    return find(connection, job.tenant_id, job.audit_id)


def _held(connection: Connection, job: Job) -> Job:
    wanted = select(*_JOB.values()).where(slot_table.c.id == job.audit_id).with_for_update()
    row = connection.execute(wanted).one_or_none()
    found = None if row is None else Job(*row)
    if found is None or found.state != "running" or found.token != job.token:
        raise LeaseLostError("another worker holds it", where=job.audit_id)
    return found


def renew(connection: Connection, job: Job, terms: Terms) -> None:
    """Count the lease from now.

    Raises:
        LeaseLostError: another worker holds the slot.
    """
    found = _held(connection, job)
    _save(connection, found, queue.renew(found, job.token, time_now(connection), terms))


def write(connection: Connection, job: Job, **values: Any) -> None:
    """Note what a step found.

    Raises:
        LeaseLostError: another worker holds the slot.
    """
    _held(connection, job)
    plain = {n: json.dumps(v, sort_keys=True) if isinstance(v, dict) else v for n, v in values.items()}
    connection.execute(update(slot_table).where(slot_table.c.id == job.audit_id).values(plain))


def hand_back(connection: Connection, job: Job) -> None:
    """Let it wait for its audit, or another worker have it.

    Raises:
        LeaseLostError: another worker holds the slot.
    """
    found = _held(connection, job)
    _save(connection, found, queue.hand_back(found, job.token, time_now(connection)))


def finish(connection: Connection, job: Job) -> None:
    """End it.

    Raises:
        LeaseLostError: another worker holds the slot.
    """
    found = _held(connection, job)
    _save(connection, found, queue.finish(found, job.token, time_now(connection)))


def fail(
    connection: Connection, job: Job, terms: Terms, *, code: str, error: str, chance: float, final: bool
) -> Job:
    """Try again later, or give it up; see `queue.fail`.

    Raises:
        LeaseLostError: another worker holds the slot.
    """
    found = _held(connection, job)
    now = time_now(connection)
    after = queue.fail(found, job.token, now, terms, code=code, error=error, chance=chance, final=final)
    _save(connection, found, after)
    if after.state not in UNFINISHED:
        release(connection, after)
    return after


def release(connection: Connection, job: Job) -> None:
    """Leave the logs of a slot that was given up before its audit to the next period."""
    found = find(connection, job.tenant_id, job.audit_id)
    if found.audit_id is None:
        connection.execute(delete(taken_log_table).where(taken_log_table.c.slot_id == found.id))


def find(connection: Connection, tenant_id: str, slot_id: str) -> Slot:
    """One slot.

    Raises:
        NotFoundError: the tenant has no such slot.
    """
    column = slot_table.c
    wanted = select(*_COLUMNS).where(column.tenant_id == tenant_id, column.id == slot_id)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFoundError("no such period")
    return _slot(row)


def listed(
    connection: Connection, tenant_id: str, schedule_id: str, *, after: tuple[int, str] | None, limit: int
) -> list[Slot]:
    """A schedule's slots, newest first."""
    column = slot_table.c
    wanted = select(*_COLUMNS).where(column.tenant_id == tenant_id, column.schedule_id == schedule_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) < after)
    rows = connection.execute(wanted.order_by(column.created.desc(), column.id.desc()).limit(limit))
    return [_slot(row) for row in rows]


def numbered(connection: Connection, tenant_id: str, provider: str) -> list[Slot]:
    """A provider's periods in order of their numbers, whatever schedule they are of."""
    column = slot_table.c
    same = (column.tenant_id == tenant_id, column.provider == provider, column.number.is_not(None))
    return [_slot(row) for row in connection.execute(select(*_COLUMNS).where(*same).order_by(column.number))]


def next_number(connection: Connection, tenant_id: str, provider: str) -> int:
    """The number of the provider's next period."""
    column = slot_table.c
    last = select(func.coalesce(func.max(column.number), 0))
    last = last.where(column.tenant_id == tenant_id, column.provider == provider)
    return int(connection.execute(last).scalar_one()) + 1


def _slot(row: Row[Any]) -> Slot:
    found = Slot(*list(row))
    read = {n: json.loads(v) for n in ("drawn", "findings") if (v := getattr(found, n)) is not None}
    return replace(found, **read)


def _save(connection: Connection, before: Job, after: Job) -> None:
    column = slot_table.c
    values = {name: value for name, value in asdict(after).items() if value != getattr(before, name)}
    same = (column.id == before.audit_id, column.token == before.token, column.state == before.state)
    if connection.execute(update(slot_table).where(*same).values(values)).rowcount != 1:
        raise LeaseLostError("the row changed under its lock", where=before.audit_id)
