"""Refusals in the form of who asks: a page for a browser, a problem document (RFC 9457) for all else."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from auditor import errors
from auditor.api.pages.layout import render
from auditor.api.problems import problem_response, title_of
from auditor.service.errors import ServiceError, SignInNeededError


def wants_page(request: Request) -> bool:
    """Whether a browser asks, and not for the API."""
    return not request.url.path.startswith("/v1/") and "text/html" in request.headers.get("accept", "")


def refuse(request: Request, error: errors.AuditError) -> Response:
    """The answer to a request that was refused."""
    if isinstance(error, SignInNeededError) and request.headers.get("hx-request"):
        answer = problem_response(error)
        answer.headers["HX-Refresh"] = "true"  # the page around the part asks for the sign-in
        return answer
    if not wants_page(request):
        return problem_response(error)
    if isinstance(error, SignInNeededError) and request.method == "GET":
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/sign-in?next={quote(asked, safe='')}", 303)
    status = error.status if isinstance(error, ServiceError) else 422
    page = render(request, "refused", None, status=status, error=error, title=title_of(error.code))
    if isinstance(error, ServiceError) and error.retry_after is not None:
        page.headers["Retry-After"] = str(error.retry_after)
    return page
