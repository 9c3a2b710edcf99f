"""A tenant's keys: make, see, revoke."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from auditor.api.bodies import validated
from auditor.api.keys import require_no_more
from auditor.api.pages.layout import render
from auditor.api.pages.visits import Form, KeyVisit, Visit
from auditor.api.paging import Cursor, cursor_behind, decode_cursor
from auditor.api.service import Service, TheService
from auditor.api.views import NewKey
from auditor.service import tenants
from auditor.service.errors import RequestInvalidError, ScopeMissingError

router = APIRouter(include_in_schema=False)
_PAGE = 50


@router.get("/keys")
def listed(request: Request, service: TheService, visit: KeyVisit, cursor: Cursor = None) -> Response:
    """In order of making, the revoked too."""
    return _page(request, service, visit, cursor=cursor)


@router.post("/keys")
def create(request: Request, service: TheService, visit: KeyVisit, fields: Form) -> Response:
    """The answer shows the key's text; nothing else ever does."""
    try:
        asked = validated(
            NewKey,
            {"name": fields.one("name"), "scopes": fields.every("scope"), "days": fields.number("days")},
        )
        require_no_more(visit.key, asked.scopes)
        with service.store.transaction(writes=True) as connection:
            made = tenants.create_key(
                connection, visit.key.tenant_id, asked.name, asked.scopes, days=asked.days
            )
    except (RequestInvalidError, ScopeMissingError) as error:
        return _page(request, service, visit, problem=error, status=error.status)
    return _page(request, service, visit, made=made, status=201)


@router.post("/keys/{key_id}/revoke")
def revoke(service: TheService, visit: KeyVisit, key_id: str, _fields: Form) -> Response:
    """At once and for good; sessions of the key end with it."""
    with service.store.transaction(writes=True) as connection:
        tenants.revoke_key(connection, visit.key.tenant_id, key_id)
    return RedirectResponse("/keys", 303)


def _page(
    request: Request,
    service: Service,
    visit: Visit,
    *,
    cursor: str | None = None,
    made: tuple[tenants.ApiKey, str] | None = None,
    problem: RequestInvalidError | ScopeMissingError | None = None,
    status: int = 200,
) -> Response:
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = tenants.keys(connection, visit.key.tenant_id, after=after, limit=_PAGE + 1)
    page = found[:_PAGE]
    following = cursor_behind(found, _PAGE)
    return render(
        request,
        "keys",
        visit,
        status=status,
        keys=page,
        following=following,
        made=made,
        problem=problem,
        scopes={name: said for name, said in tenants.SCOPES.items() if name in visit.key.scopes},
        most_days=tenants.MOST_KEY_DAYS,
    )
