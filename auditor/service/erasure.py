"""Erasure and retention: a log's bytes go, its digest and what the transparency log says of it stay.

The transparency log and the verdicts hold digests, never prompts, so both stay verifiable when the bytes
are gone; an audit that still needs them ends as `evidence-erased`, which is no verdict.

1. The log is marked as erased, its audits' exhibits lose their excerpts, and that is committed: from here on
   nobody gets the bytes.
2. What was opened of hidden tokens of its responses goes (`opened_traces.forget`).
3. Under a lock on the digest, and only if no other log (of any tenant) has the same bytes, they are removed.
   Whoever hands the same bytes in looks under the same lock whether they are there (`keep`), so an
   acknowledged log never loses them.
4. What a crash left between these is made good by the next `sweep`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, cast, func, select, update
from sqlalchemy.sql import text

from auditor.errors import TraceFileError
from auditor.service import audits, exhibits, opened_traces, small_logs
from auditor.service.clock import SECOND
from auditor.service.clock import now as time_now
from auditor.service.queue import UNFINISHED
from auditor.service.small_logs import SmallLogs
from auditor.store_schema import audit as audit_table
from auditor.store_schema import job as job_table
from auditor.store_schema import tenant as tenant_table
from auditor.store_schema import trace_log as log_table
from auditor.trace_files import read_traces

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy import Connection

    from auditor.service.audits import TraceLog
    from auditor.service.blobs import Blobs
    from auditor.store import Store

_DAY = 86_400 * SECOND
_LOCKS = text("SELECT pg_advisory_xact_lock(key) FROM unnest(CAST(:keys AS BIGINT[])) AS key")


def erase(store: Store, blobs: Blobs, tenant_id: str, log_id: str) -> TraceLog:
    """Erase a log's bytes; again is the same as once.

    Raises:
        NotFoundError: the tenant has no such log.
        StoreError: the database or the storage refused; the log is marked, and `sweep` tries again.
    """
    with store.transaction(writes=True) as connection:
        log = audits.find_log(connection, tenant_id, log_id)
        same = (log_table.c.id == log_id, log_table.c.erased.is_(None))
        connection.execute(update(log_table).where(*same).values(erased=time_now(connection)))
        exhibits.forget_texts(connection, log_id)
        log = audits.find_log(connection, tenant_id, log_id)
    _forget_opened(store, blobs, tenant_id, log.digest)
    _remove(store, blobs, log.digest)
    return log


def _forget_opened(store: Store, blobs: Blobs, tenant_id: str, digest: str) -> None:
    """While the bytes are there to say which responses they are of."""
    if not blobs.holds(digest):
        return
    try:
        opened_traces.forget(store, tenant_id, read_traces(blobs.path(digest), label=digest))
    except TraceFileError:
        pass  # no log, so of no response
    finally:
        blobs.release(digest)


def keep(connection: Connection, digest: str, blobs: Blobs, put: Callable[[], object]) -> None:
    """In the transaction that names a blob: make sure that an erasure has not removed it meanwhile."""
    keep_all(connection, {digest: put}, blobs)


def keep_all(
    connection: Connection,
    puts: Mapping[str, Callable[[], object]],
    blobs: Blobs,
    small: Mapping[str, bytes] | None = None,
) -> None:
    """Several at once: digest -> how to keep those bytes again; `small` is kept in this transaction."""
    _lock(connection, {*puts, *(small or ())})
    small_logs.keep(connection, small or {})
    for digest, put in puts.items():
        if not blobs.holds(digest):
            put()


def sweep(store: Store, blobs: Blobs) -> int:
    """Erase what outlived its tenant's retention, and finish erasures; returns how many logs were erased.

    A log with an audit that is not finished waits until it is.

    Raises:
        StoreError: the database or the storage refused.
    """
    column = log_table.c
    with store.transaction() as connection:
        now = time_now(connection)
        unfinished = (
            select(audit_table.c.trace_log_id)
            .join(job_table, job_table.c.audit_id == audit_table.c.id)
            .where(job_table.c.state.in_(UNFINISHED))
        )
        old = (
            select(column.tenant_id, column.id)
            .join(tenant_table, tenant_table.c.id == column.tenant_id)
            .where(
                column.erased.is_(None),
                tenant_table.c.retention_days.is_not(None),
                column.created + cast(tenant_table.c.retention_days, BigInteger) * _DAY <= now,
                column.id.not_in(unfinished),
            )
        )
        expired = connection.execute(old).all()
        marked = select(column.tenant_id, column.digest).where(column.erased.is_not(None)).distinct()
        erased = [(row.tenant_id, row.digest) for row in connection.execute(marked)]
        small = small_logs.digests_without_logs(connection)
    for tenant_id, log_id in expired:
        erase(store, blobs, tenant_id, log_id)
    larger = blobs.rest if isinstance(blobs, SmallLogs) else blobs  # who is not asked for each small one
    for tenant_id, digest in erased:
        if digest in small or larger.holds(digest):
            _forget_opened(store, blobs, tenant_id, digest)
            _remove(store, blobs, digest)
    return len(expired)


def _remove(store: Store, blobs: Blobs, digest: str) -> None:
    column = log_table.c
    with store.transaction(writes=True) as connection:
        _lock(connection, [digest])
        live = select(func.count()).where(column.digest == digest, column.erased.is_(None))
        if connection.execute(live).scalar_one() == 0:
            small_logs.remove(connection, digest)
            blobs.remove(digest)


def _lock(connection: Connection, digests: Collection[str]) -> None:
    # SQLite's writing transactions exclude each other anyway.
    if connection.dialect.name == "postgresql":
        # In one order, whoever asks: nobody waits in a circle.
        keys = sorted(int(digest.removeprefix("sha256:")[:15], 16) for digest in digests)
        connection.execute(_LOCKS, {"keys": keys})
