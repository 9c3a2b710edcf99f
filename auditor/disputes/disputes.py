"""Disputes in the database: whatever is said is committed with an entry for the transparency log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, tuple_, update

from auditor.disputes import rules
from auditor.disputes.rules import OUTCOMES, Kind, Outcome, Said, evidence_number
from auditor.service import audits, webhooks
from auditor.service.clock import now as time_now
from auditor.service.errors import ConflictError, NotFoundError, RequestInvalidError
from auditor.service.identifiers import new_id
from auditor.store_schedules import dispute as dispute_table
from auditor.store_schedules import dispute_event as event_table
from auditor.store_schema import audit as audit_table
from auditor.store_schema import evidence as evidence_table

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

ENTRY = "dispute"


@dataclass(frozen=True, slots=True)
class Statement:
    """A line of a dispute; `sequence` counts from 1."""

    sequence: int
    kind: str
    said: Said
    created: int


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute about an audit's verdict. `outcome` is None until it is resolved. Times in microseconds."""

    id: str
    tenant_id: str
    audit_id: str
    provider: str
    state: str
    outcome: str | None
    created: int
    changed: int
    statements: tuple[Statement, ...] = ()


def file(connection: Connection, tenant_id: str, audit_id: str, said: Said) -> Dispute:
    """Contest the verdict of an audit.

    Raises:
        NotFoundError: the tenant has no such audit, or evidence names a request that it has not.
        NotFinishedError: there is no verdict yet, or there will be none.
        ConflictError: a dispute about this audit is open.
    """
    audit = audits.find(connection, tenant_id, audit_id)
    audits.verdict(connection, tenant_id, audit_id)
    # Whoever looks whether one is open must be alone in doing so.
    connection.execute(select(audit_table.c.id).where(audit_table.c.id == audit_id).with_for_update())
    column = dispute_table.c
    is_open = select(column.id).where(column.audit_id == audit_id, column.state != "resolved")
    if connection.execute(is_open).first() is not None:
        raise ConflictError("a dispute about this audit is open", where=audit_id)
    now = time_now(connection)
    made = new_id("dsp")
    values = {"id": made, "tenant_id": tenant_id, "audit_id": audit_id, "provider": audit.provider}
    connection.execute(
        insert(dispute_table).values(**values, state="filed", outcome=None, created=now, changed=now)
    )
    return _say(connection, find(connection, tenant_id, made), "filed", said, None)


def answer(connection: Connection, tenant_id: str, dispute_id: str, said: Said) -> Dispute:
    """Answer a filing or an answer.

    Raises:
        NotFoundError: the tenant has no such dispute, or evidence names a request that its audit has not.
        ConflictError: it is resolved.
    """
    return _say(connection, _locked(connection, tenant_id, dispute_id), "answered", said, None)


def resolve(connection: Connection, tenant_id: str, dispute_id: str, outcome: Outcome, said: Said) -> Dispute:
    """End a dispute; `upheld` says that the provider was right.

    Raises:
        NotFoundError: the tenant has no such dispute, or evidence names a request that its audit has not.
        ConflictError: it is resolved already.
        RequestInvalidError: no such outcome.
    """
    if outcome not in OUTCOMES:
        raise RequestInvalidError(f"one of {', '.join(OUTCOMES)}", where="outcome")
    return _say(connection, _locked(connection, tenant_id, dispute_id), "resolved", said, outcome)


def _say(connection: Connection, dispute: Dispute, kind: Kind, said: Said, outcome: str | None) -> Dispute:
    sequence = len(dispute.statements) + 1
    state = "filed" if sequence == 1 else rules.after(dispute.state, kind, dispute.id)  # type: ignore[arg-type]
    _check_evidence(connection, dispute, said.evidence)
    now = time_now(connection)
    row = {"dispute_id": dispute.id, "sequence": sequence, "kind": kind, "actor": said.actor}
    row |= {"statement": said.statement, "evidence": json.dumps(said.evidence), "created": now}
    connection.execute(insert(event_table).values(row))
    same = dispute_table.c.id == dispute.id
    values = {"state": state, "outcome": outcome, "changed": now}
    connection.execute(update(dispute_table).where(same).values(values))
    fact = {"dispute": dispute.id, "audit": dispute.audit_id, "sequence": str(sequence), "state": state}
    # A digest, as everywhere in the log: what was said is the parties' to publish.
    fact |= {"said": digest_of(kind, said)} | ({} if outcome is None else {"outcome": outcome})
    audits.log_fact(connection, f"{dispute.id}/{sequence}", dispute.tenant_id, ENTRY, fact)
    told = {"dispute": dispute.id, "audit": dispute.audit_id, "state": state, "outcome": outcome}
    webhooks.enqueue(connection, dispute.tenant_id, "dispute.changed", told)
    return find(connection, dispute.tenant_id, dispute.id)


def digest_of(kind: str, said: Said) -> str:
    """What the log says of a statement."""
    value = {"kind": kind, "by": said.actor, "statement": said.statement, "evidence": list(said.evidence)}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _check_evidence(connection: Connection, dispute: Dispute, evidence: Sequence[str]) -> None:
    column = evidence_table.c
    for one in evidence:
        number = evidence_number(one, dispute.audit_id)
        if number is None:
            continue
        same = (column.audit_id == dispute.audit_id, column.number == number)
        if connection.execute(select(column.number).where(*same)).first() is None:
            raise NotFoundError(f"no request {number} in that audit", where="evidence")


def find(connection: Connection, tenant_id: str, dispute_id: str) -> Dispute:
    """One dispute, with everything said.

    Raises:
        NotFoundError: the tenant has no such dispute.
    """
    return _found(connection, tenant_id, dispute_id, lock=False)


def _locked(connection: Connection, tenant_id: str, dispute_id: str) -> Dispute:
    return _found(connection, tenant_id, dispute_id, lock=True)


def _found(connection: Connection, tenant_id: str, dispute_id: str, *, lock: bool) -> Dispute:
    column = dispute_table.c
    wanted = select(dispute_table).where(column.tenant_id == tenant_id, column.id == dispute_id)
    row = connection.execute(wanted.with_for_update() if lock else wanted).one_or_none()
    if row is None:
        raise NotFoundError("no such dispute")
    return _dispute(row, _statements(connection, dispute_id))


def listed(
    connection: Connection, tenant_id: str, *, after: tuple[int, str] | None, limit: int
) -> list[Dispute]:
    """A tenant's disputes, newest first, without what was said."""
    column = dispute_table.c
    wanted = select(dispute_table).where(column.tenant_id == tenant_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) < after)
    rows = connection.execute(wanted.order_by(column.created.desc(), column.id.desc()).limit(limit))
    return [_dispute(row, ()) for row in rows]


def of_audit(connection: Connection, tenant_id: str, audit_id: str) -> list[Dispute]:
    """Disputes about one audit, newest first, without what was said."""
    column = dispute_table.c
    wanted = select(dispute_table).where(column.tenant_id == tenant_id, column.audit_id == audit_id)
    rows = connection.execute(wanted.order_by(column.created.desc(), column.id.desc()))
    return [_dispute(row, ()) for row in rows]


def about(connection: Connection, tenant_id: str, provider: str, start: int, end: int) -> list[Dispute]:
    """Disputes as they stood at a moment, those open then or changed since another; all providers if empty.

    Args:
        start, end: microseconds; what was said at `end` or later is not there yet.
    """
    column = dispute_table.c
    wanted = select(dispute_table).where(column.tenant_id == tenant_id, column.created < end)
    if provider:
        wanted = wanted.where(column.provider == provider)
    found = []
    for row in connection.execute(wanted.order_by(column.created, column.id)).all():
        said = tuple(s for s in _statements(connection, row.id) if s.created < end)
        if not said:
            continue
        last = said[-1]
        if last.kind == "resolved" and last.created < start:
            continue
        outcome = row.outcome if last.kind == "resolved" else None
        found.append(_dispute(row, said, state=last.kind, outcome=outcome, changed=last.created))
    return found


def overturned(connection: Connection, tenant_id: str, audit_ids: Sequence[str], end: int) -> dict[str, int]:
    """Audits whose evidence an upheld dispute has taken away before a moment, and when."""
    column = dispute_table.c
    wanted = select(column.audit_id, column.changed).where(
        column.tenant_id == tenant_id,
        column.outcome == "upheld",
        column.changed < end,
        column.audit_id.in_(audit_ids),
    )
    return {row.audit_id: row.changed for row in connection.execute(wanted)}


def _statements(connection: Connection, dispute_id: str) -> tuple[Statement, ...]:
    column = event_table.c
    wanted = select(event_table).where(column.dispute_id == dispute_id).order_by(column.sequence)
    return tuple(
        Statement(
            row.sequence,
            row.kind,
            Said(row.actor, row.statement, tuple(json.loads(row.evidence))),
            row.created,
        )
        for row in connection.execute(wanted)
    )


def _dispute(row: Row[Any], statements: tuple[Statement, ...], **as_of: Any) -> Dispute:
    names = ("id", "tenant_id", "audit_id", "provider", "state", "outcome", "created", "changed")
    return Dispute(**({name: getattr(row, name) for name in names} | as_of), statements=statements)
