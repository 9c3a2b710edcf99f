"""Challenges and openings over HTTP: the tenant draws, its provider opens, what came of it is evidence."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from auditor.api.bodies import json_body, json_content, media_type_of, read_body
from auditor.api.caching import immutable, unchanged
from auditor.api.log import CHECKPOINT_EXAMPLE, ENTRY, PROOF, receipt_at
from auditor.api.paging import Cursor, Limit, decode_cursor, page_of
from auditor.api.problems import responses
from auditor.api.service import (
    IDEMPOTENCY_PARAMETER,
    IdempotencyKey,
    Reader,
    ReaderOrProvider,
    Service,
    TheService,
    Writer,
    WriterOrProvider,
)
from auditor.api.views import Body, FailureView, Label, Next, Time, Whole
from auditor.errors import LogStateError, TraceSyntaxError
from auditor.service import audits, challenges, commitments, log_entries
from auditor.service.challenges import SECRET_BYTES, Draw, KeptChallenge
from auditor.service.clock import to_text
from auditor.service.errors import BodyMalformedError, MediaTypeError, NotFinishedError
from auditor.service.tenants import ApiKey
from auditor.strict_json import load_object
from auditor.transparency_log import TransparencyLog

router = APIRouter(tags=["challenges"])
MOST_OPENING_BYTES = 16 << 20
MOST_SECONDS = 30 * 86_400
_HASH = "A" * 43 + "="
_CHALLENGE = {
    "schema": "auditor.token-challenge/v1",
    "request": "req-1",
    "head": _HASH,
    "nonce": "A" * 86 + "==",
    "count": 1,
    "prefix": False,
    "blocks": [7],
}
_OPENING = {
    "schema": "auditor.token-opening/v1",
    "request": "req-1",
    "head": _HASH,
    "nonce": "A" * 86 + "==",
    "leaves": [{"index": 112, "token": 5, "salt": "A" * 22 + "==", "embedding": ""}],
    "proof": [_HASH],
}
_RESULT = {
    "schema": "auditor.challenge-result/v1",
    "challenge": "chl_019acb7d3f4b7d0f8e6a0c1b2d3e4f50",
    "commitment": "cmt_019acb7d3f4b7d0f8e6a0c1b2d3e4f50",
    "provider": "prv_019acb7d3f4b7d0f8e6a0c1b2d3e4f50",
    "request": "req-1",
    "challenge_digest": "sha256:" + "0" * 64,
    "opening_digest": "sha256:" + "0" * 64,
    "state": "held",
    "found": {"seen": 16, "hidden": 180, "blocks": [7], "canonical_excess": 0},
    "error": None,
}
ChallengeState = Literal["open", "held", "failed", "withheld"]


class ChallengeOrder(Body):
    """What is to be drawn."""

    commitment: Label = Field(examples=["cmt_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    blocks: Whole = Field(default=1, ge=1, le=1024, description="Blocks to draw.")
    prefix: bool = Field(
        default=False, description="All before the last block drawn, too: a replay needs it."
    )
    max_share: float = Field(
        default=1.0, ge=0.0, le=1.0, description="Of the hidden tokens, earlier challenges included."
    )
    seconds: Whole = Field(default=86_400, ge=1, le=MOST_SECONDS, description="Given to answer.")


class ChallengeView(BaseModel):
    """A challenge and where it stands."""

    id: str = Field(examples=["chl_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    commitment: str = Field(examples=["cmt_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    provider: str = Field(examples=["prv_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    request: str = Field(examples=["req-1"])
    created: Time
    deadline: Time
    state: ChallengeState = Field(description="`failed` and `withheld` speak against the provider.")
    challenge: dict[str, Any] = Field(
        description="`auditor.token-challenge/v1`. The nonce is 32 random bytes and the SHA-256 of the "
        "checkpoint.",
        examples=[_CHALLENGE],
    )
    checkpoint: str = Field(
        description="Signed head of the log that it was drawn after.", examples=[CHECKPOINT_EXAMPLE]
    )
    finished: Time | None
    error: FailureView | None = Field(description="Why it failed.")
    erased: Time | None = Field(
        default=None,
        description="When its response's log was erased, and with it what was opened; what is opened later "
        "is checked and not kept.",
    )


class ChallengePage(BaseModel):
    """Challenges, newest first."""

    items: list[ChallengeView]
    next: Next


def view_challenge(kept: KeptChallenge) -> ChallengeView:
    """A challenge as the API shows it."""
    error = None if kept.result is None else json.loads(kept.result)["error"]
    return ChallengeView(
        id=kept.id,
        commitment=kept.commitment_id,
        provider=kept.provider_id,
        request=kept.request,
        created=to_text(kept.created),
        deadline=to_text(kept.deadline),
        state=kept.state,  # type: ignore[arg-type]
        challenge=json.loads(kept.body),
        checkpoint=kept.checkpoint,
        finished=None if kept.finished is None else to_text(kept.finished),
        error=None if error is None else FailureView(**error),
        erased=None if kept.erased is None else to_text(kept.erased),
    )


def _signed_log(service: Service) -> tuple[bytes, int]:
    try:
        note, head = TransparencyLog(service.log).checkpoint()
    except LogStateError:
        raise NotFinishedError("the log was not signed yet", retry_after=3) from None
    return note.serialize(), head.size


@router.post(
    "/challenges",
    status_code=201,
    summary="Draw a challenge",
    responses=responses(400, 401, 403, 404, 409, 413, 415, 422),
    openapi_extra={**json_content(ChallengeOrder), "parameters": [IDEMPOTENCY_PARAMETER]},
)
def draw(
    response: Response,
    service: TheService,
    caller: Writer,
    key: IdempotencyKey,
    body: Annotated[ChallengeOrder, json_body(ChallengeOrder)],
) -> ChallengeView:
    """Of a complete response whose final head is in a signed tree already, about two seconds after it came.

    Neither side chooses: blocks follow from that head, 32 random bytes, and that tree's signed head.
    """
    told = hashlib.sha256(b"challenge" + body.model_dump_json().encode()).digest()
    how = Draw(body.blocks, body.prefix, body.max_share, body.seconds)

    def make() -> str:
        kept = commitments.find(connection, caller.tenant_id, body.commitment)
        service.checker.prepare(kept.head)
        checkpoint, size = _signed_log(service)
        return challenges.draw(connection, kept, checkpoint, size, secrets.token_bytes(SECRET_BYTES), how)

    with service.store.transaction(writes=True) as connection:
        made, _ = audits.once(connection, caller.tenant_id, key, told, make)
        kept = challenges.find(connection, caller.tenant_id, made)
    response.headers["Location"] = f"/v1/challenges/{made}"
    return view_challenge(kept)


@router.get("/challenges", summary="List challenges", responses=responses(401, 403, 422))
def list_challenges(
    request: Request,
    response: Response,
    service: TheService,
    caller: ReaderOrProvider,
    limit: Limit = 50,
    cursor: Cursor = None,
    state: Annotated[ChallengeState | None, Query()] = None,
    commitment: Annotated[Label | None, Query(description="Of this commitment only.")] = None,
) -> ChallengePage:
    """Newest first; a provider's key sees its own."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = challenges.listed(
            connection,
            caller.tenant_id,
            after=after,
            limit=limit + 1,
            provider_id=caller.provider_id,
            state=state,
            commitment_id=commitment,
        )
    page, following = page_of(request, response, found, limit)
    return ChallengePage(items=[view_challenge(kept) for kept in page], next=following)


@router.get("/challenges/{challenge_id}", summary="Look at a challenge", responses=responses(401, 403, 404))
def look(service: TheService, caller: ReaderOrProvider, challenge_id: str) -> ChallengeView:
    """Where it stands."""
    return view_challenge(_find(service, caller, challenge_id))


def _find(service: Service, caller: ApiKey, challenge_id: str) -> KeptChallenge:
    with service.store.transaction() as connection:
        return challenges.find(connection, caller.tenant_id, challenge_id, caller.provider_id)


async def _opening(request: Request) -> dict[str, Any]:
    if media_type_of(request) != "application/json":
        raise MediaTypeError("an opening is application/json", where="Content-Type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("JSON is not read compressed", where="Content-Encoding")
    raw = await read_body(request, MOST_OPENING_BYTES)
    try:
        return load_object(bytes(raw), where="body", max_bytes=MOST_OPENING_BYTES)
    except TraceSyntaxError as error:
        raise BodyMalformedError(error.message, where="body") from None


@router.post(
    "/challenges/{challenge_id}/openings",
    summary="Open what was challenged",
    responses=responses(400, 401, 403, 404, 409, 413, 415, 422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "`auditor.token-opening/v1`, as `audit open` makes it; to 16 MiB.",
            "content": {"application/json": {"schema": {"type": "object"}, "example": _OPENING}},
        }
    },
)
def open_(
    service: TheService,
    caller: WriterOrProvider,
    challenge_id: str,
    value: Annotated[dict[str, Any], Depends(_opening)],
) -> ChallengeView:
    """By the provider. Checked as `audit check` does; kept if it holds, or contradicts what was signed.

    One that is no answer to this challenge is refused, and another may be sent until the deadline.
    """
    challenges.answer(
        service.store, service.checker, caller.tenant_id, challenge_id, value, caller.provider_id
    )
    return view_challenge(_find(service, caller, challenge_id))


@router.get(
    "/challenges/{challenge_id}/opening",
    summary="Read what was opened",
    response_class=Response,
    responses={
        200: {
            "description": "`auditor.token-opening/v1`",
            "content": {"application/json": {"schema": {"type": "object"}, "example": _OPENING}},
        },
        **responses(401, 403, 404, 409, 410),
    },
)
def opened(
    request: Request, response: Response, service: TheService, caller: Reader, challenge_id: str
) -> Any:
    """Hidden tokens: for the tenant's own keys only. Never changes, but goes with the log that it is of."""
    with service.store.transaction() as connection:
        body, digest = challenges.opening(connection, caller.tenant_id, challenge_id)
    answer = unchanged(request, response, digest) or immutable(body, digest)
    answer.headers["Cache-Control"] = "private, no-cache"  # it may be erased
    return answer


@router.get(
    "/challenges/{challenge_id}/result",
    summary="Read how a challenge ended",
    response_class=Response,
    responses={
        200: {
            "description": "`auditor.challenge-result/v1`, the very bytes whose digest was logged",
            "content": {"application/json": {"schema": {"type": "object"}, "example": _RESULT}},
        },
        **responses(401, 403, 404, 409),
    },
)
def result(
    request: Request, response: Response, service: TheService, caller: ReaderOrProvider, challenge_id: str
) -> Any:
    """Never changes."""
    body = _find(service, caller, challenge_id).result
    if body is None:
        raise NotFinishedError("the challenge is open")
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    return unchanged(request, response, digest) or immutable(body, digest)


@router.get(
    "/challenges/{challenge_id}/receipts/{kind}",
    summary="Proof that the log holds a challenge or its result",
    response_class=Response,
    responses={**PROOF, **responses(401, 403, 404, 409, 422)},
)
def receipt(
    service: TheService,
    caller: ReaderOrProvider,
    challenge_id: str,
    kind: Literal["challenge", "result"],
) -> Response:
    """A C2SP tlog-proof, for the entry of the same name."""
    return Response(
        receipt_at(service, _entry(service, caller, challenge_id, kind)[0]),
        media_type="text/plain; charset=utf-8",
    )


@router.get(
    "/challenges/{challenge_id}/entries/{kind}",
    summary="What the log holds of a challenge",
    response_class=Response,
    responses={**ENTRY, **responses(401, 403, 404, 409, 422)},
)
def entry(
    service: TheService,
    caller: ReaderOrProvider,
    challenge_id: str,
    kind: Literal["challenge", "result"],
) -> Response:
    """The very bytes of the leaf."""
    _, body = _entry(service, caller, challenge_id, kind)
    return Response(body, media_type="application/json")


def _entry(service: Service, caller: ApiKey, challenge_id: str, kind: str) -> tuple[int | None, bytes]:
    with service.store.transaction() as connection:
        asked = challenges.find(connection, caller.tenant_id, challenge_id, caller.provider_id)
        found = log_entries.find(connection, challenge_id, kind)
    if found is None:
        raise NotFinishedError(f"there is no {kind} entry: the challenge is {asked.state}")
    return found
