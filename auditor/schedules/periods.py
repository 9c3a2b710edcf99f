"""Periods in the database: what each step of a slot reads and writes, as `period_work.py` calls them."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select

from auditor.disputes.disputes import overturned
from auditor.schedules import alerts, bill_rows, likelihoods, schedules, slots
from auditor.schedules.judging import (
    BILL,
    Judged,
    bills_part,
    bills_said,
    causes_of,
    counted_log_e,
    judge_period,
    refuted,
)
from auditor.schedules.policy import Policy
from auditor.schedules.shares import level
from auditor.schedules.standing import PeriodEvidence, Standing, standing
from auditor.service import audits
from auditor.service.audits import Audit, AuditOptions, TraceLog
from auditor.service.clock import now as time_now
from auditor.store_schedules import slot as slot_table
from auditor.store_schedules import taken_log as taken_log_table
from auditor.store_schedules import taken_request as taken_request_table
from auditor.store_schema import audit as audit_table
from auditor.store_schema import sample as sample_table
from auditor.store_schema import trace_log as log_table
from auditor.store_schema import verdict as verdict_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.schedules.sampling import Drawn, Population
    from auditor.schedules.slots import Slot
    from auditor.service.queue import Job

_BATCH = 500
_MARGINS = "token-difr"


def cut(connection: Connection, job: Job, policy: Policy) -> None:
    """Fix the period: its number, the logs it looks into, its budget and the seed of its sample.

    Raises:
        LeaseLostError: another worker holds the slot.
    """
    slot = slots.held(connection, job)
    column = log_table.c
    same = (taken_log_table.c.tenant_id == slot.tenant_id, taken_log_table.c.provider == slot.provider)
    taken = select(taken_log_table.c.trace_log_id).where(*same)
    samples = (
        select(audit_table.c.trace_log_id)
        .join(slot_table, slot_table.c.audit_id == audit_table.c.id)
        .where(slot_table.c.tenant_id == slot.tenant_id)
    )
    fresh = select(column.id).where(column.tenant_id == slot.tenant_id)
    fresh = fresh.where(column.erased.is_(None), column.id.not_in(taken), column.id.not_in(samples))
    row = {"tenant_id": slot.tenant_id, "provider": slot.provider, "slot_id": slot.id}
    rows = [{**row, "trace_log_id": found} for found in connection.execute(fresh).scalars()]
    for start in range(0, len(rows), _BATCH):
        connection.execute(insert(taken_log_table), rows[start : start + _BATCH])
    slots.write(
        connection,
        job,
        number=slots.next_number(connection, slot.tenant_id, slot.provider),
        seed=secrets.token_hex(16),
        budget_tokens=_budget(slots.numbered(connection, slot.tenant_id, slot.provider), policy),
    )


def _budget(earlier: Sequence[Slot], policy: Policy) -> int:
    """The policy's budget; more after a suspicious period, each time anew."""
    last = next((slot for slot in reversed(earlier) if slot.verdict is not None), None)
    if last is None or not is_suspicious(last, policy):
        return policy.budget_tokens
    larger = math.ceil(max(last.budget_tokens or 0, policy.budget_tokens) * policy.escalation_factor)
    return min(larger, policy.escalation_budget_tokens)


def is_suspicious(slot: Slot, policy: Policy) -> bool:
    """Whether the next sample is to be enlarged: evidence of some size, and no conviction."""
    if slot.verdict == "inconsistent" or slot.suspicion is None:
        return False
    return slot.suspicion >= math.log(policy.escalation_e_value)


def logs_of(connection: Connection, slot: Slot) -> list[TraceLog]:
    """The logs that the period looks into, in the order of coming in."""
    names = [field.name for field in fields(TraceLog)]
    wanted = (
        select(*(log_table.c[name] for name in names))
        .join(taken_log_table, taken_log_table.c.trace_log_id == log_table.c.id)
        .where(taken_log_table.c.slot_id == slot.id)
        .order_by(log_table.c.created, log_table.c.id)
    )
    return [TraceLog(*row) for row in connection.execute(wanted)]


def audited_contents(connection: Connection, slot: Slot) -> set[bytes]:
    """Requests that earlier periods of the provider audited."""
    column = taken_request_table.c
    wanted = select(column.content).where(
        column.tenant_id == slot.tenant_id, column.provider == slot.provider, column.slot_id != slot.id
    )
    return {bytes(found) for found in connection.execute(wanted).scalars()}


def order(
    connection: Connection, job: Job, policy: Policy, population: Population, drawn: Drawn, digest: str
) -> None:
    """Order the audit of a sample that is in the blob folder; again is the same as once.

    Raises:
        LeaseLostError: another worker holds the slot.
    """
    slot = slots.held(connection, job)
    if slot.number is None or slot.audit_id is not None:
        return
    log = audits.keep_log(connection, slot.tenant_id, digest, f"{slot.provider} {slot.id}", len(drawn.log))
    options = AuditOptions(
        alpha=level(policy.alpha, slot.number),
        input_format="trace",
        engine_recipe=policy.log_engine_recipe,
        noise=policy.log_noise,
        served_model=policy.log_served_model,
    )
    audit_id = audits.submit(connection, log, options, slot.provider)
    sample = drawn.sample
    connection.execute(
        insert(sample_table).values(
            audit_id=audit_id,
            population_requests=sample.population_requests,
            sampled_requests=sample.sampled_requests,
            method=sample.method,
            seed=sample.seed,
        )
    )
    row = {"tenant_id": slot.tenant_id, "provider": slot.provider, "slot_id": slot.id}
    rows = [{**row, "content": content} for content in drawn.contents]
    for start in range(0, len(rows), _BATCH):
        connection.execute(insert(taken_request_table), rows[start : start + _BATCH])
    slots.write(connection, job, audit_id=audit_id, drawn=_told(population, drawn))


def note_empty(connection: Connection, job: Job, population: Population) -> None:
    """Note that there is nothing to audit.

    Raises:
        LeaseLostError: another worker holds the slot.
    """
    slots.write(connection, job, drawn=_told(population, None))


def _told(population: Population, drawn: Drawn | None) -> dict[str, Any]:
    told = {"requests": len(population.candidates), "tokens": population.tokens}
    told |= {"repeated": population.repeated, "bad_lines": population.bad_lines}
    sampled = (0, 0) if drawn is None else (drawn.sample.sampled_requests, drawn.sampled_tokens)
    return told | {"sampled_requests": sampled[0], "sampled_tokens": sampled[1]}


@dataclass(frozen=True, slots=True)
class History:
    """A provider's periods so far, the newest last, as evidence and as rows."""

    evidence: tuple[PeriodEvidence, ...]
    slots: tuple[Slot, ...]
    overturned: bool

    @property
    def before(self) -> Slot | None:
        """The last period that was judged before the newest."""
        return next((slot for slot in reversed(self.slots[:-1]) if slot.verdict is not None), None)

    @property
    def still_accused(self) -> bool:
        """Whether an earlier conviction stands: no dispute was upheld since."""
        return self.before is not None and self.before.verdict == "inconsistent" and not self.overturned


def history(connection: Connection, slot: Slot, policy: Policy) -> tuple[History, dict[str, Any] | None]:
    """Everything a judgement of this period rests on, and its audit's verdict; None without one."""
    found = [s for s in slots.numbered(connection, slot.tenant_id, slot.provider) if s.number is not None]
    found = [s for s in found if slot.number is not None and (s.number or 0) <= slot.number]
    ids = [s.audit_id for s in found if s.audit_id is not None]
    column = verdict_table.c
    rows = connection.execute(select(column.audit_id, column.body).where(column.audit_id.in_(ids)))
    documents = {row.audit_id: json.loads(bytes(row.body)) for row in rows}
    margins = likelihoods.margins(connection, ids)
    bills = bill_rows.bills(connection, ids)
    void = overturned(connection, slot.tenant_id, ids, time_now(connection))
    evidence = []
    for one in found:
        document = documents.get(one.audit_id)
        alone = None if document is None else counted_log_e(document, policy)
        audit_id = one.audit_id or ""
        found_in = (margins.get(audit_id, ()), bills.get(audit_id))
        evidence.append(PeriodEvidence(one.number or 0, alone, *found_in, void=audit_id in void))
    before = next((s for s in reversed(found[:-1]) if s.verdict is not None), None)
    since = 0 if before is None else before.period_end or 0
    lately = any(moment >= since for moment in void.values())
    return History(tuple(evidence), tuple(found), lately), documents.get(slot.audit_id)


def stands(found: History, policy: Policy) -> Standing:
    """The standing; after a dispute was upheld, the worst that it would have been without that evidence."""
    now = _standing(found.evidence, policy)
    if not found.overturned:
        return now
    prefixes = [_standing(found.evidence[:n], policy) for n in range(1, len(found.evidence))]
    worst = max([*prefixes, now], key=lambda s: s.log_e)
    return worst if worst.accuses(policy.alpha) else now


def _standing(evidence: Sequence[PeriodEvidence], policy: Policy) -> Standing:
    return standing(evidence, by_margins=_MARGINS in policy.counts, bills_part=bills_part(policy))


def unexplained(connection: Connection, slot: Slot, policy: Policy) -> list[Audit]:
    """Audits of the periods whose replays convict only together, so that none of them names a cause.

    Empty where there is nothing to explain: no conviction, an earlier one stands, or the newest audit
    convicts by itself. Audits whose log was erased are left out.
    """
    found, document = history(connection, slot, policy)
    now = stands(found, policy)
    alone = document is not None and (refuted(document) or bool(causes_of(document)))
    if slot.verdict is not None or alone or found.still_accused or not now.accuses_by_replay(policy.alpha):
        return []
    ids = [s.audit_id for s in found.slots if s.audit_id is not None and (s.number or 0) >= now.strongest]
    audited = [audits.find(connection, slot.tenant_id, audit_id) for audit_id in ids]
    return [audit for audit in audited if audit.log.erased is None]


def judge(connection: Connection, job: Job, policy: Policy, causes: Sequence[tuple[str, float]] = ()) -> None:
    """Judge the period; again is the same as once.

    Args:
        causes: what explains the audits that were `unexplained`.

    Raises:
        LeaseLostError: another worker holds the slot.
    """
    slot = slots.held(connection, job)
    if slot.verdict is not None:
        return
    found, document = history(connection, slot, policy)
    now = stands(found, policy)
    drawn = slot.drawn or {}
    judged = judge_period(
        policy,
        now,
        document,
        why_none=_why_none(connection, slot),
        bad_lines=drawn.get("bad_lines", 0),
        still_accused=found.still_accused,
        accumulated=tuple(causes) or _earlier_causes(found),
    )
    end = time_now(connection)
    started = found.before.period_end if found.before is not None else None
    if started is None:
        started = min(slot.created, schedules.find(connection, slot.tenant_id, slot.schedule_id).created)
    slots.write(
        connection,
        job,
        verdict=judged.verdict,
        log_e=now.log_e,
        suspicion=now.suspicion,
        period_start=started,
        period_end=max(end, started + 1),
        findings=_findings(judged, now, slot, policy, found.before),
    )


def _earlier_causes(found: History) -> tuple[tuple[str, float], ...]:
    """What an accusation by replays that still stands was explained by; bills are named anew each time."""
    told = (found.before.findings or {}).get("causes", []) if found.still_accused and found.before else []
    replayed = 1.0 - sum(weight for cause, weight in told if cause == BILL)
    return tuple((cause, weight / replayed) for cause, weight in told if cause != BILL)


def _findings(
    judged: Judged, now: Standing, slot: Slot, policy: Policy, before: Slot | None
) -> dict[str, Any]:
    causes = [list(cause) for cause in judged.causes]
    if judged.verdict == "inconsistent" and not causes and before is not None and before.findings:
        causes = before.findings["causes"]  # what the earlier conviction was explained by
    told: dict[str, Any] = {"reasons": list(judged.reasons), "causes": causes}
    told |= {"convicted": judged.convicted, "since": now.since, "policy": policy.digest}
    if now.bills.since:
        told["bills"] = bills_said(policy, now)
    return told | {"level": level(policy.alpha, slot.number or 1)}


def _why_none(connection: Connection, slot: Slot) -> str:
    if slot.audit_id is None:
        return "no new requests of this provider came in"
    audit = audits.find(connection, slot.tenant_id, slot.audit_id)
    return f"the period's audit ended without a verdict: {audit.state} [{audit.error_code or audit.state}]"


def close(connection: Connection, job: Job, policy: Policy, report: str) -> None:
    """End the slot, and have whoever wants to know told.

    Raises:
        LeaseLostError: another worker holds the slot.
    """
    slots.write(connection, job, report_id=report)
    slot = slots.held(connection, job)
    earlier = slots.numbered(connection, slot.tenant_id, slot.provider)
    judged = [s for s in earlier if s.verdict is not None and (s.number or 0) < (slot.number or 0)]
    alerts.verdict_changed(connection, slot, judged[-1].verdict if judged else None, policy)
    slots.finish(connection, job)
