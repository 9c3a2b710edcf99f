"""Providers and models over HTTP: who sells what, with which keys it signs, and how it has fared."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from auditor.api.bodies import json_body, json_content
from auditor.api.caching import IF_MATCH_PARAMETER, seen_version, unchanged
from auditor.api.paging import Cursor, Limit, decode_cursor, page_of
from auditor.api.problems import responses
from auditor.api.service import IDEMPOTENCY_PARAMETER, IdempotencyKey, Reader, TheService, Truster
from auditor.api.views import Body, Digest, Label, Next, Time, Vkeys
from auditor.service import audits, models, providers
from auditor.service.clock import to_text
from auditor.service.errors import VersionStaleError
from auditor.service.models import Model
from auditor.service.providers import Provider

router = APIRouter()
_MAKES: dict[str, Any] = {"status_code": 201, "responses": responses(400, 401, 403, 409, 413, 415, 422)}


class NewProvider(Body):
    """A provider to be registered."""

    name: Label = Field(examples=["acme"], description="As its logs and schedules name it; for good.")
    vkeys: Vkeys = Field(
        default=[],
        description="Commitment keys: public keys that it signs commitments with. (Keys that sign "
        "submissions are API keys: `POST /v1/keys` with a `public_key`.)",
    )


class ProviderChange(Body):
    """What is to be changed of a provider; what is left out stays."""

    vkeys: Vkeys | None = Field(default=None, description="All its commitment keys from now on.")


class ProviderView(BaseModel):
    """A provider."""

    id: str = Field(examples=["prv_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    name: str = Field(examples=["acme"])
    created: Time
    vkeys: Vkeys = Field(description="Commitment keys.")


class ProviderPage(BaseModel):
    """Providers in order of making."""

    items: list[ProviderView]
    next: Next


class StandingView(BaseModel):
    """What is on record about a provider."""

    audits: dict[str, int] = Field(
        description="Audits that name it, by verdict; `overturned` where a dispute was upheld.",
        examples=[{"consistent": 12, "inconsistent": 1, "inconclusive": 3, "overturned": 0}],
    )
    without_verdict: int = Field(examples=[1])
    commitments: int = Field(examples=[40])
    unfinished: int = Field(description="Commitments without a final head.", examples=[0])
    challenges: dict[str, int] = Field(
        description="By state: `open`, `held`, `failed`, `withheld`.",
        examples=[{"open": 1, "held": 7, "failed": 0, "withheld": 0}],
    )


class NewModel(Body):
    """A model to be registered."""

    name: Label = Field(examples=["demo"])
    model_digest: Digest = Field(description="Of the weights.")
    tokenizer_digest: Digest
    template_digest: Digest | None = None


class ModelView(BaseModel):
    """A model that is sold."""

    id: str = Field(examples=["mdl_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    name: str = Field(examples=["demo"])
    created: Time
    model_digest: Digest
    tokenizer_digest: Digest
    template_digest: Digest | None


class ModelPage(BaseModel):
    """Models in order of making."""

    items: list[ModelView]
    next: Next


def _view(provider: Provider) -> ProviderView:
    return ProviderView(
        id=provider.id, name=provider.name, created=to_text(provider.created), vkeys=list(provider.vkeys)
    )


def _view_model(model: Model) -> ModelView:
    return ModelView(
        id=model.id,
        name=model.name,
        created=to_text(model.created),
        model_digest=model.model_digest,
        tokenizer_digest=model.tokenizer_digest,
        template_digest=model.template_digest,
    )


@router.post(
    "/providers",
    tags=["providers"],
    summary="Register a provider",
    openapi_extra={**json_content(NewProvider), "parameters": [IDEMPOTENCY_PARAMETER]},
    **_MAKES,
)
def create_provider(
    response: Response,
    service: TheService,
    caller: Truster,
    key: IdempotencyKey,
    body: Annotated[NewProvider, json_body(NewProvider)],
) -> ProviderView:
    """Names are unique, and a key is one provider's: what is signed with it is that provider's word."""
    told = hashlib.sha256(b"provider" + body.model_dump_json().encode()).digest()
    with service.store.transaction(writes=True) as connection:
        provider_id, _ = audits.once(
            connection,
            caller.tenant_id,
            key,
            told,
            lambda: providers.create(connection, caller.tenant_id, body.name, body.vkeys),
        )
        made = providers.find(connection, caller.tenant_id, provider_id)
    response.headers["Location"] = f"/v1/providers/{made.id}"
    return _view(made)


@router.get("/providers", tags=["providers"], summary="List providers", responses=responses(401, 403, 422))
def list_providers(
    request: Request,
    response: Response,
    service: TheService,
    caller: Reader,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> ProviderPage:
    """In order of making."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = providers.listed(connection, caller.tenant_id, after=after, limit=limit + 1)
    page, following = page_of(request, response, found, limit)
    return ProviderPage(items=[_view(provider) for provider in page], next=following)


@router.get(
    "/providers/{provider_id}",
    response_model=ProviderView,
    tags=["providers"],
    summary="Look at a provider",
    responses=responses(401, 403, 404),
)
def look_at_provider(
    request: Request, response: Response, service: TheService, caller: Reader, provider_id: str
) -> Any:
    """Its ETag is what a change has to name."""
    with service.store.transaction() as connection:
        found = providers.find(connection, caller.tenant_id, provider_id)
    response.headers["Cache-Control"] = "private, no-cache"
    return unchanged(request, response, str(found.version)) or _view(found)


@router.patch(
    "/providers/{provider_id}",
    tags=["providers"],
    summary="Replace a provider's commitment keys",
    responses=responses(400, 401, 403, 404, 409, 412, 413, 415, 422, 428),
    openapi_extra={**json_content(ProviderChange), "parameters": [IF_MATCH_PARAMETER]},
)
def change_provider(
    request: Request,
    response: Response,
    service: TheService,
    caller: Truster,
    provider_id: str,
    body: Annotated[ProviderChange, json_body(ProviderChange)],
) -> ProviderView:
    """What was signed with a key that is gone is no longer accepted: to rotate, add the new one first."""
    version = seen_version(request)
    with service.store.transaction(writes=True) as connection:
        found = providers.find(connection, caller.tenant_id, provider_id)
        if version != str(found.version):
            raise VersionStaleError("the provider was changed meanwhile", where="If-Match")
        providers.change(connection, caller.tenant_id, provider_id, found.version, vkeys=body.vkeys)
        found = providers.find(connection, caller.tenant_id, provider_id)
    response.headers["ETag"] = f'"{found.version}"'
    return _view(found)


@router.get(
    "/providers/{provider_id}/standing",
    tags=["providers"],
    summary="How a provider has fared",
    responses=responses(401, 403, 404),
)
def standing(service: TheService, caller: Reader, provider_id: str) -> StandingView:
    """Counts of what is on record. No score is made of them."""
    with service.store.transaction() as connection:
        found = providers.standing(connection, caller.tenant_id, provider_id)
    return StandingView(**{name: getattr(found, name) for name in StandingView.model_fields})


@router.post(
    "/models",
    tags=["models"],
    summary="Register a model",
    openapi_extra={**json_content(NewModel), "parameters": [IDEMPOTENCY_PARAMETER]},
    **_MAKES,
)
def create_model(
    response: Response,
    service: TheService,
    caller: Truster,
    key: IdempotencyKey,
    body: Annotated[NewModel, json_body(NewModel)],
) -> ModelView:
    """The digests of what is sold. Commitments that declare others are refused."""
    told = hashlib.sha256(b"model" + body.model_dump_json().encode()).digest()

    def make() -> str:
        return models.create(
            connection,
            caller.tenant_id,
            body.name,
            model_digest=body.model_digest,
            tokenizer_digest=body.tokenizer_digest,
            template_digest=body.template_digest,
        )

    with service.store.transaction(writes=True) as connection:
        model_id, _ = audits.once(connection, caller.tenant_id, key, told, make)
        made = models.find(connection, caller.tenant_id, model_id)
    response.headers["Location"] = f"/v1/models/{made.id}"
    return _view_model(made)


@router.get("/models", tags=["models"], summary="List models", responses=responses(401, 403, 422))
def list_models(
    request: Request,
    response: Response,
    service: TheService,
    caller: Reader,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> ModelPage:
    """In order of making."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = models.listed(connection, caller.tenant_id, after=after, limit=limit + 1)
    page, following = page_of(request, response, found, limit)
    return ModelPage(items=[_view_model(model) for model in page], next=following)


@router.get(
    "/models/{model_id}",
    response_model=ModelView,
    tags=["models"],
    summary="Look at a model",
    responses=responses(401, 403, 404),
)
def look_at_model(
    request: Request, response: Response, service: TheService, caller: Reader, model_id: str
) -> Any:
    """Never changes."""
    with service.store.transaction() as connection:
        found = models.find(connection, caller.tenant_id, model_id)
    return unchanged(request, response, found.id) or _view_model(found)
