"""Audits: the list, one audit with its verdict first, its requests, its receipts."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from auditor.api.log import receipt_of
from auditor.api.pages.evidence_plot import HEIGHT, LEFT, RIGHT, TOP, WIDTH, evidence_plot
from auditor.api.pages.excerpts import excerpt_of
from auditor.api.pages.layout import download, render
from auditor.api.pages.visits import Form, ReadingVisit, WritingVisit
from auditor.api.paging import Cursor, cursor_behind, decode_cursor
from auditor.api.service import Service, TheService
from auditor.disputes import disputes
from auditor.service import audits, exhibits
from auditor.service.errors import NotFinishedError, RequestInvalidError
from auditor.service.standing import OUTCOMES, STATES

router = APIRouter(include_in_schema=False)
Kind = Literal["submission", "verdict"]
Choice = Annotated[str, Query(max_length=200)]
_PAGE = 50
_LAST = ("done", "dead", "quarantined", "cancelled")


@router.get("/audits")
def listed(
    request: Request,
    service: TheService,
    visit: ReadingVisit,
    state: Choice = "",
    outcome: Choice = "",
    provider: Choice = "",
    cursor: Cursor = None,
) -> Response:
    """Newest first; an empty choice is any."""
    for name, choice, known in (("state", state, STATES), ("outcome", outcome, OUTCOMES)):
        if choice and choice not in known:
            raise RequestInvalidError("not one of the choices", where=name)
    tenant = visit.key.tenant_id
    with service.store.transaction() as connection:
        found = audits.listed(
            connection,
            tenant,
            after=decode_cursor(cursor),
            limit=_PAGE + 1,
            state=state or None,
            outcome=outcome or None,
            provider=provider.replace("\0", "") or None,
        )
        page = found[:_PAGE]
        subjects = exhibits.subjects(connection, tenant, [audit.id for audit in page])
    chosen = {"state": state, "outcome": outcome, "provider": provider}
    following = cursor_behind(found, _PAGE)
    return render(
        request,
        "audits",
        visit,
        audits=page,
        subjects=subjects,
        chosen=chosen,
        states=STATES,
        outcomes=OUTCOMES,
        further=cursor is not None,
        following=following and {**{k: v for k, v in chosen.items() if v}, "cursor": following},
    )


@router.get("/audits/{audit_id}")
def look(
    request: Request,
    service: TheService,
    visit: ReadingVisit,
    audit_id: str,
    hidden: Literal["shown", "left-out"] = "left-out",
) -> Response:
    """The verdict first; progress while there is none."""
    tenant = visit.key.tenant_id
    with service.store.transaction() as connection:
        audit = audits.find(connection, tenant, audit_id)
        events = audits.events(connection, tenant, audit_id, after=0, limit=10_000)
        exhibit = exhibits.find(connection, tenant, audit_id)
        body = audits.verdict(connection, tenant, audit_id)[0] if audit.outcome else None
        contested = disputes.of_audit(connection, tenant, audit_id)
    if body is None:
        return render(request, "audit_open", visit, audit=audit, events=events, ended=audit.state in _LAST)
    exhibit = exhibit or {"subjects": [], "curves": [], "excerpts": []}
    return render(
        request,
        "audit",
        visit,
        audit=audit,
        events=events,
        verdict=json.loads(body),
        subjects=exhibit["subjects"],
        curves=exhibit["curves"],
        plot=evidence_plot(exhibit["curves"], audit.options.alpha),
        box={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP},
        excerpts=[excerpt_of(e, show_hidden=hidden == "shown") for e in exhibit["excerpts"]],
        disputes=contested,
        overturned=any(dispute.outcome == "upheld" for dispute in contested),
        hidden_shown=hidden == "shown",
        receipts=[_receipt(service, tenant, audit_id, kind) for kind in ("verdict", "submission")],
        log_key=service.log_key,
    )


@router.get("/audits/{audit_id}/progress")
def progress(request: Request, service: TheService, visit: ReadingVisit, audit_id: str) -> Response:
    """The part of an open audit's page that changes; tells the page to load anew once the audit has ended."""
    with service.store.transaction() as connection:
        audit = audits.find(connection, visit.key.tenant_id, audit_id)
        events = audits.events(connection, visit.key.tenant_id, audit_id, after=0, limit=10_000)
    part = render(request, "progress", visit, audit=audit, events=events)
    if audit.state in _LAST:
        part.headers["HX-Refresh"] = "true"
    return part


@router.get("/audits/{audit_id}/requests")
def requests(
    request: Request,
    service: TheService,
    visit: ReadingVisit,
    audit_id: str,
    after: Annotated[int, Query(ge=-1, lt=1 << 31)] = -1,
) -> Response:
    """Request by request, in the log's order."""
    tenant = visit.key.tenant_id
    with service.store.transaction() as connection:
        audit = audits.find(connection, tenant, audit_id)
        found = audits.evidence(connection, tenant, audit_id, after=after, limit=_PAGE + 1)
    rows = [(number, json.loads(body)) for number, body in found[:_PAGE]]
    following = rows[-1][0] if len(found) > _PAGE else None
    return render(request, "requests", visit, audit=audit, rows=rows, after=after, following=following)


@router.post("/audits/{audit_id}/cancel")
def cancel(service: TheService, visit: WritingVisit, audit_id: str, _fields: Form) -> Response:
    """Once it returns, no worker writes about the audit any more."""
    with service.store.transaction(writes=True) as connection:
        audits.cancel(connection, visit.key.tenant_id, audit_id)
    return RedirectResponse(f"/audits/{audit_id}", 303)


@router.get("/audits/{audit_id}/verdict.json")
def verdict_file(service: TheService, visit: ReadingVisit, audit_id: str) -> Response:
    """The very bytes whose digest was logged."""
    with service.store.transaction() as connection:
        body, _ = audits.verdict(connection, visit.key.tenant_id, audit_id)
    return Response(body, headers={"Cache-Control": "no-store"}, media_type="application/json")


@router.get("/audits/{audit_id}/receipts/{kind}")
def receipt_file(service: TheService, visit: ReadingVisit, audit_id: str, kind: Kind) -> Response:
    """A C2SP tlog-proof."""
    raw = receipt_of(service, visit.key.tenant_id, audit_id, kind)
    return download(raw, f"{kind}.tlog-proof", "text/plain; charset=utf-8")


@router.get("/audits/{audit_id}/entries/{kind}")
def entry_file(service: TheService, visit: ReadingVisit, audit_id: str, kind: Kind) -> Response:
    """The very bytes of the leaf."""
    with service.store.transaction() as connection:
        _, body = audits.log_entry(connection, visit.key.tenant_id, audit_id, kind)
    return download(body, f"{kind}.entry.json", "application/json")


def _receipt(service: Service, tenant_id: str, audit_id: str, kind: Kind) -> dict[str, Any]:
    """An entry and, once a signed tree holds it, its receipt."""
    with service.store.transaction() as connection:
        position, entry = audits.log_entry(connection, tenant_id, audit_id, kind)
    try:
        receipt = receipt_of(service, tenant_id, audit_id, kind).decode()
    except NotFinishedError:
        receipt = ""
    return {"kind": kind, "position": position, "entry": entry.decode(), "receipt": receipt}
