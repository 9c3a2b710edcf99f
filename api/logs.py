"""Logs that were handed in: look at one, erase one."""

from __future__ import annotations

from fastapi import APIRouter

from auditor.api.problems import responses
from auditor.api.service import Reader, TheService, Writer
from auditor.api.views import LogView, view_log
from auditor.service import audits, erasure

router = APIRouter(tags=["logs"])


@router.get("/logs/{log_id}", summary="Look at a log", responses=responses(401, 403, 404))
def look(service: TheService, caller: Reader, log_id: str) -> LogView:
    """Its digest, and whether its bytes are still there."""
    with service.store.transaction() as connection:
        return view_log(audits.find_log(connection, caller.tenant_id, log_id))


@router.delete("/logs/{log_id}", summary="Erase a log", responses=responses(401, 403, 404, 503))
def erase(service: TheService, caller: Writer, log_id: str) -> LogView:
    """Its bytes are gone when it answers; again is the same as once.

    Its digest, verdicts, and the entries of the transparency log stay, so what was proved stays proved.
    """
    return view_log(erasure.erase(service.store, service.blobs, caller.tenant_id, log_id))
