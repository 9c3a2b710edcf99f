"""What a report takes from schedules and disputes: a provider's standing, and who contests what. Rows in.

As everything in a report, as of the end of its period.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from auditor.disputes.disputes import Dispute, about, digest_of, overturned
from auditor.reports.canonical import decimal, log10_text, significant
from auditor.reports.rows import Scope
from auditor.service.clock import to_text
from auditor.store_schedules import slot as slot_table

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class ProviderStanding:
    """A provider's standing after its last period that was judged by the end of the report's.

    Attributes:
        number: of that period among the provider's.
        log_e: of all its periods together (`schedules/standing.py`).
        since: period from which the evidence is strongest.
        level: alpha at which that period's own audit was judged.
        bills: what became of the provider's bills (`schedules.judging.bills_said`); None where there were too
            few to be held against earlier ones.
    """

    verdict: str
    number: int
    log_e: float
    since: int
    level: float
    reasons: tuple[str, ...]
    causes: tuple[tuple[str, float], ...]
    bills: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Background:
    """What stands behind a period's audits.

    Attributes:
        standings: by provider; none for those that no schedule audits.
        disputes: open at the end of the period, or resolved in it.
        overturned: audits whose evidence an upheld dispute has taken away.
    """

    standings: Mapping[str, ProviderStanding]
    disputes: Sequence[Dispute] = ()
    overturned: frozenset[str] = frozenset()


NOTHING = Background({})


def background(connection: Connection, scope: Scope, audit_ids: Sequence[str]) -> Background:
    """Read it."""
    column = slot_table.c
    wanted = (
        select(column.provider, column.number, column.verdict, column.log_e, column.findings)
        .where(column.tenant_id == scope.tenant_id, column.period_end <= scope.end)
        .order_by(column.number)
    )
    if scope.provider:
        wanted = wanted.where(column.provider == scope.provider)
    standings = {}
    for row in connection.execute(wanted):
        findings = json.loads(row.findings)
        standings[row.provider] = ProviderStanding(
            row.verdict,
            row.number,
            row.log_e,
            findings["since"],
            findings["level"],
            tuple(findings["reasons"]),
            tuple((cause, weight) for cause, weight in findings["causes"]),
            findings.get("bills"),
        )
    disputes = about(connection, scope.tenant_id, scope.provider, scope.start, scope.end)
    gone = overturned(connection, scope.tenant_id, audit_ids, scope.end)
    return Background(standings, disputes, frozenset(gone))


def standing_json(found: ProviderStanding | None) -> dict[str, Any] | None:
    """As the report has it; None for a provider that no schedule audits."""
    if found is None:
        return None
    return {
        "verdict": found.verdict,
        "periods": found.number,
        "log10_e": log10_text(found.log_e),
        "strongest_since_period": found.since,
        "period_alpha": significant(found.level),
        "reasons": list(found.reasons),
        "causes": [{"cause": cause, "weight": decimal(weight, 3)} for cause, weight in found.causes],
        "bills": None if found.bills is None else _bills_json(found.bills),
    }


def _bills_json(said: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "verdict": "inconsistent" if said["accuse"] else "consistent" if said["shown"] else "inconclusive",
        "since_period": said["since"],
        "first_responses": said["first"],
        "responses": said["responses"],
        "allowed_tokens": said["allowed"],
        "beyond": said["beyond"],
        "log10_e": log10_text(said["log_e"]),
    }


def dispute_json(dispute: Dispute) -> dict[str, Any]:
    """As the report has it: who said what when by digests, and the entries of the log that tell of it."""
    return {
        "id": dispute.id,
        "audit": dispute.audit_id,
        "provider": dispute.provider or None,
        "state": dispute.state,
        "outcome": dispute.outcome,
        "statements": [
            {
                "kind": one.kind,
                "by": one.said.actor,
                "at": to_text(one.created),
                "evidence": list(one.said.evidence),
                "digest": digest_of(one.kind, one.said),
                "entry": f"{dispute.id}/{one.sequence}",
            }
            for one in dispute.statements
        ],
    }
