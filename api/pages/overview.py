"""The first page: how each provider stands, and what happened last."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from auditor.api.pages.layout import render
from auditor.api.pages.visits import ReadingVisit
from auditor.api.service import TheService
from auditor.service import audits, exhibits, providers

router = APIRouter(include_in_schema=False)
_NEWEST = 6


@router.get("/")
def overview(request: Request, service: TheService, visit: ReadingVisit) -> Response:
    """Standing by provider and model; the newest audits."""
    tenant = visit.key.tenant_id
    with service.store.transaction() as connection:
        standings = exhibits.standings(connection, tenant)
        newest = audits.listed(connection, tenant, after=None, limit=_NEWEST)
        answers = providers.answered(connection, tenant)
        subjects = exhibits.subjects(connection, tenant, [audit.id for audit in newest])
    return render(
        request, "overview", visit, standings=standings, answers=answers, audits=newest, subjects=subjects
    )
