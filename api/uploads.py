"""Logs in parts over HTTP: announce, put parts in any order and again, complete."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field

from auditor.api.bodies import LOG_TYPES, json_body, json_content, log_body, read_body
from auditor.api.problems import responses
from auditor.api.service import IDEMPOTENCY_PARAMETER, IdempotencyKey, Service, TheService, Writer
from auditor.api.views import Body, Digest, Label, LogView, Whole, view_log
from auditor.service import audits, erasure, uploads
from auditor.service.errors import RequestInvalidError
from auditor.service.parquet_check import check_inline_log
from auditor.service.uploads import MOST_PART_BYTES, MOST_PARTS, MOST_UPLOAD_BYTES, Upload

router = APIRouter(tags=["uploads"])
_DIGEST_FIELD = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_DIGEST_PARAMETER = {
    "name": "Content-Digest",
    "in": "header",
    "required": True,
    "schema": {"type": "string"},
    "description": "RFC 9530, of this part.",
    "example": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
}


class NewUpload(Body):
    """A log to come in parts."""

    name: Label = Field(examples=["traffic.jsonl.zst"])
    digest: Digest = Field(description="Of all bytes.")
    bytes: Whole = Field(ge=1, le=MOST_UPLOAD_BYTES, examples=[25773])


class UploadView(BaseModel):
    """An upload and what is there of it."""

    id: str = Field(examples=["upl_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"])
    name: str = Field(examples=["traffic.jsonl.zst"])
    digest: Digest
    bytes: int = Field(examples=[25773])
    parts: dict[int, int] = Field(
        description="Number of each part that is there, and its bytes.", examples=[{"0": 25773}]
    )
    log: str | None = Field(
        description="The log, once complete.", examples=["log_019acb7d3f4b7d0f8e6a0c1b2d3e4f50"]
    )


@router.post(
    "/logs",
    status_code=201,
    summary="Hand in a log",
    responses=responses(400, 401, 403, 413, 415, 422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A log of at most 8 MiB, as it is.",
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in LOG_TYPES},
        }
    },
)
def keep(
    service: TheService,
    caller: Writer,
    body: Annotated[bytes, Depends(log_body)],
    name: Annotated[Label, Query(description="What to call the log.")] = "log",
) -> LogView:
    """For scheduled audits, or for an order that names it; the same bytes are one log."""
    check_inline_log(body)
    digest = service.blobs.put(body)
    with service.store.transaction(writes=True) as connection:
        erasure.keep(connection, digest, service.blobs, lambda: service.blobs.put(body))
        return view_log(audits.keep_log(connection, caller.tenant_id, digest, name, len(body)))


async def _part(request: Request) -> bytes | bytearray:
    return await read_body(request, MOST_PART_BYTES)


def _announced(request: Request) -> bytes:
    match = _DIGEST_FIELD.fullmatch(request.headers.get("content-digest", ""))
    try:
        return base64.b64decode(match[1] if match else "", validate=True) if match else b""
    except binascii.Error:
        return b""


def _view(service: Service, upload: Upload) -> UploadView:
    return UploadView(
        id=upload.id,
        name=upload.name,
        digest=upload.digest,
        bytes=upload.size,
        parts=uploads.parts(service.uploads, upload),
        log=upload.trace_log_id,
    )


def _find(service: Service, caller: Writer, upload_id: str) -> Upload:
    with service.store.transaction() as connection:
        return uploads.find(connection, caller.tenant_id, upload_id)


@router.post(
    "/uploads",
    status_code=201,
    summary="Announce a log in parts",
    responses=responses(400, 401, 403, 409, 413, 415, 422),
    openapi_extra={**json_content(NewUpload), "parameters": [IDEMPOTENCY_PARAMETER]},
)
def announce(
    response: Response,
    service: TheService,
    caller: Writer,
    key: IdempotencyKey,
    body: Annotated[NewUpload, json_body(NewUpload)],
) -> UploadView:
    """Then PUT parts of at most 8 MiB, numbered from 0 without a gap, in any order."""
    told = hashlib.sha256(b"upload" + body.model_dump_json().encode()).digest()
    with service.store.transaction(writes=True) as connection:
        upload_id, _ = audits.once(
            connection,
            caller.tenant_id,
            key,
            told,
            lambda: uploads.announce(connection, caller.tenant_id, body.name, body.digest, body.bytes),
        )
        upload = uploads.find(connection, caller.tenant_id, upload_id)
    response.headers["Location"] = f"/v1/uploads/{upload_id}"
    return _view(service, upload)


@router.get("/uploads/{upload_id}", summary="Look at an upload", responses=responses(401, 403, 404))
def look(service: TheService, caller: Writer, upload_id: str) -> UploadView:
    """Whoever was cut off sees which parts are there."""
    return _view(service, _find(service, caller, upload_id))


@router.put(
    "/uploads/{upload_id}/parts/{number}",
    status_code=204,
    summary="Put a part",
    responses=responses(401, 403, 404, 409, 413, 422),
    openapi_extra={
        "parameters": [_DIGEST_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
    },
)
def put_part(
    request: Request,
    service: TheService,
    caller: Writer,
    upload_id: str,
    number: Annotated[int, Path(ge=0, lt=MOST_PARTS)],
    data: Annotated[bytearray, Depends(_part)],
) -> None:
    """On disk when it answers; sent again, it replaces what was there."""
    upload = _find(service, caller, upload_id)
    digest = _announced(request)
    if not digest or not data:
        raise RequestInvalidError(
            "a part has bytes and their digest", where="Content-Digest", fix="sha-256=:BASE64:"
        )
    uploads.put_part(service.uploads, upload, number, data, digest)


@router.post(
    "/uploads/{upload_id}/complete",
    summary="Complete an upload",
    responses=responses(401, 403, 404, 409, 422),
)
def complete(service: TheService, caller: Writer, upload_id: str) -> LogView:
    """The log it makes, to be named in `POST /v1/audits`. Again is the same as once."""
    upload = _find(service, caller, upload_id)
    return view_log(uploads.complete(service.store, service.blobs, service.uploads, upload))
