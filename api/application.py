"""The application: routes, refusals, and what every answer carries."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import APIRouter, Depends, FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from auditor.api import (
    audits,
    challenges,
    commitments,
    disputes,
    health,
    keys,
    log,
    logs,
    plans,
    profiles,
    progress,
    providers,
    reports,
    schedules,
    uploads,
    webhooks,
)
from auditor.api.bodies import refuse_unknown_query
from auditor.api.description import complete
from auditor.api.metrics import count_answer, method_of, route_of
from auditor.api.pages import audits as audit_pages
from auditor.api.pages import challenges as challenge_pages
from auditor.api.pages import disputes as dispute_pages
from auditor.api.pages import files, overview, problem_codes, signing_in, submitting
from auditor.api.pages import keys as key_pages
from auditor.api.pages import log as log_page
from auditor.api.pages import profiles as profile_pages
from auditor.api.pages import reports as report_pages
from auditor.api.pages import schedules as schedule_pages
from auditor.api.pages.negotiation import refuse
from auditor.api.problems import add_handlers, problem_response
from auditor.api.service import Service
from auditor.service import tracing
from auditor.service.errors import NotFoundError

_DESCRIPTION = """Did the LLM provider run what it sold? Hand in a provider's log; a worker replays it on a
trusted reference; read the verdict at a stated false-alarm rate, with its evidence.

Refusals are problem documents (RFC 9457). What makes something takes an `Idempotency-Key`."""
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
_UNTRACED = ("/livez", "/readyz", "/startupz", "/metrics")
_PAGES = (
    overview,
    audit_pages,
    submitting,
    schedule_pages,
    report_pages,
    challenge_pages,
    dispute_pages,
    profile_pages,
    log_page,
    key_pages,
    signing_in,
    problem_codes,
    files,
)


def create_application(service: Service) -> FastAPI:
    """The application over an open service; traced where the environment asks for it."""
    tracing.start("serve")
    application = FastAPI(
        title="auditor",
        version="1",
        description=_DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    application.state.service = service
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(refuse_unknown_query)])
    judged = (audits, progress, uploads, logs, reports, schedules, disputes)
    sold = (providers, profiles, plans, commitments, challenges)
    for module in (*judged, *sold, keys, webhooks):
        v1.include_router(module.router)
    application.include_router(v1)
    application.include_router(health.router)
    application.include_router(log.router)
    complete(application)
    for page in _PAGES:
        application.include_router(page.router)
    add_handlers(application, refuse)
    application.add_middleware(_Observed)
    return application


def _traceparent(scope: Scope) -> str | None:
    """The caller's trace context; it is no secret of ours, and what is none is not followed."""
    found: bytes | None = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
    return None if found is None else found.decode("latin-1")


class _Observed:
    """Adds the headers that every answer carries, counts it, and traces it where that is asked for."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        if tracing.is_on() and scope["path"] not in _UNTRACED:
            with tracing.span("HTTP", kind="server", parent=_traceparent(scope)) as tell:
                await self._answer(scope, receive, send, tell)
        else:
            await self._answer(scope, receive, send, None)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, tell: Callable[[str, str | int], None] | None
    ) -> None:
        started = time.perf_counter()
        application: ASGIApp = self._application
        if "\0" in scope["path"]:  # no identifier of ours, and no text that PostgreSQL can be asked for
            application = problem_response(NotFoundError("no such path"))

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = [*message.get("headers", ())]
                there = {name.lower() for name, _ in headers}
                headers += [header for header in _HEADERS if header[0] not in there]
                count_answer(scope, message["status"], started)
                if tell is not None:
                    tracing.rename(f"{method_of(scope)} {route_of(scope)}")
                    tell("http.request.method", method_of(scope))
                    tell("http.route", route_of(scope))
                    tell("http.response.status_code", message["status"])
            await send(message)

        await application(scope, receive, observed)
