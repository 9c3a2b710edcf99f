"""The transparency log for people: its newest signed head, what went in last, and a check of any receipt."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response

from auditor.api.pages.layout import render
from auditor.api.pages.visits import AnyVisit
from auditor.api.service import TheService
from auditor.errors import LogStateError
from auditor.service.log_placing import newest_entries
from auditor.transparency_log import read_checkpoint

router = APIRouter(include_in_schema=False)
_NEWEST = 25


@router.get("/log")
def show(request: Request, service: TheService, visit: AnyVisit) -> Response:
    """For everybody, as the log itself is; it holds digests and random identifiers only."""
    entries: list[tuple[int, dict[str, Any]]] = []
    try:
        note, head = read_checkpoint(service.log)
    except LogStateError:
        note, head = None, None
    if head is not None:
        with service.store.transaction() as connection:
            found = newest_entries(connection, head.size, _NEWEST)
        entries = [(position, json.loads(body)) for position, body in found]
    return render(
        request,
        "log",
        visit,
        head=head,
        checkpoint="" if note is None else note.serialize().decode(),
        entries=entries,
        log_key=service.log_key,
    )
