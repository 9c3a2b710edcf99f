"""Reports over HTTP: list, read as JSON or as a page, and fetch with all that proves it.

Schedules and `audit report make` make them; here they are read. All of it is immutable once it is there.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from auditor.api.caching import immutable, unchanged
from auditor.api.paging import Cursor, Limit, decode_cursor, page_of
from auditor.api.problems import responses
from auditor.api.service import Reader, TheService
from auditor.api.views import Label, ReportPage, view_report
from auditor.errors import LogStateError
from auditor.profiles import shipped_profiles
from auditor.reports import find_report, listed_reports
from auditor.reports.html import render_report
from auditor.reports.oscal import report_to_oscal
from auditor.reports.packing import Logs, make_pack
from auditor.service.errors import NotFinishedError, NotReadyError
from auditor.transparency_log import TransparencyLog

router = APIRouter(tags=["reports"])
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
}


@router.get("/reports", summary="List reports", responses=responses(401, 403, 422))
def listed(
    request: Request,
    response: Response,
    service: TheService,
    caller: Reader,
    limit: Limit = 50,
    cursor: Cursor = None,
    provider: Annotated[Label | None, Query(description="Only reports of this provider alone.")] = None,
) -> ReportPage:
    """Newest first."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = listed_reports(connection, caller.tenant_id, after=after, limit=limit + 1, provider=provider)
    page, following = page_of(request, response, found, limit)
    return ReportPage(items=[view_report(one) for one in page], next=following)


def _binary(kind: str, said: str, *more: int) -> dict[int | str, dict[str, Any]]:
    content = {kind: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"description": said, "content": content}, **responses(401, 403, 404, *more)}


@router.get(
    "/reports/{report_id}",
    summary="Read a report",
    response_class=Response,
    responses={
        200: {
            "description": "`auditor.report/v1`, the very bytes that are signed",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        **responses(401, 403, 404),
    },
)
def look(request: Request, response: Response, service: TheService, caller: Reader, report_id: str) -> Any:
    """Never changes: its ETag is its digest."""
    with service.store.transaction() as connection:
        stored, body, _ = find_report(connection, caller.tenant_id, report_id)
    return unchanged(request, response, stored.digest) or immutable(body, stored.digest)


@router.get(
    "/reports/{report_id}/html",
    summary="Read a report as a page",
    response_class=Response,
    responses=_binary("text/html", "One file: no script, no network"),
)
def html(service: TheService, caller: Reader, report_id: str) -> Response:
    """For people."""
    with service.store.transaction() as connection:
        stored, body, _ = find_report(connection, caller.tenant_id, report_id)
    page = render_report(json.loads(body), stored.digest)
    return Response(page, headers=_PAGE_HEADERS, media_type="text/html; charset=utf-8")


@router.get(
    "/reports/{report_id}/oscal",
    summary="Read a report as OSCAL assessment results",
    response_class=Response,
    responses=_binary("application/json", "OSCAL 1.2"),
)
def oscal(service: TheService, caller: Reader, report_id: str) -> Response:
    """For tools that collect those."""
    with service.store.transaction() as connection:
        stored, body, _ = find_report(connection, caller.tenant_id, report_id)
    return Response(report_to_oscal(json.loads(body), stored.digest), media_type="application/json")


@router.get(
    "/reports/{report_id}/pack",
    summary="Fetch a report with all that proves it",
    response_class=Response,
    responses=_binary("application/zip", "An evidence pack", 409, 422, 503),
)
def pack(
    service: TheService,
    caller: Reader,
    report_id: str,
    texts: Annotated[bool, Query(description="Put prompts, outputs and reproductions in.")] = False,
) -> Response:
    """`audit report verify` checks it offline; there is none until the log's signed tree holds the report."""
    with service.store.transaction() as connection:
        find_report(connection, caller.tenant_id, report_id)
    if service.report_signer is None:
        raise NotReadyError("this service has no report key")
    try:
        log = TransparencyLog(service.log)
        log.checkpoint()
    except LogStateError:
        raise NotFinishedError("nothing was signed yet", retry_after=3) from None
    shipped = {profile.id: profile for profile in shipped_profiles().values()}
    logs = Logs(service.blobs, lambda name: service.store.get_profile(name) or shipped.get(name))
    raw = make_pack(
        service.store, caller.tenant_id, report_id, log, service.report_signer, logs if texts else None
    )
    headers = {
        "Content-Disposition": f'attachment; filename="{report_id}.zip"',
        "ETag": f'"{hashlib.sha256(raw).hexdigest()}"',
    }
    return Response(raw, headers=headers, media_type="application/zip")
