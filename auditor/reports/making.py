"""Reports in the database: make one, make it again, list them. The rim; `building.py` is the pure part.

A report is made in two transactions: one that only reads and may be long, and a short one that writes the
report and the log entry that tells of it together. Everything read is as of the end of the period, so it does
not matter what was committed in between.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, or_, select, tuple_

from auditor.reports.building import Report, build_report
from auditor.reports.canonical import digest
from auditor.reports.commitments import SALT_BYTES
from auditor.reports.errors import ReportDiffersError
from auditor.reports.policy import Policy, parse_policy
from auditor.reports.rows import DONE, UNFINISHED, AuditRow, Sample, Scope, TraceTally, tally
from auditor.reports.standings import background
from auditor.reports.statements import statements
from auditor.service.audits import log_fact
from auditor.service.clock import now as time_now
from auditor.service.clock import to_text
from auditor.service.errors import NotFoundError, RequestInvalidError
from auditor.store_engine import insert_if_absent
from auditor.store_schema import audit as audit_table
from auditor.store_schema import evidence as evidence_table
from auditor.store_schema import job as job_table
from auditor.store_schema import log_entry as entry_table
from auditor.store_schema import report as report_table
from auditor.store_schema import sample as sample_table
from auditor.store_schema import tenant_salt as salt_table
from auditor.store_schema import trace_log as log_table
from auditor.store_schema import verdict as verdict_table

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Select

    from auditor.store import Store

_BATCH = 1000
_ENDED = ("dead", "quarantined", "cancelled")


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report's row. Times are microseconds since 1970 (UTC); `provider` is empty for all providers."""

    id: str
    tenant_id: str
    provider: str
    start: int
    end: int
    created: int
    digest: str


def report_id(tenant_id: str, provider: str, start: int, end: int, policy: Policy) -> str:
    """The same for the same tenant, provider, period and policy."""
    said = json.dumps([tenant_id, provider, start, end, policy.digest]).encode()
    return f"rep_{hashlib.sha256(said).hexdigest()[:32]}"


def make_report(store: Store, tenant_id: str, provider: str, start: int, end: int, policy: Policy) -> bytes:
    """The bytes of `report.json`; made, stored and logged the first time, read back after that.

    Args:
        provider: one, or empty for all of the tenant's.
        start, end: the period, [start, end) in microseconds since 1970; it must be over.

    Raises:
        RequestInvalidError: no period, or one that is not over.
        StoreError: the database refused.
    """
    name = report_id(tenant_id, provider, start, end, policy)
    with store.transaction(writes=True) as connection:
        _check_period(start, end, time_now(connection))
        stored = _find(connection, tenant_id, name)
        if stored is not None:
            return bytes(stored.body)
        salt = _salt(connection, tenant_id)
        previous = _previous(connection, tenant_id, provider, start)
        _let_writers_finish(connection)
    scope = Scope(name, tenant_id, provider, start, end)
    report = _build(store, scope, policy, salt, previous)
    return _keep(store, scope, policy, report, None if previous is None else previous.id)


def remake_report(store: Store, tenant_id: str, name: str) -> bytes:
    """Make a stored report again from the rows, and hold it against what was stored.

    Raises:
        NotFoundError: the tenant has no such report.
        ReportDiffersError: other bytes came out.
    """
    with store.transaction(writes=True) as connection:
        stored = _find(connection, tenant_id, name)
        if stored is None:
            raise NotFoundError("no such report")
        salt = _salt(connection, tenant_id)
        previous = None if stored.previous_id is None else _find(connection, tenant_id, stored.previous_id)
    scope = Scope(name, tenant_id, stored.provider, stored.period_start, stored.period_end)
    report = _build(store, scope, parse_policy(bytes(stored.policy)), salt, previous)
    if report.body != bytes(stored.body):
        raise ReportDiffersError(
            f"made again it is {report.digest}, stored was {stored.digest}",
            where=name,
            fix="was the database altered, or the program upgraded?",
        )
    return report.body


def _check_period(start: int, end: int, now: int) -> None:
    if not 0 <= start < end:
        raise RequestInvalidError("a period begins before it ends", where="period")
    if end > now:
        raise RequestInvalidError("the period is not over", where="period")


def _let_writers_finish(connection: Connection) -> None:
    # A transaction that took its time before the end of the period may still be open on PostgreSQL.
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            "LOCK TABLE job, audit, verdict, slot, dispute, dispute_event IN SHARE MODE"
        )


def _salt(connection: Connection, tenant_id: str) -> bytes:
    fresh = {"tenant_id": tenant_id, "salt": secrets.token_bytes(SALT_BYTES)}
    insert_if_absent(connection, salt_table, fresh)
    wanted = select(salt_table.c.salt).where(salt_table.c.tenant_id == tenant_id)
    return bytes(connection.execute(wanted).scalar_one())


def _find(connection: Connection, tenant_id: str, name: str) -> Row[Any] | None:
    column = report_table.c
    return connection.execute(
        select(report_table).where(column.tenant_id == tenant_id, column.id == name)
    ).one_or_none()


def _previous(connection: Connection, tenant_id: str, provider: str, start: int) -> Row[Any] | None:
    column = report_table.c
    same = (column.tenant_id == tenant_id, column.provider == provider, column.period_end <= start)
    ranked = select(report_table).where(*same).order_by(column.period_end.desc(), column.created.desc())
    return connection.execute(ranked.limit(1)).one_or_none()


def _build(store: Store, scope: Scope, policy: Policy, salt: bytes, previous: Row[Any] | None) -> Report:
    before = None if previous is None else (str(previous.digest), json.loads(bytes(previous.body)))
    with store.transaction() as connection:
        audits = [_audit_row(row, scope.end) for row in connection.execute(_audits(scope))]
        behind = background(connection, scope, [audit.id for audit in audits])
        tallied = ((audit, _tally(connection, audit)) for audit in audits)
        return build_report(scope, tallied, policy, salt=salt, previous=before, background=behind)


def _audits(scope: Scope) -> Select[Any]:
    audit, job, verdict = audit_table.c, job_table.c, verdict_table.c
    judged = and_(verdict.created >= scope.start, verdict.created < scope.end)
    open_at_end = or_(verdict.created.is_(None), verdict.created >= scope.end)
    submitted = and_(audit.created >= scope.start, audit.created < scope.end, open_at_end)
    ended = and_(job.finished >= scope.start, job.finished < scope.end, job.state.in_(_ENDED))
    wanted = (
        select(audit.id, audit.provider, audit.created, audit.options, log_table.c.digest)
        .add_columns(job.state, job.error_code, job.finished)
        .add_columns(verdict.created.label("judged"), verdict.digest.label("verdict_digest"), verdict.body)
        .add_columns(sample_table.c.population_requests, sample_table.c.sampled_requests)
        .add_columns(sample_table.c.method, sample_table.c.seed)
        .join(log_table, log_table.c.id == audit.trace_log_id)
        .join(job_table, job.audit_id == audit.id)
        .outerjoin(verdict_table, verdict.audit_id == audit.id)
        .outerjoin(sample_table, sample_table.c.audit_id == audit.id)
        .where(audit.tenant_id == scope.tenant_id, or_(judged, submitted, ended))
    )
    return wanted.where(audit.provider == scope.provider) if scope.provider else wanted


def _audit_row(row: Row[Any], end: int) -> AuditRow:
    judged = row.judged is not None and row.judged < end
    state = DONE if judged else UNFINISHED
    if not judged and row.state in _ENDED and row.finished is not None and row.finished < end:
        state = row.state
    drawn = None
    if row.method is not None:
        drawn = Sample(row.population_requests, row.sampled_requests, row.method, row.seed)
    return AuditRow(
        row.id,
        row.provider,
        row.created,
        json.loads(row.options),
        row.digest,
        state,
        error_code=row.error_code if state in _ENDED else None,
        judged=row.judged if judged else None,
        verdict_digest=row.verdict_digest if judged else None,
        verdict=json.loads(bytes(row.body)) if judged else None,
        sample=drawn,
    )


def _tally(connection: Connection, audit: AuditRow) -> TraceTally:
    if audit.state != DONE:
        return TraceTally()
    column = evidence_table.c
    wanted = select(column.number, column.body).where(column.audit_id == audit.id).order_by(column.number)
    found = connection.execution_options(yield_per=_BATCH).execute(wanted)
    return tally((row.number, json.loads(bytes(row.body))) for row in found)


def _keep(store: Store, scope: Scope, policy: Policy, report: Report, previous_id: str | None) -> bytes:
    body = report.body
    with store.transaction(writes=True) as connection:
        created = time_now(connection)
        values = {
            "id": scope.report_id,
            "tenant_id": scope.tenant_id,
            "provider": scope.provider,
            "period_start": scope.start,
            "period_end": scope.end,
            "policy": policy.toml,
            "previous_id": previous_id,
            "created": created,
            "digest": digest(body),
            "body": body,
        }
        if not insert_if_absent(connection, report_table, values):
            stored = _find(connection, scope.tenant_id, scope.report_id)  # another worker was quicker
            return body if stored is None else bytes(stored.body)
        signed = {f"{kind}_statement": digest(s) for kind, s in statements(body, to_text(created)).items()}
        fact = {"report": scope.report_id, "digest": digest(body), **signed}
        log_fact(connection, scope.report_id, scope.tenant_id, "report", fact)
    return body


def find_report(connection: Connection, tenant_id: str, name: str) -> tuple[StoredReport, bytes, bytes]:
    """A report's row, its bytes and its policy file.

    Raises:
        NotFoundError: the tenant has no such report.
    """
    row = _find(connection, tenant_id, name)
    if row is None:
        raise NotFoundError("no such report")
    return _stored(row), bytes(row.body), bytes(row.policy)


def listed_reports(
    connection: Connection,
    tenant_id: str,
    *,
    after: tuple[int, str] | None = None,
    limit: int = 50,
    provider: str | None = None,
) -> list[StoredReport]:
    """A tenant's reports, newest first, after the (created, id) of another."""
    column = report_table.c
    names = ("id", "tenant_id", "provider", "period_start", "period_end", "created", "digest")
    wanted = select(*(column[name] for name in names)).where(column.tenant_id == tenant_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) < after)
    if provider is not None:
        wanted = wanted.where(column.provider == provider)
    rows = connection.execute(wanted.order_by(column.created.desc(), column.id.desc()).limit(limit))
    return [_stored(row) for row in rows]


def report_entry(connection: Connection, tenant_id: str, name: str) -> tuple[int | None, bytes]:
    """The place in the log, once it has one, and the bytes of a report's entry.

    Raises:
        NotFoundError: the tenant has no such report.
    """
    find_report(connection, tenant_id, name)
    column = entry_table.c
    wanted = select(column.position, column.body).where(column.subject == name, column.kind == "report")
    row = connection.execute(wanted).one()
    return row.position, bytes(row.body)


def _stored(row: Row[Any]) -> StoredReport:
    return StoredReport(
        row.id, row.tenant_id, row.provider, row.period_start, row.period_end, row.created, row.digest
    )
