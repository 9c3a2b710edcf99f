"""Who is told when the verdict on a provider changes: committed with what it tells of, delivered afterwards.

Webhooks go through `service/webhooks.py`, mails through the table `mail`, which `mail.py` empties.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert

from auditor.schedules.policy import Policy
from auditor.schedules.slots import Slot
from auditor.service import webhooks
from auditor.service.clock import now as time_now
from auditor.service.clock import to_text
from auditor.service.identifiers import new_id
from auditor.store_schedules import mail as mail_table

if TYPE_CHECKING:
    from sqlalchemy import Connection


def verdict_changed(connection: Connection, slot: Slot, before: str | None, policy: Policy) -> None:
    """Tell of a period whose verdict is another than the last one's; of a first one if it convicts."""
    if slot.verdict == before or (before is None and slot.verdict != "inconsistent"):
        return
    findings = slot.findings or {}
    log10_e = None if slot.log_e is None else round(slot.log_e / math.log(10.0), 2)
    told: dict[str, Any] = {"provider": slot.provider, "verdict": slot.verdict, "before": before}
    told |= {"schedule": slot.schedule_id, "period": slot.id, "slot": to_text(slot.slot_at)}
    told |= {"log10_e": log10_e, "causes": findings.get("causes", []), "audit": slot.audit_id}
    _tell(connection, slot.tenant_id, "provider.verdict-changed", told | {"report": slot.report_id}, policy)


def given_up(connection: Connection, slot: Slot, policy: Policy) -> None:
    """Tell of a period that no worker could bring to its end."""
    told: dict[str, Any] = {"provider": slot.provider, "schedule": slot.schedule_id, "period": slot.id}
    told |= {"slot": to_text(slot.slot_at), "code": slot.error_code}
    _tell(connection, slot.tenant_id, "schedule.failed", told, policy)


def _tell(connection: Connection, tenant_id: str, kind: str, told: dict[str, Any], policy: Policy) -> None:
    if policy.alerts_webhooks:
        webhooks.enqueue(connection, tenant_id, kind, told)
    if not policy.alerts_email:
        return
    now = time_now(connection)
    subject, body = _letter(kind, told)
    row = {"tenant_id": tenant_id, "subject": subject, "body": body, "created": now, "next_at": now}
    row |= {"state": "pending", "attempts": 0, "token": 0, "error": None}
    rows = [{**row, "id": new_id("mail"), "recipient": address} for address in policy.alerts_email]
    connection.execute(insert(mail_table), rows)


def _letter(kind: str, told: dict[str, Any]) -> tuple[str, str]:
    provider = told["provider"]
    if kind == "schedule.failed":
        subject = f"{provider}: a scheduled audit was given up"
        first = f"The audit of {provider} that was due at {told['slot']} was given up [{told['code']}]."
    else:
        subject = f"{provider}: {told['verdict']}"
        was = f", after {told['before']}" if told["before"] else ""
        first = f"The verdict on {provider} is {told['verdict']}{was}, as of {told['slot']}."
    lines = [first, ""]
    if told.get("causes"):
        cause, weight = told["causes"][0]
        lines.append(f"Explained best by: {cause} ({weight:.0%})")
    if told.get("log10_e") is not None:
        lines.append(f"Standing over all periods: e-value 10^{told['log10_e']}")
    lines += [f"{name}: {told[name]}" for name in ("period", "audit", "report", "schedule") if told.get(name)]
    return subject, "\n".join(lines) + "\n"
