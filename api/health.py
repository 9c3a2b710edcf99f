"""Is it alive, is it ready, how does it fare."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from auditor.api.metrics import registry_of
from auditor.api.problems import responses
from auditor.api.service import Operator, TheService
from auditor.errors import StoreError
from auditor.service.errors import NotReadyError
from auditor.service.standing import at_newest_revision

router = APIRouter(tags=["operation"])


@router.get("/livez", summary="Is the process alive?", response_class=PlainTextResponse)
def alive() -> str:
    """Touches nothing."""
    return "ok"


@router.get(
    "/readyz",
    summary="Can it serve?",
    response_class=PlainTextResponse,
    responses=responses(503),
)
def ready(service: TheService) -> str:
    """Database reachable and at this program's schema. What is wrong is in the service's log, not here."""
    try:
        with service.store.transaction() as connection:
            newest = at_newest_revision(connection)
    except StoreError:
        newest = False
    if not newest:
        raise NotReadyError("not ready", retry_after=5)
    return "ok"


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=responses(401, 403))
def metrics(service: TheService, _caller: Operator) -> Response:
    """For the operator's key; no label names a tenant."""
    return Response(generate_latest(registry_of(service)), media_type=CONTENT_TYPE_LATEST)
