"""Signing in with an API key, and out."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from auditor.api.pages.layout import render
from auditor.api.pages.visits import (
    AnyVisit,
    Form,
    SignedIn,
    VisitorForm,
    cookie_name,
    drop_cookie,
    set_cookie,
    token_of,
    visitor_secret,
)
from auditor.api.service import TheService
from auditor.service import sessions
from auditor.service.errors import ScopeMissingError, UnauthenticatedError

router = APIRouter(include_in_schema=False)
# A path of ours: one slash, then no second one, and no backslash, which browsers read as one.
_LOCAL = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")
Next = Annotated[str, Query(alias="next", max_length=2000)]


def local_path(path: str) -> str:
    """The path if it stays on this host, else the overview."""
    return path if _LOCAL.fullmatch(path) else "/"


def _form_page(request: Request, following: str, problem: str = "", status: int = 200) -> Response:
    secret = visitor_secret(request)
    page = render(
        request,
        "sign_in",
        None,
        status=status,
        token=token_of(secret),
        following=local_path(following),
        problem=problem,
    )
    set_cookie(request, page, "visitor", secret)
    return page


@router.get("/sign-in")
def show(request: Request, visit: AnyVisit, following: Next = "/") -> Response:
    """The form."""
    return RedirectResponse(local_path(following), 303) if visit else _form_page(request, following)


@router.post("/sign-in")
def sign_in(request: Request, service: TheService, fields: VisitorForm) -> Response:
    """A fresh session, whatever cookies came along."""
    following = local_path(fields.one("next"))
    try:
        with service.store.transaction(writes=True) as connection:
            old = request.cookies.get(cookie_name(request, "session"), "")
            sessions.sign_out(connection, old)
            secret = sessions.sign_in(connection, fields.one("key"))
    except UnauthenticatedError:
        return _form_page(request, following, "This key is unknown, expired or revoked.", 401)
    except ScopeMissingError as error:
        said = f"{error.message[:1].upper()}{error.message[1:]}."
        return _form_page(request, following, said, error.status)
    answer = RedirectResponse(following, 303)
    set_cookie(request, answer, "session", secret)
    drop_cookie(request, answer, "visitor")
    return answer


@router.post("/sign-out")
def sign_out(request: Request, service: TheService, visit: SignedIn, _fields: Form) -> Response:
    """End the session here and in the browser."""
    with service.store.transaction(writes=True) as connection:
        sessions.sign_out(connection, visit.secret)
    answer = RedirectResponse("/sign-in", 303)
    drop_cookie(request, answer, "session")
    return answer
