"""Schedules over HTTP: add, look, pause, resume, run, remove; their periods and the provider's standing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from auditor.api.bodies import json_body, json_content
from auditor.api.paging import Cursor, Limit, decode_cursor, page_of
from auditor.api.problems import responses
from auditor.api.service import IDEMPOTENCY_PARAMETER, IdempotencyKey, Reader, TheService, Writer
from auditor.api.views import Body, Label, Time
from auditor.schedules import schedules, slots
from auditor.schedules.policy import Policy, parse_policy
from auditor.schedules.schedules import Schedule
from auditor.schedules.slots import Slot
from auditor.schedules.timetable import Timetable
from auditor.service import audits
from auditor.service.clock import to_text

if TYPE_CHECKING:
    from sqlalchemy import Connection

router = APIRouter(tags=["schedules"])
_POLICY = 'schema = "auditor.policy/v1"\nname = "strict"\nversion = "1"\n'
_MOST_POLICY = 64 * 1024
_LOG10 = math.log(10.0)
Verdict = Literal["consistent", "inconsistent", "inconclusive"]


class NewSchedule(Body):
    """A schedule to be made."""

    provider: Label = Field(examples=["acme"], description="As its logs name it.")
    cron: str = Field(
        max_length=200, examples=["0 6 * * 1"], description="Minute, hour, day, month, day of week."
    )
    zone: str = Field(default="UTC", max_length=100, examples=["Europe/Berlin"])
    policy: str = Field(max_length=_MOST_POLICY, examples=[_POLICY], description="`auditor.policy/v1`, TOML.")


class PeriodView(BaseModel):
    """A firing of a schedule and the period that it ends."""

    id: str = Field(examples=["slt_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    slot: Time
    missed: int = Field(examples=[0], description="Slots before it that nobody was there to fire.")
    state: Literal["queued", "running", "done", "dead", "quarantined", "cancelled"]
    number: int | None = Field(examples=[0], description="Of the period, in the provider's standing.")
    finished: Time | None
    drawn: dict[str, int] | None = Field(
        examples=[None], description="Requests and tokens that came in, and of the sample."
    )
    seed: str | None = Field(
        examples=[None], description="Of the sample; drawn when the period's logs were fixed."
    )
    budget_tokens: int | None = Field(examples=[20000])
    audit: str | None = Field(examples=["aud_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    verdict: Verdict | None = Field(description="On the provider, after this period.")
    log10_e: float | None = Field(examples=[0.3], description="Of its standing over all periods.")
    reasons: list[str] = Field(examples=[[]])
    causes: list[dict[str, Any]] = Field(examples=[[]])
    report: str | None = Field(examples=["rep_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    error: str | None = Field(examples=[None])


class ScheduleView(BaseModel):
    """A schedule, with its newest period."""

    id: str = Field(examples=["sch_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    provider: str = Field(examples=["acme"])
    cron: str = Field(examples=["0 6 * * 1"])
    zone: str = Field(examples=["UTC"])
    state: Literal["active", "paused", "removed"]
    created: Time
    next: Time | None = Field(description="Its next slot; null unless it is active.")
    policy: dict[str, Any] = Field(
        examples=[{"name": "weekly"}], description="What the policy says, with every default."
    )
    policy_digest: str = Field(examples=["sha256:" + "0" * 64])
    last: PeriodView | None


class SchedulePage(BaseModel):
    """Schedules in order of making."""

    items: list[ScheduleView]
    next: str | None = Field(examples=[None])


class PeriodPage(BaseModel):
    """Periods, newest first."""

    items: list[PeriodView]
    next: str | None = Field(examples=[None])


def view_period(slot: Slot) -> PeriodView:
    """A period as the API shows it."""
    findings = slot.findings or {}
    names = ("id", "missed", "state", "number", "drawn", "seed", "budget_tokens", "verdict")
    return PeriodView(
        **{name: getattr(slot, name) for name in names},
        slot=to_text(slot.slot_at),
        finished=None if slot.finished is None else to_text(slot.finished),
        audit=slot.audit_id,
        log10_e=None if slot.log_e is None else round(slot.log_e / _LOG10, 3),
        reasons=findings.get("reasons", []),
        causes=[{"cause": cause, "weight": weight} for cause, weight in findings.get("causes", [])],
        report=slot.report_id,
        error=slot.error_code,
    )


def _view(connection: Connection, schedule: Schedule) -> ScheduleView:
    policy: Policy = schedules.find_policy(connection, schedule.tenant_id, schedule.policy_digest)
    newest = slots.listed(connection, schedule.tenant_id, schedule.id, after=None, limit=1)
    return ScheduleView(
        id=schedule.id,
        provider=schedule.provider,
        cron=schedule.cron,
        zone=schedule.zone,
        state=schedule.state,  # type: ignore[arg-type]
        created=to_text(schedule.created),
        next=None if schedule.next_at is None else to_text(schedule.next_at),
        policy={name: getattr(policy, name) for name in Policy.__slots__},
        policy_digest=schedule.policy_digest,
        last=view_period(newest[0]) if newest else None,
    )


@router.post(
    "/schedules",
    status_code=201,
    summary="Add a schedule",
    responses=responses(400, 401, 403, 409, 413, 415, 422),
    openapi_extra={**json_content(NewSchedule), "parameters": [IDEMPOTENCY_PARAMETER]},
)
def add(
    response: Response,
    service: TheService,
    caller: Writer,
    key: IdempotencyKey,
    body: Annotated[NewSchedule, json_body(NewSchedule)],
) -> ScheduleView:
    """Audit a provider's new requests again and again, in the logs that come in between."""
    policy = parse_policy(body.policy, body.provider)
    timetable = Timetable(body.cron, body.zone)
    told = hashlib.sha256(b"schedule" + body.model_dump_json().encode()).digest()
    with service.store.transaction(writes=True) as connection:
        made, _ = audits.once(
            connection,
            caller.tenant_id,
            key,
            told,
            lambda: schedules.add(connection, caller.tenant_id, body.provider, timetable, policy).id,
        )
        view = _view(connection, schedules.find(connection, caller.tenant_id, made))
    response.headers["Location"] = f"/v1/schedules/{made}"
    return view


@router.get("/schedules", summary="List schedules", responses=responses(401, 403, 422))
def listed(
    request: Request,
    response: Response,
    service: TheService,
    caller: Reader,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> SchedulePage:
    """In order of making; those that were removed are left out."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = schedules.listed(connection, caller.tenant_id, after=after, limit=limit + 1)
        page, following = page_of(request, response, found, limit)
        return SchedulePage(items=[_view(connection, schedule) for schedule in page], next=following)


@router.get("/schedules/{schedule_id}", summary="Look at a schedule", responses=responses(401, 403, 404))
def look(service: TheService, caller: Reader, schedule_id: str) -> ScheduleView:
    """With what its policy says, and its newest period."""
    with service.store.transaction() as connection:
        return _view(connection, schedules.find(connection, caller.tenant_id, schedule_id))


@router.get(
    "/schedules/{schedule_id}/periods", summary="List periods", responses=responses(401, 403, 404, 422)
)
def periods(
    request: Request,
    response: Response,
    service: TheService,
    caller: Reader,
    schedule_id: str,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> PeriodPage:
    """Newest first, each with the verdict on the provider as of its end."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        schedules.find(connection, caller.tenant_id, schedule_id)
        found = slots.listed(connection, caller.tenant_id, schedule_id, after=after, limit=limit + 1)
    page, following = page_of(request, response, found, limit)
    return PeriodPage(items=[view_period(slot) for slot in page], next=following)


_MOVES: dict[str, Any] = {"responses": responses(401, 403, 404, 409)}


@router.post("/schedules/{schedule_id}/pause", summary="Pause a schedule", **_MOVES)
def pause(service: TheService, caller: Writer, schedule_id: str) -> ScheduleView:
    """It fires no more; a period under way is finished. Again is the same as once."""
    return _moved(service, caller.tenant_id, schedule_id, schedules.pause)


@router.post("/schedules/{schedule_id}/resume", summary="Resume a schedule", **_MOVES)
def resume(service: TheService, caller: Writer, schedule_id: str) -> ScheduleView:
    """From its next slot on; what came in meanwhile is part of that period."""
    return _moved(service, caller.tenant_id, schedule_id, schedules.resume)


@router.delete("/schedules/{schedule_id}", status_code=204, summary="Remove a schedule", **_MOVES)
def remove(service: TheService, caller: Writer, schedule_id: str) -> None:
    """Its periods and the provider's standing stay."""
    _moved(service, caller.tenant_id, schedule_id, schedules.remove)


@router.post("/schedules/{schedule_id}/run", status_code=202, summary="Run a schedule now", **_MOVES)
def run(service: TheService, caller: Writer, schedule_id: str) -> PeriodView:
    """End a period at this moment, beside the timetable."""
    with service.store.transaction(writes=True) as connection:
        made = schedules.run_now(connection, caller.tenant_id, schedule_id)
        return view_period(slots.find(connection, caller.tenant_id, made))


def _moved(
    service: TheService, tenant_id: str, schedule_id: str, move: Callable[[Connection, str, str], Schedule]
) -> ScheduleView:
    with service.store.transaction(writes=True) as connection:
        return _view(connection, move(connection, tenant_id, schedule_id))
