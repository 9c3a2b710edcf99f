"""Disputes: verdicts that were contested, and what was said. Filing and answering is the API's."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from auditor.api.pages.layout import render
from auditor.api.pages.visits import ReadingVisit
from auditor.api.paging import Cursor, cursor_behind, decode_cursor
from auditor.api.service import TheService
from auditor.disputes import disputes

router = APIRouter(include_in_schema=False)
_PAGE = 50


@router.get("/disputes")
def listed(request: Request, service: TheService, visit: ReadingVisit, cursor: Cursor = None) -> Response:
    """Newest first."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = disputes.listed(connection, visit.key.tenant_id, after=after, limit=_PAGE + 1)
    page = found[:_PAGE]
    following = cursor_behind(found, _PAGE)
    return render(request, "disputes", visit, disputes=page, following=following)


@router.get("/disputes/{dispute_id}")
def look(request: Request, service: TheService, visit: ReadingVisit, dispute_id: str) -> Response:
    """What was said, in order."""
    with service.store.transaction() as connection:
        dispute = disputes.find(connection, visit.key.tenant_id, dispute_id)
    return render(request, "dispute", visit, dispute=dispute)
