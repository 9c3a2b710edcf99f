"""How a service fares: counts for its operator, and whether its database is the one this program needs."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from auditor.service.clock import SECOND
from auditor.service.clock import now as time_now
from auditor.store_migrations import read_revision
from auditor.store_schema import job as job_table
from auditor.store_schema import log_entry as log_entry_table
from auditor.store_schema import verdict as verdict_table

STATES = ("queued", "running", "done", "dead", "quarantined", "cancelled")
OUTCOMES = ("consistent", "inconsistent", "inconclusive")


@dataclass(frozen=True, slots=True)
class Standing:
    """Counts over all tenants.

    Attributes:
        oldest_due_seconds: how long the job that is due longest has waited.
        unplaced_entries: log entries that the transparency log does not hold yet.
    """

    jobs: dict[str, int]
    verdicts: dict[str, int]
    lost_leases: int
    failed_attempts: int
    oldest_due_seconds: float
    unplaced_entries: int


def standing(connection: Connection) -> Standing:
    """Count."""
    column = job_table.c
    by_state = connection.execute(select(column.state, func.count()).group_by(column.state))
    states = {row[0]: row[1] for row in by_state}
    outcome = verdict_table.c.outcome
    by_outcome = connection.execute(select(outcome, func.count()).group_by(outcome))
    outcomes = {row[0]: row[1] for row in by_outcome}
    sums = select(func.coalesce(func.sum(column.lost_leases), 0), func.coalesce(func.sum(column.attempts), 0))
    lost, failed = connection.execute(sums).one()
    oldest = connection.execute(select(func.min(column.run_at)).where(column.state == "queued")).scalar()
    waited = 0.0 if oldest is None else max(0.0, (time_now(connection) - oldest) / SECOND)
    unplaced = select(func.count()).where(log_entry_table.c.position.is_(None))
    return Standing(
        {state: states.get(state, 0) for state in STATES},
        {outcome: outcomes.get(outcome, 0) for outcome in OUTCOMES},
        int(lost),
        int(failed),
        waited,
        int(connection.execute(unplaced).scalar_one()),
    )


def at_newest_revision(connection: Connection) -> bool:
    """Whether the schema is the one of this program."""
    return read_revision(connection).is_newest
