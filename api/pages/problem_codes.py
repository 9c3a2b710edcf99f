"""What each problem code means: the pages behind the `type` of problem documents."""

from __future__ import annotations

import inspect

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from auditor.api.pages.layout import render
from auditor.api.problems import FAMILIES, responses, title_of
from auditor.service.errors import NotFoundError

router = APIRouter(tags=["operation"])


@router.get(
    "/problems/{code}",
    summary="What a problem code means",
    response_class=HTMLResponse,
    responses=responses(404),
)
def explain(request: Request, code: str) -> Response:
    """The page behind the `type` of a problem document."""
    family = FAMILIES.get(code)
    if family is None:
        raise NotFoundError("no such code")
    text = inspect.getdoc(family) or ""
    return render(request, "problem", None, code=code, title=title_of(code), text=text)
