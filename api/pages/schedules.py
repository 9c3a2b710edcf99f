"""Schedules: providers that are audited again and again, and what each period found."""

from __future__ import annotations

import math
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from auditor import errors
from auditor.api.bodies import validated
from auditor.api.pages.layout import render
from auditor.api.pages.visits import Fields, Form, ReadingVisit, Visit, WritingVisit
from auditor.api.paging import Cursor, cursor_behind, decode_cursor
from auditor.api.schedules import NewSchedule
from auditor.api.service import Service, TheService
from auditor.schedules import schedules, slots
from auditor.schedules.policy import parse_policy
from auditor.schedules.schedules import Schedule
from auditor.schedules.slots import Slot
from auditor.schedules.timetable import Timetable
from auditor.service.errors import ServiceError

router = APIRouter(include_in_schema=False)
_PAGE = 50
_LOG10 = math.log(10.0)
_POLICY = 'schema = "auditor.policy/v1"\nname = "default"\nversion = "1"\n'
_MOVES = {"pause": schedules.pause, "resume": schedules.resume, "remove": schedules.remove}


@router.get("/schedules")
def listed(request: Request, service: TheService, visit: ReadingVisit, cursor: Cursor = None) -> Response:
    """In order of making, each with its newest period."""
    return _page(request, service, visit, cursor=cursor)


@router.post("/schedules")
def add(request: Request, service: TheService, visit: WritingVisit, fields: Form) -> Response:
    """A new schedule; what cannot be used is said above the form."""
    names = ("provider", "cron", "zone", "policy")
    try:
        asked = validated(NewSchedule, {name: fields.one(name) for name in names})
        policy = parse_policy(asked.policy, asked.provider)
        timetable = Timetable(asked.cron, asked.zone)
        with service.store.transaction(writes=True) as connection:
            made = schedules.add(connection, visit.key.tenant_id, asked.provider, timetable, policy)
    except errors.AuditError as error:
        if isinstance(error, errors.StoreError):
            raise
        return _page(request, service, visit, fields=fields, problem=error)
    return RedirectResponse(f"/schedules/{made.id}", 303)


@router.get("/schedules/{schedule_id}")
def look(
    request: Request, service: TheService, visit: ReadingVisit, schedule_id: str, cursor: Cursor = None
) -> Response:
    """One schedule and its periods, newest first."""
    tenant = visit.key.tenant_id
    with service.store.transaction() as connection:
        schedule = schedules.find(connection, tenant, schedule_id)
        policy = schedules.find_policy(connection, tenant, schedule.policy_digest)
        found = slots.listed(connection, tenant, schedule_id, after=decode_cursor(cursor), limit=_PAGE + 1)
    page = found[:_PAGE]
    following = cursor_behind(found, _PAGE)
    return render(
        request,
        "schedule",
        visit,
        schedule=schedule,
        policy=policy,
        periods=[_period(slot) for slot in page],
        following=following,
    )


@router.post("/schedules/{schedule_id}/{move}")
def move(
    service: TheService,
    visit: WritingVisit,
    schedule_id: str,
    move: Literal["pause", "resume", "remove", "run"],
    _fields: Form,
) -> Response:
    """Pause, resume, remove, or end a period now."""
    with service.store.transaction(writes=True) as connection:
        if move == "run":
            schedules.run_now(connection, visit.key.tenant_id, schedule_id)
        else:
            _MOVES[move](connection, visit.key.tenant_id, schedule_id)
    return RedirectResponse("/schedules" if move == "remove" else f"/schedules/{schedule_id}", 303)


def _period(slot: Slot) -> dict[str, Any]:
    """A period, with the exponent of ten of its standing's e-value."""
    return {
        "slot": slot,
        "log10_e": None if slot.log_e is None else slot.log_e / _LOG10,
        "reasons": (slot.findings or {}).get("reasons", []),
    }


def _page(
    request: Request,
    service: Service,
    visit: Visit,
    *,
    cursor: str | None = None,
    fields: Fields | None = None,
    problem: errors.AuditError | None = None,
) -> Response:
    tenant = visit.key.tenant_id
    rows: list[tuple[Schedule, dict[str, Any] | None]] = []
    with service.store.transaction() as connection:
        found = schedules.listed(connection, tenant, after=decode_cursor(cursor), limit=_PAGE + 1)
        for schedule in found[:_PAGE]:
            newest = slots.listed(connection, tenant, schedule.id, after=None, limit=1)
            rows.append((schedule, _period(newest[0]) if newest else None))
    status = 200
    if problem is not None:
        status = problem.status if isinstance(problem, ServiceError) else 422
    given = {"provider": "", "cron": "0 6 * * 1", "zone": "UTC", "policy": _POLICY}
    if fields is not None:
        given = {name: fields.one(name) for name in given}
    return render(
        request,
        "schedules",
        visit,
        status=status,
        rows=rows,
        following=cursor_behind(found, _PAGE),
        problem=problem,
        given=given,
    )
