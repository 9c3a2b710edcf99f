"""Webhooks over HTTP."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from auditor.api.bodies import json_body, json_content
from auditor.api.paging import Cursor, Limit, decode_cursor, page_of
from auditor.api.problems import responses
from auditor.api.service import (
    IDEMPOTENCY_PARAMETER,
    HookKeeper,
    IdempotencyKey,
    Service,
    TheService,
)
from auditor.api.views import Body, Time
from auditor.service import audits, webhooks
from auditor.service.clock import to_text
from auditor.service.webhooks import MOST_URL_CHARACTERS, TYPES, Delivery, Webhook

router = APIRouter(tags=["webhooks"])


class NewWebhook(Body):
    """Where to be told."""

    url: str = Field(
        min_length=1,
        max_length=MOST_URL_CHARACTERS,
        pattern="^https://",
        examples=["https://example.com/hook"],
    )
    types: list[Annotated[str, Field(json_schema_extra={"enum": list(TYPES)})]] = Field(
        default=[],
        max_length=50,
        description=f"Of what; empty: of everything. {', '.join(TYPES)}",
        examples=[["audit.done"]],
    )


class WebhookView(BaseModel):
    """A webhook, and the Ed25519 key its messages are checked with (Standard Webhooks `v1a`)."""

    id: str = Field(examples=["whk_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    url: str = Field(examples=["https://example.com/hook"])
    types: list[str] = Field(examples=[["audit.done"]])
    public_key: str = Field(examples=["whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="])
    created: Time
    disabled: Time | None = Field(description="When it answered 410 Gone; nothing is sent there any more.")


class WebhookPage(BaseModel):
    """Webhooks in order of making."""

    items: list[WebhookView]
    next: str | None = Field(examples=[None])


class DeliveryView(BaseModel):
    """A message on its way; `id` is its `webhook-id` header."""

    id: str = Field(examples=["msg_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    type: str = Field(examples=["audit.done"])
    state: Literal["pending", "delivered", "failed"]
    created: Time
    attempts: int = Field(examples=[1])
    next: Time | None = Field(description="When it is tried again.")
    status: int | None = Field(examples=[200], description="Of the last answer.")
    error: str | None = Field(examples=[None])


class DeliveryPage(BaseModel):
    """Deliveries, newest first."""

    items: list[DeliveryView]
    next: str | None = Field(examples=[None])


def _view(service: Service, webhook: Webhook) -> WebhookView:
    return WebhookView(
        id=webhook.id,
        url=webhook.url,
        types=list(webhook.types),
        public_key=service.webhooks.public_key(webhook.id),
        created=to_text(webhook.created),
        disabled=None if webhook.disabled is None else to_text(webhook.disabled),
    )


def _view_delivery(delivery: Delivery) -> DeliveryView:
    values = {
        name: getattr(delivery, name) for name in ("id", "type", "state", "attempts", "status", "error")
    }
    following = to_text(delivery.next_at) if delivery.state == "pending" else None
    return DeliveryView(**values, created=to_text(delivery.created), next=following)


@router.post(
    "/webhooks",
    status_code=201,
    summary="Make a webhook",
    responses=responses(400, 401, 403, 409, 413, 415, 422),
    openapi_extra={**json_content(NewWebhook), "parameters": [IDEMPOTENCY_PARAMETER]},
)
def create(
    response: Response,
    service: TheService,
    caller: HookKeeper,
    key: IdempotencyKey,
    body: Annotated[NewWebhook, json_body(NewWebhook)],
) -> WebhookView:
    """Messages are signed as Standard Webhooks has it, and tried ten times over three days.

    They go over https to public addresses only; redirects are not followed, and any 2xx will do.
    """
    told = hashlib.sha256(b"webhook" + body.model_dump_json().encode()).digest()
    with service.store.transaction(writes=True) as connection:
        webhook_id, _ = audits.once(
            connection,
            caller.tenant_id,
            key,
            told,
            lambda: webhooks.create(connection, caller.tenant_id, body.url, body.types),
        )
        webhook = webhooks.find(connection, caller.tenant_id, webhook_id)
    response.headers["Location"] = f"/v1/webhooks/{webhook_id}"
    return _view(service, webhook)


@router.get("/webhooks", summary="List webhooks", responses=responses(401, 403, 422))
def listed(
    request: Request,
    response: Response,
    service: TheService,
    caller: HookKeeper,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> WebhookPage:
    """In order of making."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = webhooks.listed(connection, caller.tenant_id, after=after, limit=limit + 1)
    page, following = page_of(request, response, found, limit)
    return WebhookPage(items=[_view(service, webhook) for webhook in page], next=following)


@router.get("/webhooks/{webhook_id}", summary="Look at a webhook", responses=responses(401, 403, 404))
def look(service: TheService, caller: HookKeeper, webhook_id: str) -> WebhookView:
    """With the key its messages are checked with."""
    with service.store.transaction() as connection:
        return _view(service, webhooks.find(connection, caller.tenant_id, webhook_id))


@router.delete(
    "/webhooks/{webhook_id}",
    status_code=204,
    summary="Delete a webhook",
    responses=responses(401, 403, 404),
)
def remove(service: TheService, caller: HookKeeper, webhook_id: str) -> None:
    """With what was still to be delivered; an attempt under way may still arrive."""
    with service.store.transaction(writes=True) as connection:
        webhooks.remove(connection, caller.tenant_id, webhook_id)


@router.get(
    "/webhooks/{webhook_id}/deliveries", summary="List deliveries", responses=responses(401, 403, 404, 422)
)
def deliveries(
    request: Request,
    response: Response,
    service: TheService,
    caller: HookKeeper,
    webhook_id: str,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> DeliveryPage:
    """What was, is or will be sent, and what the receiver answered."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = webhooks.deliveries(connection, caller.tenant_id, webhook_id, after=after, limit=limit + 1)
    page, following = page_of(request, response, found, limit)
    return DeliveryPage(items=[_view_delivery(delivery) for delivery in page], next=following)
