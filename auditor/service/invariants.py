"""What holds in a service's database at any moment, whatever was killed when: a list, and a check of each.

`audit doctor --database` prints and checks them, a restore checks them before it commits, tests after kills.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.service.blobs import Blobs


@dataclass(frozen=True, slots=True)
class Invariant:
    """A sentence that is true, and a query for ids of what would make it false."""

    name: str
    sentence: str
    counterexamples: str


INVARIANTS = (
    Invariant(
        "one-job",
        "every audit has exactly one job, of the same tenant",
        "SELECT a.id FROM audit a LEFT JOIN job j ON j.audit_id = a.id AND j.tenant_id = a.tenant_id"
        " GROUP BY a.id HAVING count(j.number) <> 1",
    ),
    Invariant(
        "own-log",
        "an audit is of a log of its own tenant",
        "SELECT a.id FROM audit a JOIN trace_log t ON t.id = a.trace_log_id WHERE t.tenant_id <> a.tenant_id",
    ),
    Invariant(
        "done-iff-verdict",
        "a job is done if and only if its audit has a verdict",
        "SELECT j.audit_id FROM job j LEFT JOIN verdict v ON v.audit_id = j.audit_id"
        " WHERE (j.state = 'done') <> (v.audit_id IS NOT NULL)",
    ),
    Invariant(
        "evidence-has-verdict",
        "evidence belongs to a verdict",
        "SELECT e.audit_id FROM evidence e LEFT JOIN verdict v ON v.audit_id = e.audit_id"
        " WHERE v.audit_id IS NULL",
    ),
    Invariant(
        "known-state",
        "a job is queued, running, done, dead, quarantined or cancelled",
        "SELECT audit_id FROM job"
        " WHERE state NOT IN ('queued', 'running', 'done', 'dead', 'quarantined', 'cancelled')",
    ),
    Invariant(
        "lease-iff-running",
        "a job has a lease and a worker if and only if it is running",
        "SELECT audit_id FROM job WHERE (state = 'running') <> (lease_until IS NOT NULL)"
        " OR (state = 'running') <> (worker IS NOT NULL)",
    ),
    Invariant(
        "end-has-time",
        "a job has an end if and only if it has ended",
        "SELECT audit_id FROM job WHERE (state NOT IN ('queued', 'running')) <> (finished IS NOT NULL)",
    ),
    Invariant(
        "fenced",
        "no step was committed under a token that its job never gave",
        "SELECT c.audit_id FROM checkpoint c JOIN job j ON j.audit_id = c.audit_id"
        " WHERE c.token > j.token OR c.token < 1",
    ),
    Invariant(
        "steps-in-order",
        "steps of a job are numbered from 0 without a gap",
        "SELECT audit_id FROM checkpoint GROUP BY audit_id"
        " HAVING max(step) <> count(*) - 1 OR min(step) <> 0",
    ),
    Invariant(
        "events-in-order",
        "progress events of an audit are numbered from 1 without a gap",
        "SELECT audit_id FROM event GROUP BY audit_id HAVING max(sequence) <> count(*) OR min(sequence) <> 1",
    ),
    Invariant(
        "submission-logged",
        "every audit has an entry for the transparency log, written with it",
        "SELECT a.id FROM audit a LEFT JOIN log_entry l ON l.subject = a.id AND l.kind = 'submission'"
        " WHERE l.number IS NULL",
    ),
    Invariant(
        "verdict-logged",
        "every verdict has an entry for the transparency log, and no entry is without its verdict",
        "SELECT v.audit_id FROM verdict v LEFT JOIN log_entry l"
        " ON l.subject = v.audit_id AND l.kind = 'verdict' WHERE l.number IS NULL"
        " UNION SELECT l.subject FROM log_entry l LEFT JOIN verdict v ON v.audit_id = l.subject"
        " WHERE l.kind = 'verdict' AND v.audit_id IS NULL",
    ),
    Invariant(
        "places-in-order",
        "places in the log are 0, 1, 2, ... without a gap",
        "SELECT max(position) FROM log_entry WHERE position IS NOT NULL"
        " HAVING max(position) <> count(*) - 1 OR min(position) <> 0",
    ),
    Invariant(
        "no-stray-logs",
        "bytes of a small log lie in the database only while a log has them",
        "SELECT s.digest FROM small_log s LEFT JOIN trace_log t ON t.digest = s.digest WHERE t.id IS NULL",
    ),
    Invariant(
        "one-order-a-key",
        "the audit that an Idempotency-Key ordered is there, and its tenant's own",
        "SELECT i.resource_id FROM idempotency_key i"
        " LEFT JOIN audit a ON a.id = i.resource_id AND a.tenant_id = i.tenant_id"
        " WHERE i.resource_id LIKE 'aud_%' AND a.id IS NULL",
    ),
)
BYTES_KEPT = Invariant("bytes-kept", "every log that was not erased has its bytes", "")


@dataclass(frozen=True, slots=True)
class Finding:
    """An invariant, and what breaks it: at most five ids, none when it holds."""

    invariant: Invariant
    broken_by: tuple[str, ...]


def check_all(connection: Connection, blobs: Blobs | None = None) -> list[Finding]:
    """Check every invariant in one transaction; that of the bytes only where the blobs are at hand."""
    found = [
        Finding(
            item, tuple(str(row[0]) for row in connection.execute(text(item.counterexamples)).fetchmany(5))
        )
        for item in INVARIANTS
    ]
    if blobs is not None:
        rows = connection.exec_driver_sql(
            "SELECT id, digest FROM trace_log"
            " WHERE erased IS NULL AND digest NOT IN (SELECT digest FROM small_log)"
        )
        missing = [row[0] for row in rows if not blobs.holds(row[1])]
        found.append(Finding(BYTES_KEPT, tuple(missing[:5])))
    return found
