"""Reports: what a period came to, and the very bytes that were logged."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request, Response

from auditor.api import reports
from auditor.api.pages.layout import render
from auditor.api.pages.visits import ReadingVisit
from auditor.api.paging import Cursor, cursor_behind, decode_cursor
from auditor.api.service import TheService
from auditor.reports.making import find_report, listed_reports, report_entry
from auditor.reports.words import headline, meaning

router = APIRouter(include_in_schema=False)
_PAGE = 50


@router.get("/reports")
def listed(request: Request, service: TheService, visit: ReadingVisit, cursor: Cursor = None) -> Response:
    """Newest first."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = listed_reports(connection, visit.key.tenant_id, after=after, limit=_PAGE + 1)
    page = found[:_PAGE]
    following = cursor_behind(found, _PAGE)
    return render(request, "reports", visit, reports=page, following=following)


@router.get("/reports/{report_id}")
def look(request: Request, service: TheService, visit: ReadingVisit, report_id: str) -> Response:
    """Headline, grade and the rule that limits it, provider by provider."""
    with service.store.transaction() as connection:
        stored, body, _ = find_report(connection, visit.key.tenant_id, report_id)
        position, _ = report_entry(connection, visit.key.tenant_id, report_id)
    document = json.loads(body)
    return render(
        request,
        "report",
        visit,
        stored=stored,
        report=document,
        position=position,
        headline=headline(document),
        rules={rule["id"]: rule["text"] for rule in document["grade"]["rules"]},
        providers=[(provider, meaning(provider, document)) for provider in document["providers"]],
    )


@router.get("/reports/{report_id}/report.json")
def file(service: TheService, visit: ReadingVisit, report_id: str) -> Response:
    """The very bytes whose digest was logged."""
    with service.store.transaction() as connection:
        _, body, _ = find_report(connection, visit.key.tenant_id, report_id)
    headers = {"Content-Disposition": 'attachment; filename="report.json"', "Cache-Control": "no-store"}
    return Response(body, headers=headers, media_type="application/json")


@router.get("/reports/{report_id}/page")
def page(service: TheService, visit: ReadingVisit, report_id: str) -> Response:
    """The report's own page: one file, to be printed or passed on."""
    return reports.html(service, visit.key, report_id)


@router.get("/reports/{report_id}/pack")
def pack(service: TheService, visit: ReadingVisit, report_id: str) -> Response:
    """The evidence pack, without texts; `audit report verify` checks it offline."""
    return reports.pack(service, visit.key, report_id)
