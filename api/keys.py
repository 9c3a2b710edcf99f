"""Tenants and keys over HTTP."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import Connection

from auditor.api.bodies import json_body, json_content
from auditor.api.paging import Cursor, Limit, decode_cursor, page_of
from auditor.api.problems import responses
from auditor.api.service import KeyKeeper, Operator, TheService
from auditor.api.views import (
    KeyPage,
    KeyView,
    MadeKey,
    NewKey,
    NewTenant,
    Retention,
    TenantPage,
    TenantView,
    view_key,
    view_tenant,
)
from auditor.service import tenants
from auditor.service.errors import ScopeMissingError
from auditor.service.signatures import check_public_key

router = APIRouter()
TenantBody = Annotated[NewTenant, json_body(NewTenant)]
RetentionBody = Annotated[Retention, json_body(Retention)]
KeyBody = Annotated[NewKey, json_body(NewKey)]
_REFUSALS: dict[str, Any] = {"responses": responses(400, 401, 403, 404, 409, 413, 415, 422)}


@router.post(
    "/tenants",
    status_code=201,
    tags=["tenants"],
    summary="Make a tenant",
    openapi_extra=json_content(NewTenant),
    **_REFUSALS,
)
def create_tenant(service: TheService, _caller: Operator, body: TenantBody) -> TenantView:
    """Names are unique."""
    with service.store.transaction(writes=True) as connection:
        made = tenants.create_tenant(
            connection, body.name, most_running=body.most_running, retention_days=body.retention_days
        )
    return view_tenant(made)


@router.put(
    "/tenants/{tenant_id}/retention",
    tags=["tenants"],
    summary="Set how long logs are kept",
    openapi_extra=json_content(Retention),
    **_REFUSALS,
)
def set_retention(service: TheService, _caller: Operator, tenant_id: str, body: RetentionBody) -> TenantView:
    """Holds for the logs that are there, too."""
    with service.store.transaction(writes=True) as connection:
        return view_tenant(tenants.set_retention(connection, tenant_id, body.retention_days))


@router.get("/tenants", tags=["tenants"], summary="List tenants", responses=responses(401, 403, 422))
def list_tenants(
    request: Request,
    response: Response,
    service: TheService,
    _caller: Operator,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> TenantPage:
    """In order of making."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = tenants.tenants(connection, after=after, limit=limit + 1)
    page, following = page_of(request, response, found, limit)
    return TenantPage(items=[view_tenant(tenant) for tenant in page], next=following)


@router.post(
    "/tenants/{tenant_id}/keys",
    status_code=201,
    tags=["tenants"],
    summary="Make a key for a tenant",
    openapi_extra=json_content(NewKey),
    **_REFUSALS,
)
def create_key_for(
    response: Response,
    service: TheService,
    _caller: Operator,
    tenant_id: str,
    body: KeyBody,
) -> MadeKey:
    """Its text is shown this once."""
    with service.store.transaction(writes=True) as connection:
        tenants.find_tenant(connection, tenant_id)
        key, text = _make(connection, tenant_id, body)
    return _shown_once(response, key, text)


@router.post(
    "/keys",
    status_code=201,
    tags=["keys"],
    summary="Make a key",
    openapi_extra=json_content(NewKey),
    **_REFUSALS,
)
def create_key(response: Response, service: TheService, caller: KeyKeeper, body: KeyBody) -> MadeKey:
    """Of the caller's tenant, with no scope that the caller lacks. Its text is shown this once.

    To rotate: make one, use it, revoke the old one.
    """
    require_no_more(caller, body.scopes)
    with service.store.transaction(writes=True) as connection:
        key, text = _make(connection, caller.tenant_id, body)
    return _shown_once(response, key, text)


@router.get("/keys", tags=["keys"], summary="List keys", responses=responses(401, 403, 422))
def list_keys(
    request: Request,
    response: Response,
    service: TheService,
    caller: KeyKeeper,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> KeyPage:
    """In order of making, the revoked too; never their secrets."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = tenants.keys(connection, caller.tenant_id, after=after, limit=limit + 1)
    page, following = page_of(request, response, found, limit)
    return KeyPage(items=[view_key(key) for key in page], next=following)


@router.delete("/keys/{key_id}", tags=["keys"], summary="Revoke a key", responses=responses(401, 403, 404))
def revoke_key(service: TheService, caller: KeyKeeper, key_id: str) -> KeyView:
    """At once and for good; again is the same as once."""
    with service.store.transaction(writes=True) as connection:
        return view_key(tenants.revoke_key(connection, caller.tenant_id, key_id))


def require_no_more(key: tenants.ApiKey, scopes: Collection[str]) -> None:
    """Raise where a key would give what it lacks.

    Raises:
        ScopeMissingError: it would.
    """
    more = sorted(set(scopes) & tenants.SCOPES.keys() - set(key.scopes))
    if more:
        raise ScopeMissingError(f"a key cannot give what it lacks: {', '.join(more)}", where="scopes")


def _make(connection: Connection, tenant_id: str, body: NewKey) -> tuple[tenants.ApiKey, str]:
    if body.public_key is not None:
        check_public_key(body.public_key)
    return tenants.create_key(
        connection, tenant_id, body.name, body.scopes, days=body.days, public_key=body.public_key
    )


def _shown_once(response: Response, key: tenants.ApiKey, text: str) -> MadeKey:
    response.headers["Cache-Control"] = "no-store"
    return MadeKey(**view_key(key).model_dump(), key=text or None)
