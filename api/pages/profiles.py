"""Calibration profiles: what honest noise verdicts are measured against."""

from __future__ import annotations

from functools import cache

from fastapi import APIRouter, Request, Response

from auditor.api.pages.layout import render
from auditor.api.pages.visits import ReadingVisit
from auditor.api.paging import Cursor, cursor_behind, decode_cursor
from auditor.api.service import TheService
from auditor.profiles import shipped_profiles
from auditor.service import tenant_profiles
from auditor.store import StoredProfile

router = APIRouter(include_in_schema=False)
_PAGE = 20
"""Few: each profile is a file to be read whole, so that its signatures can be checked."""


@cache
def _shipped() -> list[StoredProfile]:
    """Those shipped with the program, once: an id is the digest of a whole profile."""
    found = sorted(shipped_profiles().values(), key=lambda p: p.key.provider_recipe)
    return [StoredProfile(p.id, p.key, p.created, p.honest_tokens) for p in found]


@router.get("/profiles")
def listed(request: Request, service: TheService, visit: ReadingVisit, cursor: Cursor = None) -> Response:
    """The tenant's own with who vouches for them; the operator's; those shipped for the demo model."""
    tenant = visit.key.tenant_id
    with service.store.transaction() as connection:
        found = tenant_profiles.listed(connection, tenant, after=decode_cursor(cursor), limit=_PAGE + 1)
        own = tenant_profiles.standings(connection, tenant, found[:_PAGE])
        trusted = tenant_profiles.trusted(connection, tenant)
    return render(
        request,
        "profiles",
        visit,
        own=own,
        trusted=trusted,
        following=cursor_behind(found, _PAGE),
        stored=service.store.profiles(),
        shipped=_shipped(),
    )
