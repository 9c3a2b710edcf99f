"""Exhibits in the database, and the standing of providers, their sum. Every function names the tenant."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select

from auditor.store_schema import exhibit as exhibit_table
from auditor.store_schema import verdict as verdict_table

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

    from auditor.service.audits import Audit
    from auditor.service.exhibit import Exhibit

MOST_PROVIDERS = 200


@dataclass(frozen=True, slots=True)
class ProviderStanding:
    """What was found about one provider's model.

    Attributes:
        provider, model: None where logs name none, or several.
        verdicts: outcome -> how many.
        tokens: output tokens scored, all verdicts together.
        false_alarms: how many convictions an honest provider should expect at most: the sum of alphas.
        last_audit, last_outcome, last_time: of the newest verdict; microseconds since 1970.
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
    """Keep what is shown of an audit, in the transaction that writes its verdict."""
    values = {name: getattr(exhibit, name) for name in type(exhibit).__slots__}
    connection.execute(insert(exhibit_table).values(audit_id=audit.id, tenant_id=audit.tenant_id, **values))


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
    """Each provider and model that a tenant's verdicts are about, those heard of last first."""
    shown, given = exhibit_table.c, verdict_table.c
    sums = (
        select(
            shown.provider,
            shown.model,
            given.outcome,
            func.count().label("count"),
            func.sum(shown.tokens).label("tokens"),
            func.sum(shown.alpha).label("alphas"),
            func.max(given.created).label("last"),
        )
        .join(verdict_table, given.audit_id == shown.audit_id)
        .where(shown.tenant_id == tenant_id)
        .group_by(shown.provider, shown.model, given.outcome)
    )
    found: dict[tuple[str | None, str | None], list[Any]] = {}
    for row in connection.execute(sums):
        found.setdefault((row.provider, row.model), []).append(row)
    newest = sorted(found.items(), key=lambda item: -max(row.last for row in item[1]))
    return [_standing(connection, tenant_id, *item) for item in newest[:MOST_PROVIDERS]]


def _standing(
    connection: Connection, tenant_id: str, subject: tuple[str | None, str | None], rows: list[Any]
) -> ProviderStanding:
    provider, model = subject
    shown, given = exhibit_table.c, verdict_table.c
    last = max(rows, key=lambda row: row.last)
    newest = (
        select(shown.audit_id)
        .join(verdict_table, given.audit_id == shown.audit_id)
        .where(shown.tenant_id == tenant_id)
        .where(shown.provider.is_not_distinct_from(provider), shown.model.is_not_distinct_from(model))
        .where(given.created == last.last, given.outcome == last.outcome)
        .limit(1)
    )
    return ProviderStanding(
        provider,
        model,
        {row.outcome: row.count for row in rows},
        int(sum(row.tokens for row in rows)),
        float(sum(row.alphas for row in rows)),
        connection.execute(newest).scalar_one(),
        last.outcome,
        last.last,
    )
