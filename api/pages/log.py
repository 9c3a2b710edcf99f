"""The transparency log for people: its newest signed head, what went in last, and a check of any receipt."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response

from auditor.api.pages.layout import render
from auditor.api.pages.visits import AnyVisit, Visit
from auditor.api.service import TheService
from auditor.errors import LogStateError
from auditor.service.log_placing import newest_entries
from auditor.transparency_log import read_checkpoint

router = APIRouter(include_in_schema=False)
_NEWEST = 25
# Where an entry of that subject leads to; commitments have no page of their own.
_SUBJECTS = {
    "report": "/reports",
    "dispute": "/disputes",
    "challenge": "/challenges",
    "commitment": "",
    "audit": "/audits",
}
_DIGESTS = ("verdict", "digest", "said", "result", "challenge_digest", "head", "log")


@router.get("/log")
def show(request: Request, service: TheService, visit: AnyVisit) -> Response:
    """For everybody, as the log itself is; it holds digests and random identifiers only."""
    entries: list[dict[str, Any]] = []
    try:
        note, head = read_checkpoint(service.log)
    except LogStateError:
        note, head = None, None
    if head is not None:
        with service.store.transaction() as connection:
            found = newest_entries(connection, head.size, _NEWEST)
        entries = [_entry(position, json.loads(body), visit) for position, body in found]
    return render(
        request,
        "log",
        visit,
        head=head,
        checkpoint="" if note is None else note.serialize().decode(),
        entries=entries,
        log_key=service.log_key,
    )


def _entry(position: int, value: dict[str, Any], visit: Visit | None) -> dict[str, Any]:
    """A line of the list; it leads further for the tenant whose entry it is."""
    kind, subject = next(((kind, str(value[kind])) for kind in _SUBJECTS if kind in value), ("", ""))
    folder = _SUBJECTS.get(kind, "")
    ours = visit is not None and visit.key.tenant_id == value.get("tenant")
    return {
        "position": position,
        "kind": str(value.get("kind", "")),
        "subject": subject,
        "path": f"{folder}/{subject}" if ours and folder else "",
        "digest": next((str(value[name]) for name in _DIGESTS if name in value), ""),
    }
