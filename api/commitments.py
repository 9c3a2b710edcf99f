"""Commitments to hidden tokens over HTTP: heads come in as they are streamed, and the log is told of each."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from auditor.api.bodies import json_body, json_content
from auditor.api.log import ENTRY, PROOF, receipt_at
from auditor.api.paging import Cursor, Limit, decode_cursor, page_of
from auditor.api.problems import responses
from auditor.api.service import ReaderOrProvider, Service, TheService, WriterOrProvider
from auditor.api.views import Body, Digest, Label, Next, NextNumber, Time
from auditor.service import commitments, log_entries
from auditor.service.clock import to_text
from auditor.service.commitments import (
    MOST_HEADS,
    KeptCommitment,
    PostedHead,
    proof_from_text,
    proof_to_text,
)
from auditor.service.errors import NotFinishedError
from auditor.service.tenants import ApiKey

router = APIRouter(tags=["commitments"])
MOST_HEADS_BYTES = 1 << 20
_NOTE = (
    "auditor.token-head/v1\nrequest req-1\nsequence 0\nhidden 64\nvisible 0\nroot ...\n\n"
    "\u2014 acme.example/tokens StaJ+...\n"
)
Hash64 = Annotated[str, Field(min_length=44, max_length=44, examples=["A" * 43 + "="])]
Sequence = Annotated[int, Path(ge=0, lt=MOST_HEADS)]


class HeadBody(Body):
    """A signed head of a response's hidden tokens."""

    note: str = Field(max_length=4000, description="As it was streamed.", examples=[_NOTE])
    proof: list[Hash64] = Field(
        default=[], max_length=64, description="From the head before to this one; empty for the first."
    )
    received: Label | None = Field(
        default=None, description="When the client had it, ISO 8601.", examples=["2026-11-28T12:00:00+00:00"]
    )


class PostedHeads(Body):
    """Heads of one response, in order: from the first on, or going on where the last ones ended."""

    heads: list[HeadBody] = Field(min_length=1, max_length=200)


class CommitmentView(BaseModel):
    """What a provider signed about one response so far."""

    id: str = Field(examples=["cmt_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    provider: str = Field(examples=["prv_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    request: str = Field(examples=["req-1"])
    created: Time
    finished: Time | None = Field(description="When the final head came.")
    heads: int = Field(examples=[4])
    hidden: int = Field(description="Hidden tokens of the newest head.", examples=[180])
    visible: int = Field(description="Visible tokens of the newest head.", examples=[60])
    block: int = Field(description="Tokens that are opened together.", examples=[16])
    model_digest: Digest
    tokenizer_digest: Digest
    embedder: str = Field(examples=["none"])


class CommitmentPage(BaseModel):
    """Commitments, newest first."""

    items: list[CommitmentView]
    next: Next


class HeadView(BaseModel):
    """A head that was kept."""

    sequence: int = Field(examples=[0])
    note: str = Field(examples=[_NOTE])
    proof: list[Hash64]
    received: str | None = Field(examples=["2026-11-28T12:00:00+00:00"])
    created: Time


class HeadPage(BaseModel):
    """Heads in order."""

    items: list[HeadView]
    next: NextNumber


def view_commitment(kept: KeptCommitment) -> CommitmentView:
    """A commitment as the API shows it."""
    head = kept.head
    return CommitmentView(
        id=kept.id,
        provider=kept.provider_id,
        request=kept.request,
        created=to_text(kept.created),
        finished=None if kept.finished is None else to_text(kept.finished),
        heads=head.sequence + 1,
        hidden=head.hidden,
        visible=head.visible,
        block=head.block,
        model_digest=head.model,
        tokenizer_digest=head.tokenizer,
        embedder=head.embedder,
    )


@router.post(
    "/commitments",
    summary="Post signed heads",
    responses={
        201: {"model": CommitmentView, "description": "The first heads of a response"},
        **responses(400, 401, 403, 409, 413, 415, 422),
    },
    openapi_extra=json_content(PostedHeads),
)
def post_heads(
    response: Response,
    service: TheService,
    caller: WriterOrProvider,
    body: Annotated[PostedHeads, json_body(PostedHeads, MOST_HEADS_BYTES)],
) -> CommitmentView:
    """By the provider, or by a client that had them streamed. Signatures say whose they are.

    All are checked, all are kept, and the log is told of each; or nothing is. Again is the same as once.
    """
    posted = [
        PostedHead(
            head.note,
            proof_from_text(head.proof, f"heads.{n}.proof"),
            head.received,
        )
        for n, head in enumerate(body.heads)
    ]
    with service.store.transaction(writes=True) as connection:
        made, fresh = commitments.append(connection, caller.tenant_id, posted, caller.provider_id)
        kept = commitments.find(connection, caller.tenant_id, made)
    response.headers["Location"] = f"/v1/commitments/{made}"
    response.status_code = 201 if fresh else 200
    return view_commitment(kept)


@router.get("/commitments", summary="List commitments", responses=responses(401, 403, 422))
def list_commitments(
    request: Request,
    response: Response,
    service: TheService,
    caller: ReaderOrProvider,
    limit: Limit = 50,
    cursor: Cursor = None,
    response_id: Annotated[Label | None, Query(alias="request", description="Of this response only.")] = None,
) -> CommitmentPage:
    """Newest first; a provider's key sees its own."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = commitments.listed(
            connection,
            caller.tenant_id,
            after=after,
            limit=limit + 1,
            provider_id=caller.provider_id,
            request=response_id,
        )
    page, following = page_of(request, response, found, limit)
    return CommitmentPage(items=[view_commitment(kept) for kept in page], next=following)


@router.get(
    "/commitments/{commitment_id}", summary="Look at a commitment", responses=responses(401, 403, 404)
)
def look(service: TheService, caller: ReaderOrProvider, commitment_id: str) -> CommitmentView:
    """Where it stands."""
    with service.store.transaction() as connection:
        return view_commitment(
            commitments.find(connection, caller.tenant_id, commitment_id, caller.provider_id)
        )


@router.get(
    "/commitments/{commitment_id}/heads", summary="Read heads", responses=responses(401, 403, 404, 422)
)
def read_heads(
    service: TheService,
    caller: ReaderOrProvider,
    commitment_id: str,
    limit: Limit = 50,
    after: Annotated[int, Query(ge=-1, lt=MOST_HEADS, description="Number of the last head seen.")] = -1,
) -> HeadPage:
    """With the proofs between them: whoever has the provider's key can check them offline."""
    with service.store.transaction() as connection:
        found = commitments.heads(
            connection,
            caller.tenant_id,
            commitment_id,
            after=after,
            limit=limit + 1,
            provider_id=caller.provider_id,
        )
    items = [
        HeadView(
            sequence=head.sequence,
            note=head.note,
            proof=proof_to_text(head.proof),
            received=head.received,
            created=to_text(head.created),
        )
        for head in found[:limit]
    ]
    return HeadPage(items=items, next=items[-1].sequence if len(found) > limit else None)


@router.get(
    "/commitments/{commitment_id}/receipts/{sequence}",
    summary="Proof that the log holds a head",
    response_class=Response,
    responses={**PROOF, **responses(401, 403, 404, 409, 422)},
)
def receipt(
    service: TheService, caller: ReaderOrProvider, commitment_id: str, sequence: Sequence
) -> Response:
    """A C2SP tlog-proof, for the entry of the same number."""
    return Response(
        receipt_at(service, _entry(service, caller, commitment_id, sequence)[0]),
        media_type="text/plain; charset=utf-8",
    )


@router.get(
    "/commitments/{commitment_id}/entries/{sequence}",
    summary="What the log holds of a head",
    response_class=Response,
    responses={**ENTRY, **responses(401, 403, 404, 409, 422)},
)
def entry(service: TheService, caller: ReaderOrProvider, commitment_id: str, sequence: Sequence) -> Response:
    """The very bytes of the leaf; they name the SHA-256 of the head's text."""
    _, body = _entry(service, caller, commitment_id, sequence)
    return Response(body, media_type="application/json")


def _entry(service: Service, caller: ApiKey, commitment_id: str, sequence: int) -> tuple[int | None, bytes]:
    with service.store.transaction() as connection:
        commitments.find(connection, caller.tenant_id, commitment_id, caller.provider_id)
        found = log_entries.find(connection, commitment_id, f"head-{sequence}")
    if found is None:
        raise NotFinishedError("there is no head of that number yet")
    return found
