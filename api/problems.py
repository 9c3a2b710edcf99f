"""Every refusal as a problem document (RFC 9457): one form for validation, 404, 405, 413, 429 and 500 alike.

`type` is `/problems/CODE`, a page of this service; `code` is the stable code of `auditor.errors`. Nothing a
caller sent is repeated, and no stack trace leaves the process.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from auditor import errors
from auditor.service import errors as service_errors
from auditor.service.errors import (
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    NotReadyError,
    RequestInvalidError,
    ServiceError,
    UnauthenticatedError,
)

MEDIA_TYPE = "application/problem+json"
logger = logging.getLogger("auditor.api")


class Problem(BaseModel):
    """A refusal."""

    type: str = Field(examples=["/problems/not-found"])
    title: str = Field(examples=["Nothing there, or not for this tenant"])
    status: int = Field(examples=[404])
    code: str = Field(examples=["not-found"])
    detail: str = Field(examples=["no such audit"])
    where: str | None = Field(default=None, examples=["Idempotency-Key"])
    fix: str | None = None


def _families() -> dict[str, type[errors.AuditError]]:
    found: dict[str, type[errors.AuditError]] = {}
    for module in (errors, service_errors):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, errors.AuditError):
                found.setdefault(value.code, value)
    return found | {"internal": InternalError}


FAMILIES = _families()
"""Code -> class: what `/problems/CODE` explains."""


def title_of(code: str) -> str:
    """First sentence of what a code means."""
    return (FAMILIES[code].__doc__ or "").strip().split("\n")[0].split(". ")[0].rstrip(".")


def problem_response(error: errors.AuditError) -> Response:
    """The answer to a request that was refused."""
    status = getattr(error, "status", 422)
    value: dict[str, Any] = {
        "type": f"/problems/{error.code}",
        "title": title_of(error.code),
        "status": status,
        "code": error.code,
        "detail": error.message,
    }
    value |= {name: text for name, text in (("where", error.where), ("fix", error.fix)) if text}
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, ServiceError) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(value).encode(), status, headers, MEDIA_TYPE)


Refuse = Callable[[Request, errors.AuditError], Response]


def refuse_with_problem(_request: Request, error: errors.AuditError) -> Response:
    """Every refusal as a problem document."""
    return problem_response(error)


def _known(error: Exception) -> errors.AuditError:
    """The refusal that an exception stands for."""
    if isinstance(error, errors.StoreError):
        logger.error("store: %s", error)
        return NotReadyError("the store cannot be used", retry_after=5)
    if isinstance(error, errors.AuditError):
        return error
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first.get("loc", ())[1:])
        return RequestInvalidError(str(first.get("msg", "")), where=place)
    if isinstance(error, HTTPException):
        return _of_status(error.status_code)
    # Only the kind: a message may hold what a tenant sent.
    logger.error("internal error: %s", type(error).__name__, exc_info=error)
    return InternalError("a fault of the service")


def _of_status(status: int) -> errors.AuditError:
    if status == 405:
        return MethodNotAllowedError("this path has other methods")
    if status == 404:
        return NotFoundError("no such path")
    return RequestInvalidError("the request cannot be read")


def add_handlers(application: FastAPI, refuse: Refuse = refuse_with_problem) -> None:
    """Answer every refusal in one form, which `refuse` chooses."""

    def answer(request: Request, error: Exception) -> Response:
        response = refuse(request, _known(error))
        for name, value in (error.headers or {}).items() if isinstance(error, HTTPException) else ():
            response.headers[name] = value
        return response

    for kind in (errors.AuditError, RequestValidationError, HTTPException, Exception):
        application.add_exception_handler(kind, answer)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: these statuses answer with a problem document."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {status: {"description": "Refused", "content": content} for status in statuses}
