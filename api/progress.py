"""Progress as server-sent events, from rows of the database: whoever comes back misses nothing.

A waiting stream holds neither a database session nor a thread. Plain polling of the audit says the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from auditor.api.problems import responses
from auditor.api.service import Reader, Service, TheService
from auditor.service import audits
from auditor.service.audits import Event
from auditor.service.clock import to_text
from auditor.service.errors import RequestInvalidError

router = APIRouter(tags=["audits"])
LOOK_SECONDS = 0.5
LONGEST_SECONDS = 600.0
"""A stream ends after so long; the client comes back with Last-Event-ID."""
_PAGE = 200
_STREAM: dict[int | str, Any] = {
    200: {
        "description": "Progress, one event each",
        "content": {
            "text/event-stream": {
                "example": 'id: 4\nevent: done\ndata: {"at": "2026-11-28T12:00:00.000000Z"}\n\n'
            }
        },
    }
}
_LAST = ("done", "dead", "quarantined", "cancelled")


def _last_seen(last_event_id: Annotated[str, Header(pattern="^[0-9]{1,9}$")] = "0") -> int:
    if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) < 10):
        raise RequestInvalidError("not the number of an event", where="Last-Event-ID")
    return int(last_event_id)


def _read(service: Service, tenant_id: str, audit_id: str, after: int) -> list[Event]:
    with service.store.transaction() as connection:
        return audits.events(connection, tenant_id, audit_id, after=after, limit=_PAGE)


def _first(
    service: TheService, caller: Reader, audit_id: str, seen: Annotated[int, Depends(_last_seen)]
) -> list[Event]:
    """Read before the stream begins, so that a 404 is a 404."""
    return _read(service, caller.tenant_id, audit_id, seen)


@router.get(
    "/audits/{audit_id}/events",
    summary="Follow an audit",
    response_class=EventSourceResponse,
    responses={**_STREAM, **responses(401, 403, 404, 422)},
)
async def follow(
    request: Request,
    service: TheService,
    caller: Reader,
    audit_id: str,
    seen: Annotated[int, Depends(_last_seen)],
    found: Annotated[list[Event], Depends(_first)],
) -> AsyncIterable[ServerSentEvent]:
    """Ends with the audit: `done`, `dead`, `quarantined` or `cancelled`."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while True:
        for event in found:
            seen = event.sequence
            data = event.data | {"at": to_text(event.created)}
            yield ServerSentEvent(data=data, event=event.kind, id=str(seen))
            if event.kind in _LAST:
                return
        if not found:
            if time.monotonic() > deadline or await request.is_disconnected():
                return
            await asyncio.sleep(LOOK_SECONDS)
        found = await run_in_threadpool(_read, service, caller.tenant_id, audit_id, seen)
