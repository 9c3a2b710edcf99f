"""Handing in a log with a form."""

from __future__ import annotations

import hashlib
import uuid

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from auditor import errors
from auditor.api.bodies import MOST_INLINE_BYTES, validated
from auditor.api.pages.layout import render
from auditor.api.pages.visits import Fields, Form, Visit, WritingVisit
from auditor.api.service import MOST_KEY_CHARACTERS, Service, TheService
from auditor.api.views import OptionsBody
from auditor.service.containers import check_log
from auditor.service.errors import BodyTooLargeError, RequestInvalidError, ServiceError
from auditor.service.submissions import InlineLog, Order

router = APIRouter(include_in_schema=False)
FORMATS = {
    "auto": "by content",
    "trace": "auditor.trace/v1",
    "openai": "OpenAI or vLLM responses",
    "parquet": "Parquet",
}
_OPTIONAL = ("engine_recipe", "noise", "served_model")
_MOST_NAME = 200


@router.get("/submit")
def show(request: Request, visit: WritingVisit) -> Response:
    """The form."""
    return _page(request, visit)


@router.post("/submit")
def submit(request: Request, service: TheService, visit: WritingVisit, fields: Form) -> Response:
    """Answers when the order is on disk. The same form sent twice orders once."""
    try:
        audit_id = _order(service, visit, fields)
    except errors.AuditError as error:
        if isinstance(error, errors.StoreError):
            raise
        return _page(request, visit, fields, error)
    return RedirectResponse(f"/audits/{audit_id}", 303)


def _order(service: Service, visit: Visit, fields: Fields) -> str:
    once = fields.one("once")
    if not once or len(once) > MOST_KEY_CHARACTERS or not once.isprintable():
        raise RequestInvalidError("the form is incomplete: load the page again", where="once")
    body = fields.file
    if not body:
        raise RequestInvalidError("choose a file that is not empty", where="log")
    if len(body) > MOST_INLINE_BYTES:
        raise BodyTooLargeError(
            "longer than 8 MiB", where="log", fix="larger logs go through the API in parts"
        )
    given: dict[str, object] = {"alpha": fields.number("alpha"), "input_format": fields.one("input_format")}
    given |= {name: fields.one(name) for name in _OPTIONAL if fields.one(name)}
    options = validated(OptionsBody, given).options()
    check_log([body])
    name = "".join(c for c in fields.file_name if c.isprintable())[:_MOST_NAME] or "log"
    log = InlineLog.of(body, name, service.blobs)
    told = hashlib.sha256(f"page {options.text()} {name} {log.digest}".encode("utf-8", "replace")).digest()
    return service.submissions.submit(Order(visit.key, f"page-{once}", told, options, "", log)).audit.id


def _page(
    request: Request, visit: Visit, fields: Fields | None = None, problem: errors.AuditError | None = None
) -> Response:
    status = 200
    if problem is not None:
        status = problem.status if isinstance(problem, ServiceError) else 422
    names = ("alpha", "input_format", *_OPTIONAL)
    return render(
        request,
        "submit",
        visit,
        status=status,
        problem=problem,
        once=uuid.uuid4(),
        formats=FORMATS,
        given={name: fields.one(name) if fields else "" for name in names},
    )
