"""The transparency log over HTTP: checkpoint, tiles (C2SP tlog-tiles), a receipt for a tenant's own audit.

Checkpoint and tiles are public: they hold digests and random identifiers only.
"""

from __future__ import annotations

import re
from typing import Literal

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


@router.get("/log/checkpoint", summary="The newest signed head", responses=responses(404))
def checkpoint(service: TheService) -> Response:
    """A C2SP checkpoint."""
    try:
        raw = (service.log / "checkpoint").read_bytes()
    except OSError:
        raise NotFoundError("nothing was signed yet") from None
    return Response(raw, headers={"Cache-Control": "no-cache"}, media_type="text/plain; charset=utf-8")


@router.get("/log/report-key", summary="The key that signs reports", responses=responses(503))
def report_key(service: TheService) -> Response:
    """A vkey. Compare it with what the auditor publishes elsewhere: this service could lie about it."""
    if service.report_signer is None:
        raise NotReadyError("this service has no report key")
    return Response(f"{service.report_signer.public.vkey}\n", media_type="text/plain; charset=utf-8")


@router.get("/log/tile/{path:path}", summary="A tile or entry bundle", responses=responses(404))
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
    responses=responses(401, 403, 404, 409, 422),
)
def receipt(
    service: TheService, caller: Reader, audit_id: str, kind: Literal["submission", "verdict"]
) -> Response:
    """A C2SP tlog-proof; `audit log verify` checks it offline with the entry's bytes."""
    raw = receipt_of(service, caller.tenant_id, audit_id, kind)
    return Response(raw, media_type="text/plain; charset=utf-8")


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
    responses=responses(401, 403, 404, 409, 422),
)
def entry(
    service: TheService, caller: Reader, audit_id: str, kind: Literal["submission", "verdict"]
) -> Response:
    """The very bytes of the leaf."""
    with service.store.transaction() as connection:
        _, body = audits.log_entry(connection, caller.tenant_id, audit_id, kind)
    return Response(body, media_type="application/json")
