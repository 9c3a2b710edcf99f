"""The transparency log over HTTP: checkpoint, tiles (C2SP tlog-tiles), a receipt for a tenant's own audit.

Checkpoint and tiles are public: they hold digests and random identifiers only.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from fastapi import APIRouter, Response

from auditor.api.problems import responses
from auditor.api.service import Reader, Service, TheService
from auditor.errors import LogStateError
from auditor.service import audits
from auditor.service.errors import NotFinishedError, NotFoundError, NotReadyError
from auditor.transparency_log import TransparencyLog

router = APIRouter(tags=["log"])
_GROUP = r"(?:x[0-9]{3}/)*[0-9]{3}"
_TILE = re.compile(rf"(?:[0-9]|[1-5][0-9]|6[0-3]|entries)/{_GROUP}(?:\.p/[1-9][0-9]{{0,2}})?")
_FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}


CHECKPOINT_EXAMPLE = f"auditor.localhost/log\n4\n{'A' * 43}=\n\n\u2014 auditor.localhost/log {'A' * 90}==\n"
PROOF_TYPE = "text/plain; charset=utf-8"
_TEXT = {"schema": {"type": "string"}}
PROOF: dict[int | str, Any] = {
    200: {
        "description": "A C2SP tlog-proof",
        "content": {"text/plain": _TEXT | {"example": "c2sp.org/tlog-proof@v1\nindex 3\n..."}},
    }
}
ENTRY: dict[int | str, Any] = {
    200: {
        "description": "`auditor.entry/v1`, the bytes of the leaf",
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {"schema": "auditor.entry/v1", "kind": "verdict", "tenant": "ten_0193f6b05d3a"},
            }
        },
    }
}
_CHECKPOINT: dict[int | str, Any] = {
    200: {
        "description": "A C2SP checkpoint",
        "content": {"text/plain": _TEXT | {"example": CHECKPOINT_EXAMPLE}},
    }
}
_VKEY: dict[int | str, Any] = {
    200: {
        "description": "A vkey",
        "content": {"text/plain": _TEXT | {"example": f"auditor.localhost/reports+4ab6f7b1+AU{'A' * 42}\n"}},
    }
}
_TILE_BYTES: dict[int | str, Any] = {
    200: {
        "description": "The tile",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get(
    "/log/checkpoint",
    summary="The newest signed head",
    response_class=Response,
    responses={**_CHECKPOINT, **responses(404)},
)
def checkpoint(service: TheService) -> Response:
    """A C2SP checkpoint."""
    try:
        raw = (service.log / "checkpoint").read_bytes()
    except OSError:
        raise NotFoundError("nothing was signed yet") from None
    return Response(raw, headers={"Cache-Control": "no-cache"}, media_type="text/plain; charset=utf-8")


@router.get(
    "/log/report-key",
    summary="The key that signs reports",
    response_class=Response,
    responses={**_VKEY, **responses(503)},
)
def report_key(service: TheService) -> Response:
    """A vkey. Compare it with what the auditor publishes elsewhere: this service could lie about it."""
    if service.report_signer is None:
        raise NotReadyError("this service has no report key")
    return Response(f"{service.report_signer.public.vkey}\n", media_type="text/plain; charset=utf-8")


@router.get(
    "/log/tile/{path:path}",
    summary="A tile or entry bundle",
    response_class=Response,
    responses={**_TILE_BYTES, **responses(404)},
)
def tile(service: TheService, path: str) -> Response:
    """Never changes."""
    if _TILE.fullmatch(path) is None:
        raise NotFoundError("no such tile")
    try:
        raw = (service.log / "tile" / path).read_bytes()
    except OSError:
        raise NotFoundError("no such tile") from None
    return Response(raw, headers=_FOREVER, media_type="application/octet-stream")


@router.get(
    "/v1/audits/{audit_id}/receipts/{kind}",
    summary="Proof that the log holds an entry",
    response_class=Response,
    responses={**PROOF, **responses(401, 403, 404, 409, 422)},
)
def receipt(
    service: TheService, caller: Reader, audit_id: str, kind: Literal["submission", "verdict"]
) -> Response:
    """A C2SP tlog-proof; `audit log verify` checks it offline with the entry's bytes."""
    raw = receipt_of(service, caller.tenant_id, audit_id, kind)
    return Response(raw, media_type=PROOF_TYPE)


def receipt_of(
    service: Service, tenant_id: str, audit_id: str, kind: Literal["submission", "verdict"]
) -> bytes:
    """The receipt of an audit's entry.

    Raises:
        NotFoundError: the tenant has no such audit.
        NotFinishedError: there is no such entry, or no signed tree holds it yet.
    """
    with service.store.transaction() as connection:
        position, _ = audits.log_entry(connection, tenant_id, audit_id, kind)
    return receipt_at(service, position)


def receipt_at(service: Service, position: int | None) -> bytes:
    """The proof for the entry in this place.

    Raises:
        NotFinishedError: no signed tree holds it yet.
    """
    try:
        log = TransparencyLog(service.log)
        _, head = log.checkpoint()
    except LogStateError:
        head = None
    if head is None or position is None or position >= head.size:
        raise NotFinishedError("the entry is not in a signed tree yet", retry_after=3)
    return log.prove(position).serialize()


@router.get(
    "/v1/audits/{audit_id}/entries/{kind}",
    summary="What the log holds of an audit",
    response_class=Response,
    responses={**ENTRY, **responses(401, 403, 404, 409, 422)},
)
def entry(
    service: TheService, caller: Reader, audit_id: str, kind: Literal["submission", "verdict"]
) -> Response:
    """The very bytes of the leaf."""
    with service.store.transaction() as connection:
        _, body = audits.log_entry(connection, caller.tenant_id, audit_id, kind)
    return Response(body, media_type="application/json")
