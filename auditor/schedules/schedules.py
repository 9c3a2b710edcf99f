"""Schedules in the database: add, look, pause, resume, remove, and fire those that are due.

A schedule that was not looked at for a while fires once, late, for the newest slot that passed; the others
are counted as missed. Nothing is lost by that: a period holds all that came in since the one before. The key
(schedule, slot) makes a slot that two workers fire one slot. While a schedule is paused no slot falls due.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, tuple_, update

from auditor.schedules import slots
from auditor.schedules.policy import Policy
from auditor.schedules.timetable import Timetable
from auditor.service.clock import now as time_now
from auditor.service.errors import ConflictError, NotFoundError
from auditor.service.identifiers import new_id
from auditor.store_engine import insert_if_absent
from auditor.store_schedules import policy as policy_table
from auditor.store_schedules import schedule as schedule_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

ACTIVE, PAUSED, REMOVED = "active", "paused", "removed"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule. Times are microseconds since 1970 (UTC).

    Attributes:
        state: `active`, `paused` or `removed`.
        next_at: its next slot, None unless active.
    """

    id: str
    tenant_id: str
    provider: str
    cron: str
    zone: str
    policy_digest: str
    state: str
    created: int
    next_at: int | None

    @property
    def timetable(self) -> Timetable:
        """When it fires."""
        return Timetable(self.cron, self.zone)


_COLUMNS = tuple(schedule_table.c[field.name] for field in fields(Schedule))


def add(
    connection: Connection, tenant_id: str, provider: str, timetable: Timetable, policy: Policy
) -> Schedule:
    """A new schedule, active from now on."""
    now = time_now(connection)
    stored: dict[str, Any] = {"tenant_id": tenant_id, "digest": policy.digest, "name": policy.name}
    stored |= {"version": policy.version, "body": policy.text(), "created": now}
    insert_if_absent(connection, policy_table, stored)
    made = Schedule(
        new_id("sch"),
        tenant_id,
        provider,
        timetable.cron,
        timetable.zone,
        policy.digest,
        ACTIVE,
        now,
        timetable.next_after(now),
    )
    connection.execute(insert(schedule_table).values({f.name: getattr(made, f.name) for f in fields(made)}))
    return made


def find(connection: Connection, tenant_id: str, schedule_id: str) -> Schedule:
    """One schedule.

    Raises:
        NotFoundError: the tenant has no such schedule.
    """
    return _found(connection, tenant_id, schedule_id, lock=False)


def listed(
    connection: Connection, tenant_id: str, *, after: tuple[int, str] | None, limit: int
) -> list[Schedule]:
    """A tenant's schedules in order of making, without those that were removed."""
    column = schedule_table.c
    wanted = select(*_COLUMNS).where(column.tenant_id == tenant_id, column.state != REMOVED)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) > after)
    rows = connection.execute(wanted.order_by(column.created, column.id).limit(limit))
    return [Schedule(*row) for row in rows]


def find_policy(connection: Connection, tenant_id: str, digest: str) -> Policy:
    """The policy that was stored under this digest.

    Raises:
        NotFoundError: the tenant has no such policy.
    """
    column = policy_table.c
    wanted = select(column.body).where(column.tenant_id == tenant_id, column.digest == digest)
    body = connection.execute(wanted).scalar_one_or_none()
    if body is None:
        raise NotFoundError("no such policy")
    return Policy.of_text(body)


def pause(connection: Connection, tenant_id: str, schedule_id: str) -> Schedule:
    """Fire no more; again is the same as once. A period under way is finished.

    Raises:
        NotFoundError: the tenant has no such schedule.
        ConflictError: it was removed.
    """
    return _moved(connection, tenant_id, schedule_id, PAUSED)


def resume(connection: Connection, tenant_id: str, schedule_id: str) -> Schedule:
    """Fire again, from the next slot on; what came in meanwhile is part of that period.

    Raises:
        NotFoundError: the tenant has no such schedule.
        ConflictError: it was removed.
    """
    return _moved(connection, tenant_id, schedule_id, ACTIVE)


def remove(connection: Connection, tenant_id: str, schedule_id: str) -> Schedule:
    """End it; its periods and the provider's standing stay.

    Raises:
        NotFoundError: the tenant has no such schedule.
    """
    return _moved(connection, tenant_id, schedule_id, REMOVED)


def _moved(connection: Connection, tenant_id: str, schedule_id: str, state: str) -> Schedule:
    found = _found(connection, tenant_id, schedule_id, lock=True)
    if found.state == state:
        return found
    if found.state == REMOVED:
        raise ConflictError("the schedule was removed", where=schedule_id)
    next_at = found.timetable.next_after(time_now(connection)) if state == ACTIVE else None
    connection.execute(
        update(schedule_table).where(schedule_table.c.id == found.id).values(state=state, next_at=next_at)
    )
    return find(connection, tenant_id, schedule_id)


def run_now(connection: Connection, tenant_id: str, schedule_id: str) -> str:
    """Fire a slot of this very moment beside the timetable; returns its id.

    Raises:
        NotFoundError: the tenant has no such schedule.
        ConflictError: it was removed, or the last period is still under way.
    """
    found = _found(connection, tenant_id, schedule_id, lock=True)
    if found.state == REMOVED:
        raise ConflictError("the schedule was removed", where=schedule_id)
    if slots.unfinished(connection, found.id):
        raise ConflictError("a period is under way", where=schedule_id, retry_after=30)
    now = time_now(connection)
    made = slots.create(connection, found, now, 0, now)
    if made is None:
        raise ConflictError("a slot of this very moment exists", where=schedule_id, retry_after=1)
    return made


def fire_due(connection: Connection) -> int:
    """Make the slot of one schedule that is due; returns 1, or 0 where none is due."""
    now = time_now(connection)
    column = schedule_table.c
    due = select(*_COLUMNS).where(column.state == ACTIVE, column.next_at <= now)
    row = connection.execute(due.order_by(column.next_at).limit(1).with_for_update(skip_locked=True)).first()
    if row is None:
        return 0
    found = Schedule(*row)
    passed = found.timetable.due(found.next_at or now, now)
    if passed is not None:
        slots.create(connection, found, passed[0], passed[1], now)
    following = found.timetable.next_after(now)
    connection.execute(update(schedule_table).where(column.id == found.id).values(next_at=following))
    return 1


def is_due(connection: Connection) -> bool:
    """Whether `fire_due` would find something; needs no write lock."""
    column = schedule_table.c
    due = select(column.id).where(column.state == ACTIVE, column.next_at <= time_now(connection))
    return connection.execute(due.limit(1)).first() is not None


def _found(connection: Connection, tenant_id: str, schedule_id: str, *, lock: bool) -> Schedule:
    column = schedule_table.c
    wanted = select(*_COLUMNS).where(column.tenant_id == tenant_id, column.id == schedule_id)
    row = connection.execute(wanted.with_for_update() if lock else wanted).one_or_none()
    if row is None:
        raise NotFoundError("no such schedule")
    return Schedule(*row)
