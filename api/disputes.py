"""Disputes over HTTP: file, answer, resolve, look."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from auditor.api.bodies import json_body, json_content
from auditor.api.paging import Cursor, Limit, decode_cursor, page_of
from auditor.api.problems import responses
from auditor.api.service import (
    IDEMPOTENCY_PARAMETER,
    Arbiter,
    IdempotencyKey,
    Reader,
    TheService,
    Writer,
)
from auditor.api.views import Body, Label, Time
from auditor.disputes import disputes
from auditor.disputes.disputes import Dispute
from auditor.disputes.rules import MOST_EVIDENCE, MOST_STATEMENT, Said
from auditor.service import audits
from auditor.service.clock import to_text

router = APIRouter(tags=["disputes"])
_AUDIT = "aud_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"


class StatementBody(Body):
    """What somebody says in a dispute."""

    by: Label = Field(examples=["Jo Doe, acme"], description="Who says it.")
    statement: str = Field(
        examples=["the log is of another endpoint"],
        min_length=1,
        max_length=MOST_STATEMENT,
        pattern=r"^[^\x00]*[^\x00-\x20\s][^\x00]*$",
        description="Not of blanks alone.",
    )
    evidence: list[Label] = Field(
        default=[],
        max_length=MOST_EVIDENCE,
        examples=[[f"{_AUDIT}/3"]],
        description="Ids: `AUDIT/N` is a request of the audit, anything else a name.",
    )

    def said(self) -> Said:
        """As the library has it."""
        return Said(self.by, self.statement, tuple(self.evidence))


class NewDispute(StatementBody):
    """A dispute to be filed."""

    audit: Label = Field(examples=[_AUDIT])


class Resolution(StatementBody):
    """How a dispute ends; `upheld` says that the provider was right."""

    outcome: Literal["upheld", "rejected", "withdrawn"]


class StatementView(BaseModel):
    """A line of a dispute, and the subject of its entry in the log."""

    kind: Literal["filed", "answered", "resolved"]
    by: str = Field(examples=["provider"])
    statement: str = Field(examples=["the log is of another endpoint"])
    evidence: list[str] = Field(examples=[[]])
    at: Time
    entry: str = Field(examples=["dsp_019acb7d3f4b7d0f8e6a0c1b2d3e4f50/1"])


class DisputeView(BaseModel):
    """A dispute about an audit's verdict."""

    id: str = Field(examples=["dsp_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    audit: str = Field(examples=["aud_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    provider: str = Field(examples=["acme"])
    state: Literal["filed", "answered", "resolved"]
    outcome: Literal["upheld", "rejected", "withdrawn"] | None
    created: Time
    changed: Time
    statements: list[StatementView]


class DisputePage(BaseModel):
    """Disputes, newest first, without what was said."""

    items: list[DisputeView]
    next: str | None = Field(examples=[None])


def _view(dispute: Dispute) -> DisputeView:
    return DisputeView.model_validate(
        {
            "id": dispute.id,
            "audit": dispute.audit_id,
            "provider": dispute.provider,
            "state": dispute.state,
            "outcome": dispute.outcome,
            "created": to_text(dispute.created),
            "changed": to_text(dispute.changed),
            "statements": [
                {
                    "kind": one.kind,
                    "by": one.said.actor,
                    "statement": one.said.statement,
                    "evidence": list(one.said.evidence),
                    "at": to_text(one.created),
                    "entry": f"{dispute.id}/{one.sequence}",
                }
                for one in dispute.statements
            ],
        }
    )


@router.post(
    "/disputes",
    status_code=201,
    summary="File a dispute",
    responses=responses(400, 401, 403, 404, 409, 413, 415, 422),
    openapi_extra={**json_content(NewDispute), "parameters": [IDEMPOTENCY_PARAMETER]},
)
def file(
    response: Response,
    service: TheService,
    caller: Writer,
    key: IdempotencyKey,
    body: Annotated[NewDispute, json_body(NewDispute)],
) -> DisputeView:
    """Contest the verdict of an audit."""
    told = hashlib.sha256(b"dispute" + body.model_dump_json().encode()).digest()
    with service.store.transaction(writes=True) as connection:
        made, _ = audits.once(
            connection,
            caller.tenant_id,
            key,
            told,
            lambda: disputes.file(connection, caller.tenant_id, body.audit, body.said()).id,
        )
        found = disputes.find(connection, caller.tenant_id, made)
    response.headers["Location"] = f"/v1/disputes/{made}"
    return _view(found)


@router.get("/disputes", summary="List disputes", responses=responses(401, 403, 422))
def listed(
    request: Request,
    response: Response,
    service: TheService,
    caller: Reader,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> DisputePage:
    """Newest first."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = disputes.listed(connection, caller.tenant_id, after=after, limit=limit + 1)
    page, following = page_of(request, response, found, limit)
    return DisputePage(items=[_view(dispute) for dispute in page], next=following)


@router.get("/disputes/{dispute_id}", summary="Look at a dispute", responses=responses(401, 403, 404))
def look(service: TheService, caller: Reader, dispute_id: str) -> DisputeView:
    """With everything said."""
    with service.store.transaction() as connection:
        return _view(disputes.find(connection, caller.tenant_id, dispute_id))


_MOVES: dict[str, Any] = {"responses": responses(400, 401, 403, 404, 409, 413, 415, 422)}


@router.post(
    "/disputes/{dispute_id}/answer",
    summary="Answer in a dispute",
    openapi_extra=json_content(StatementBody),
    **_MOVES,
)
def answer(
    service: TheService,
    caller: Arbiter,
    dispute_id: str,
    body: Annotated[StatementBody, json_body(StatementBody)],
) -> DisputeView:
    """As often as it takes, until it is resolved."""
    with service.store.transaction(writes=True) as connection:
        return _view(disputes.answer(connection, caller.tenant_id, dispute_id, body.said()))


@router.post(
    "/disputes/{dispute_id}/resolve",
    summary="Resolve a dispute",
    openapi_extra=json_content(Resolution),
    **_MOVES,
)
def resolve(
    service: TheService,
    caller: Arbiter,
    dispute_id: str,
    body: Annotated[Resolution, json_body(Resolution)],
) -> DisputeView:
    """For good. Upheld, the audit's evidence no longer counts: not in reports, not in the standing."""
    with service.store.transaction(writes=True) as connection:
        found = disputes.resolve(connection, caller.tenant_id, dispute_id, body.outcome, body.said())
    return _view(found)
