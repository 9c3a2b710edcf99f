"""Rows of new audits: audit, job, first event and log entry, any number of audits in the same few statements.

They are committed together or not at all; whoever calls this is in a transaction, and has decided that the
audits may be ordered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import insert

from auditor.service import jobs
from auditor.store_schema import audit as audit_table
from auditor.store_schema import log_entry as log_entry_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.service.audits import AuditOptions, TraceLog

ENTRY_SCHEMA = "auditor.entry/v1"


@dataclass(frozen=True, slots=True)
class NewAudit:
    """An audit to be ordered.

    Attributes:
        provider_id: whom the name `provider` stands for, if it is registered.
        traceparent: the trace context of its request; other requests' orders may be written with it.
    """

    id: str
    log: TraceLog
    options: AuditOptions
    provider: str
    provider_id: str | None
    traceparent: str | None = None


def write(connection: Connection, made: Sequence[NewAudit], now: int) -> None:
    """Insert what belongs to these audits; `now` is when they were ordered.

    None of the statements returns anything (`inline`), so that they may be sent together.
    """
    rows = [
        {
            "id": audit.id,
            "tenant_id": audit.log.tenant_id,
            "trace_log_id": audit.log.id,
            "created": now,
            "options": audit.options.text(),
            "provider": audit.provider,
            "provider_id": audit.provider_id,
        }
        for audit in made
    ]
    connection.execute(insert(audit_table), rows)
    jobs.enqueue(connection, [(audit.id, audit.log.tenant_id, audit.traceparent) for audit in made], now)
    entries = [
        {
            "subject": audit.id,
            "kind": "submission",
            "body": entry_body(audit.log.tenant_id, "submission", fact),
        }
        for audit, fact in ((audit, _fact(audit)) for audit in made)
    ]
    connection.execute(insert(log_entry_table).inline(), entries)


def entry_body(tenant_id: str, kind: str, fact: dict[str, str]) -> bytes:
    """What the transparency log is told: digests and ids only, for the log is public."""
    entry = {"schema": ENTRY_SCHEMA, "kind": kind, "tenant": tenant_id, **fact}
    return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()


def _fact(audit: NewAudit) -> dict[str, str]:
    options = f"sha256:{hashlib.sha256(audit.options.text().encode()).hexdigest()}"
    return {"audit": audit.id, "log": audit.log.digest, "options": options}
