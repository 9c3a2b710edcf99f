"""Exhibits in the database, and the standing of providers, their sum. Every function names the tenant."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, func, insert, select, update

from auditor.service import providers
from auditor.service.providers import OVERTURNED
from auditor.store_schedules import dispute as dispute_table
from auditor.store_schema import audit as audit_table
from auditor.store_schema import exhibit as exhibit_table
from auditor.store_schema import trace_log as log_table
from auditor.store_schema import verdict as verdict_table

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection, Row

    from auditor.service.audits import Audit
    from auditor.service.exhibit import Exhibit

MOST_PROVIDERS = 200
MOST_NAME = 200
"""Characters of a provider's name."""


@dataclass(frozen=True, slots=True)
class ProviderStanding:
    """What was found about one provider's model.

    Attributes:
        provider, model: None where logs name none, or several.
        verdicts: outcome -> how many; those whose dispute was upheld are `OVERTURNED` instead.
        tokens: output tokens scored, all verdicts together.
        false_alarms: how many convictions an honest provider should expect at most: the sum of alphas.
        last_audit, last_outcome, last_time: of the audit submitted last that has a verdict; microseconds
            since 1970.
    """

    provider: str | None
    model: str | None
    verdicts: dict[str, int]
    tokens: int
    false_alarms: float
    last_audit: str
    last_outcome: str
    last_time: int

    @property
    def audits(self) -> int:
        """Verdicts of any kind."""
        return sum(self.verdicts.values())


def record(connection: Connection, audit: Audit, exhibit: Exhibit) -> None:
    """Keep what is shown of an audit, in the transaction that writes its verdict.

    Whom it is about is what who submitted it said; where nobody did, what its log says, from now on.
    """
    values = {name: getattr(exhibit, name) for name in type(exhibit).__slots__}
    values["provider"] = name = audit.provider or _usable(exhibit.provider)
    if name is not None:
        # Also where it was said: somebody may have registered the name while the log was being submitted.
        registered = providers.named(connection, audit.tenant_id, name)
        if (name, registered) != (audit.provider, audit.provider_id):
            same = update(audit_table).where(audit_table.c.id == audit.id)
            connection.execute(same.values(provider=name, provider_id=registered))
    # Locked, so that an erasure comes either before this or after it.
    log = select(log_table.c.erased).where(log_table.c.id == audit.log.id).with_for_update(key_share=True)
    if connection.execute(log).scalar_one() is not None:
        values["body"] = _without_texts(values["body"])
    connection.execute(insert(exhibit_table).values(audit_id=audit.id, tenant_id=audit.tenant_id, **values))


def _usable(name: str | None) -> str | None:
    """A name that a log gives, if a provider could be registered under it."""
    return name if name and name.isprintable() and len(name) <= MOST_NAME else None


def forget_texts(connection: Connection, log_id: str) -> None:
    """Take the texts out of the exhibits of a log's audits; what was found stays."""
    column = exhibit_table.c
    of_log = select(audit_table.c.id).where(audit_table.c.trace_log_id == log_id)
    rows = connection.execute(select(column.audit_id, column.body).where(column.audit_id.in_(of_log))).all()
    for audit_id, body in rows:
        changed = update(exhibit_table).where(column.audit_id == audit_id)
        connection.execute(changed.values(body=_without_texts(body)))


def _without_texts(body: bytes) -> bytes:
    return json.dumps({**json.loads(body), "excerpts": []}, sort_keys=True, separators=(",", ":")).encode()


def find(connection: Connection, tenant_id: str, audit_id: str) -> dict[str, Any] | None:
    """The exhibit of a tenant's audit; None when there is none."""
    column = exhibit_table.c
    wanted = select(column.body).where(column.tenant_id == tenant_id, column.audit_id == audit_id)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        return None
    value: dict[str, Any] = json.loads(bytes(row.body))
    return value


def subjects(
    connection: Connection, tenant_id: str, audit_ids: Collection[str]
) -> dict[str, tuple[str | None, str | None]]:
    """(provider, model) of those of a tenant's audits that have an exhibit."""
    column = exhibit_table.c
    wanted = select(column.audit_id, column.provider, column.model)
    wanted = wanted.where(column.tenant_id == tenant_id, column.audit_id.in_(audit_ids))
    return {row.audit_id: (row.provider, row.model) for row in connection.execute(wanted)}


def standings(connection: Connection, tenant_id: str) -> list[ProviderStanding]:
    """Each provider and model that a tenant's verdicts are about, those audited last first."""
    shown, given = exhibit_table.c, verdict_table.c
    upheld = select(dispute_table.c.audit_id).where(
        dispute_table.c.tenant_id == tenant_id, dispute_table.c.outcome == "upheld"
    )
    outcome = case((shown.audit_id.in_(upheld), OVERTURNED), else_=shown.outcome).label("found")
    sums = (
        select(
            shown.provider,
            shown.model,
            outcome,
            func.count().label("audits"),
            func.sum(shown.tokens).label("tokens"),
            func.sum(shown.alpha).label("alphas"),
            func.max(shown.audit_id).label("last"),  # identifiers begin with their time
        )
        .where(shown.tenant_id == tenant_id)
        .group_by(shown.provider, shown.model, outcome)
    )
    found: dict[tuple[str | None, str | None], list[Row[Any]]] = {}
    for row in connection.execute(sums):
        found.setdefault((row.provider, row.model), []).append(row)
    newest = sorted(found.values(), key=lambda rows: max(row.last for row in rows), reverse=True)
    newest = newest[:MOST_PROVIDERS]
    last = [max(row.last for row in rows) for rows in newest]
    times = select(given.audit_id, given.created).where(given.audit_id.in_(last))
    given_at = {row.audit_id: row.created for row in connection.execute(times)}
    return [_standing(rows, given_at) for rows in newest]


def _standing(rows: list[Row[Any]], given_at: dict[str, int]) -> ProviderStanding:
    last = max(rows, key=lambda row: row.last)
    return ProviderStanding(
        last.provider,
        last.model,
        {row.found: row.audits for row in rows},
        int(sum(row.tokens for row in rows)),
        float(sum(row.alphas for row in rows)),
        last.last,
        last.found,
        given_at[last.last],
    )
