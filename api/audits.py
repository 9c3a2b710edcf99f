"""Audits over HTTP: submit, look, follow, cancel, and read verdict and evidence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from auditor.api.bodies import (
    LOG_TYPES,
    log_body,
    media_type_of,
    parsed,
    read_body,
    refuse_unknown_query,
    schema_of,
)
from auditor.api.bodies import MOST_JSON_BYTES as MOST_JSON
from auditor.api.caching import immutable, unchanged
from auditor.api.paging import Cursor, Limit, decode_cursor, page_of
from auditor.api.problems import responses
from auditor.api.service import (
    IDEMPOTENCY_PARAMETER,
    IdempotencyKey,
    Reader,
    Submitter,
    TheService,
    Writer,
    bearer,
    idempotency_key,
    service_of,
    submission,
)
from auditor.api.views import (
    AuditOrder,
    AuditPage,
    AuditView,
    EvidencePage,
    Label,
    SpanPage,
    State,
    view_audit,
    view_spans,
)
from auditor.input_formats import InputFormat
from auditor.service import audits, signatures, tenants
from auditor.service.audits import AuditOptions
from auditor.service.containers import check_log
from auditor.service.parquet_check import check_inline_log
from auditor.service.submissions import InlineLog, Order, lies_in_rows
from auditor.trace_streams import container_of

router = APIRouter(tags=["audits"])
_EXAMPLE_LINE = '{"schema": "auditor.trace/v1", "id": "req-1", "model": "demo", "...": "..."}\n'
_EXAMPLE_VERDICT = {"schema": "auditor.result/v1", "verdict": "consistent", "alpha": 0.001, "e_value": 0.02}
_ORDER_BODY = {
    "parameters": [IDEMPOTENCY_PARAMETER],
    "requestBody": {
        "required": True,
        "description": "A log of at most 8 MiB as it is (JSON Lines, plain, gzip or zstd; or Parquet) and "
        "the query's options; or, as JSON, an audit of a log that was uploaded before.",
        "content": {
            "application/json": {"schema": schema_of(AuditOrder)},
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in LOG_TYPES},
            "application/jsonl": {"schema": {"type": "string"}, "example": _EXAMPLE_LINE},
        },
    },
}


async def _order_body(request: Request) -> bytes:
    if media_type_of(request) == "application/json":
        return bytes(await read_body(request, MOST_JSON))
    return await log_body(request)


class _Direct(APIRoute):
    """Resolves what `submit` depends on by itself, in the order in which it is declared.

    The framework takes as long to find out what that is as the rest of a submission takes.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Answer a submission."""
        fields = self.dependant.query_params

        async def handle(request: Request) -> Response:
            await refuse_unknown_query(request)
            service = await service_of(request)
            submitter = await submission(request, service, await bearer(request))
            key = await idempotency_key(request)
            body = await _order_body(request)
            values, wrong = request_params_to_args(fields, request.query_params)
            if wrong:
                raise RequestValidationError(wrong)
            return await submit(request, service, submitter, key, body, **values)

        return handle


_submitting = APIRouter(route_class=_Direct)


@_submitting.post(
    "/audits",
    status_code=202,
    response_model=AuditView,
    summary="Submit an audit",
    responses=responses(400, 401, 403, 404, 409, 413, 415, 422, 429),
    openapi_extra=_ORDER_BODY,
)
async def submit(
    request: Request,
    service: TheService,
    submitter: Submitter,
    key: IdempotencyKey,
    body: Annotated[bytes, Depends(_order_body)],
    name: Annotated[Label, Query(description="What to call the log.")] = "log",
    alpha: Annotated[float, Query(gt=0.0, lt=1.0)] = 0.001,
    input_format: InputFormat = "auto",
    engine_recipe: Annotated[Label | None, Query()] = None,
    noise: Annotated[Label | None, Query()] = None,
    served_model: Annotated[Label | None, Query()] = None,
    provider: Annotated[Label | None, Query(description="Whom the log is of; reports go by it.")] = None,
) -> Response:
    """Answers when the order is on disk. The same Idempotency-Key and request order it once.

    With an API key; or signed (RFC 9421) by a key that was registered with `POST /v1/keys`.
    """
    if submitter.signed is not None:
        signatures.check_body(submitter.message, body)
    options = AuditOptions(alpha, input_format, engine_recipe, noise, served_model)
    log: InlineLog | str
    if media_type_of(request) == "application/json":
        said = parsed(AuditOrder, body)
        options, provider, log = said.options(), said.provider, said.log
    elif lies_in_rows(body, service.blobs) and container_of(body) == "plain":
        check_log([body])
        log = InlineLog.of(body, name, service.blobs)
    else:  # takes its time
        await run_in_threadpool(check_inline_log, body)
        log = await run_in_threadpool(InlineLog.of, body, name, service.blobs)
    place = json.dumps([request.url.path, sorted(request.query_params.multi_items())]).encode()
    told = hashlib.sha256(place + media_type_of(request).encode() + hashlib.sha256(body).digest()).digest()
    order = Order(submitter.key, key, told, options, provider or "", log, submitter.signed)
    taken = await service.submissions.submit_soon(order)
    headers = {
        "Location": f"{request.url.path}/{taken.audit.id}",
        "RateLimit": f'"submissions";r={int(taken.left)}',
        "RateLimit-Policy": f'"submissions";q={int(tenants.SUBMISSIONS_AT_ONCE)}',
    }
    if taken.again:
        headers["Idempotent-Replayed"] = "true"
    # Written here: the framework would check and copy it once more.
    view = view_audit(taken.audit).model_dump_json()
    return Response(view, 202, headers, "application/json")


router.include_router(_submitting)


@router.get("/audits", summary="List audits", responses=responses(401, 403, 422))
def listed(
    request: Request,
    response: Response,
    service: TheService,
    caller: Reader,
    limit: Limit = 50,
    cursor: Cursor = None,
    state: Annotated[State | None, Query()] = None,
) -> AuditPage:
    """Newest first."""
    after = decode_cursor(cursor)
    with service.store.transaction() as connection:
        found = audits.listed(connection, caller.tenant_id, after=after, limit=limit + 1, state=state)
    page, following = page_of(request, response, found, limit)
    return AuditPage(items=[view_audit(audit) for audit in page], next=following)


@router.get(
    "/audits/{audit_id}",
    response_model=AuditView,
    summary="Look at an audit",
    responses=responses(401, 403, 404),
)
def look(request: Request, response: Response, service: TheService, caller: Reader, audit_id: str) -> Any:
    """Has an ETag: `If-None-Match` makes polling cheap."""
    with service.store.transaction() as connection:
        view = view_audit(audits.find(connection, caller.tenant_id, audit_id))
    tag = hashlib.sha256(view.model_dump_json().encode()).hexdigest()[:32]
    response.headers["Cache-Control"] = "private, no-cache"
    return unchanged(request, response, tag) or view


@router.post("/audits/{audit_id}/cancel", summary="Cancel an audit", responses=responses(401, 403, 404, 409))
def cancel(service: TheService, caller: Writer, audit_id: str) -> AuditView:
    """Once it returns, no worker writes about the audit any more. Again is the same as once."""
    with service.store.transaction(writes=True) as connection:
        audits.cancel(connection, caller.tenant_id, audit_id)
        return view_audit(audits.find(connection, caller.tenant_id, audit_id))


@router.get(
    "/audits/{audit_id}/verdict",
    summary="Read a verdict",
    response_class=Response,
    responses={
        200: {
            "description": "`auditor.result/v1` without its traces, the very bytes whose digest was logged",
            "content": {"application/json": {"schema": {"type": "object"}, "example": _EXAMPLE_VERDICT}},
        },
        **responses(401, 403, 404, 409),
    },
)
def verdict(request: Request, response: Response, service: TheService, caller: Reader, audit_id: str) -> Any:
    """Never changes: its ETag is its digest."""
    with service.store.transaction() as connection:
        body, digest = audits.verdict(connection, caller.tenant_id, audit_id)
    return unchanged(request, response, digest) or immutable(body, digest)


@router.get(
    "/audits/{audit_id}/evidence", summary="Read evidence", responses=responses(401, 403, 404, 409, 422)
)
def evidence(
    service: TheService,
    caller: Reader,
    audit_id: str,
    limit: Limit = 50,
    after: Annotated[int, Query(ge=-1, lt=1 << 31, description="Number of the last trace seen.")] = -1,
    verdict: Annotated[Literal["consistent", "inconsistent", "inconclusive"] | None, Query()] = None,
) -> EvidencePage:
    """Trace by trace; a page may hold fewer than `limit` where `verdict` picks some."""
    with service.store.transaction() as connection:
        found = audits.evidence(connection, caller.tenant_id, audit_id, after=after, limit=limit + 1)
    page = [json.loads(body) for _, body in found[:limit]]
    items = [trace for trace in page if verdict in (None, trace["verdict"])]
    return EvidencePage(items=items, next=found[limit - 1][0] if len(found) > limit else None)


@router.get(
    "/audits/{audit_id}/spans", summary="Read suspicious spans", responses=responses(401, 403, 404, 409, 422)
)
def spans(
    service: TheService,
    caller: Reader,
    audit_id: str,
    limit: Limit = 50,
    after: Annotated[int, Query(ge=-1, lt=1 << 31, description="Number of the last trace seen.")] = -1,
) -> SpanPage:
    """Where in its outputs the evidence lies, trace by trace; those without any are left out.

    A page looks at `limit` traces and may hold fewer. Places only: no text, hidden or not.
    """
    with service.store.transaction() as connection:
        found = audits.evidence(connection, caller.tenant_id, audit_id, after=after, limit=limit + 1)
    items = [view_spans(number, json.loads(body)) for number, body in found[:limit]]
    following = found[limit - 1][0] if len(found) > limit else None
    return SpanPage(items=[item for item in items if item.spans], next=following)
