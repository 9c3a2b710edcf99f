"""Who is looking: sessions, their cookie, and forms that only our own pages can send.

The cookie is HttpOnly and SameSite=Strict; over anything but this machine's loopback it is also Secure and
bound to the host by its `__Host-` name. Every form carries a token that is a function of the cookie, the form
for signing in too: there the cookie is a visitor's, which stands for no key.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request, Response
from starlette.formparsers import MultiPartException, MultiPartParser

from auditor.api.bodies import MOST_INLINE_BYTES, MOST_JSON_BYTES, media_type_of, read_body
from auditor.api.service import Service, TheService
from auditor.listening import is_loopback
from auditor.service import sessions, tenants
from auditor.service.errors import (
    BodyMalformedError,
    FormForgedError,
    MediaTypeError,
    RequestInvalidError,
    SignInNeededError,
)
from auditor.service.tenants import ApiKey

_MOST_FIELDS = 40


@dataclass(frozen=True, slots=True)
class Visit:
    """A signed-in browser.

    Attributes:
        secret: the cookie's.
        token: what its forms carry.
    """

    key: ApiKey
    tenant_name: str
    secret: str
    token: str


@dataclass(frozen=True, slots=True)
class Fields:
    """A form as it came, without its token; a field may come several times."""

    values: tuple[tuple[str, str], ...]
    file_name: str = ""
    file: bytes | None = None

    def one(self, name: str) -> str:
        """A field's last value, without blanks around it; empty where there is none."""
        return next((value.strip() for key, value in reversed(self.values) if key == name), "")

    def every(self, name: str) -> list[str]:
        """All of a field's values."""
        return [value for key, value in self.values if key == name]

    def number(self, name: str) -> float:
        """A field's value as a number.

        Raises:
            RequestInvalidError: it is none.
        """
        try:
            return float(self.one(name))
        except ValueError:
            raise RequestInvalidError("not a number", where=name) from None


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https" or not is_loopback(request.url.hostname or "")


def cookie_name(request: Request, kind: str) -> str:
    """The name of a cookie: `kind` is `session` or `visitor`."""
    return f"__Host-auditor-{kind}" if _is_secure(request) else f"auditor-{kind}"


def set_cookie(request: Request, response: Response, kind: str, secret: str) -> None:
    """Give a browser a secret; it ends with the browser, and in the database."""
    response.set_cookie(
        cookie_name(request, kind), secret, secure=_is_secure(request), httponly=True, samesite="strict"
    )


def drop_cookie(request: Request, response: Response, kind: str) -> None:
    """Take a secret away."""
    response.delete_cookie(
        cookie_name(request, kind), secure=_is_secure(request), httponly=True, samesite="strict"
    )


def token_of(secret: str) -> str:
    """What forms carry of the browser that holds this secret."""
    return hmac.new(secret.encode("utf-8", "surrogatepass"), b"form", hashlib.sha256).hexdigest()


def visitor_secret(request: Request) -> str:
    """The secret of a browser that is not signed in, a fresh one where it has none."""
    return request.cookies.get(cookie_name(request, "visitor"), "") or secrets.token_urlsafe(32)


def visit_of(service: Service, request: Request) -> Visit | None:
    """The visit of a signed-in browser; None for others.

    Raises:
        StoreError: the database refused.
    """
    secret = request.cookies.get(cookie_name(request, "session"), "")
    if not secret:
        return None
    with service.store.transaction() as connection:
        key = sessions.find(connection, secret)
        if key is None:
            return None
        tenant = tenants.find_tenant(connection, key.tenant_id)
    return Visit(key, tenant.name, secret, token_of(secret))


def _maybe(service: TheService, request: Request) -> Visit | None:
    return visit_of(service, request)


AnyVisit = Annotated[Visit | None, Depends(_maybe)]


def _signed_in(visit: AnyVisit) -> Visit:
    if visit is None:
        raise SignInNeededError("sign in first", where="/sign-in")
    return visit


SignedIn = Annotated[Visit, Depends(_signed_in)]


def _with_scope(scope: str) -> object:
    def check(visit: SignedIn) -> Visit:
        visit.key.require(scope)
        return visit

    return Depends(check)


ReadingVisit = Annotated[Visit, _with_scope("audits:read")]
WritingVisit = Annotated[Visit, _with_scope("audits:write")]
KeyVisit = Annotated[Visit, _with_scope("keys")]


async def _fields(request: Request) -> Fields:
    if media_type_of(request) == "multipart/form-data":
        return await _multipart(request)
    if media_type_of(request) != "application/x-www-form-urlencoded":
        raise MediaTypeError("not a form", where="Content-Type")
    raw = await read_body(request, MOST_JSON_BYTES)
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"
        )
    except ValueError:
        raise BodyMalformedError("the form cannot be read", where="body") from None
    return Fields(tuple(pairs))


async def _multipart(request: Request) -> Fields:
    raw = await read_body(request, MOST_INLINE_BYTES + MOST_JSON_BYTES)

    async def body() -> AsyncGenerator[bytes, None]:
        yield raw

    reader = MultiPartParser(
        request.headers, body(), max_files=1, max_fields=_MOST_FIELDS, max_part_size=MOST_JSON_BYTES
    )
    try:
        form = await reader.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError):
        raise BodyMalformedError("the form cannot be read", where="body") from None
    texts, name, data = list[tuple[str, str]](), "", None
    for key, value in form.multi_items():
        if isinstance(value, str):
            texts.append((key, value))
        else:
            name, data = value.filename or "", await value.read()
    await form.close()
    return Fields(tuple(texts), name, data)


def checked(fields: Fields, secret: str) -> Fields:
    """The fields of a form that a page of ours sent, to the browser with this secret.

    Raises:
        FormForgedError: it was not.
    """
    if not secret or not hmac.compare_digest(fields.one("token").encode(), token_of(secret).encode()):
        raise FormForgedError(
            "the form is not from a page of this session",
            fix="go back, load the page again and repeat; over plain HTTP pages work on this machine only",
        )
    return Fields(tuple(pair for pair in fields.values if pair[0] != "token"), fields.file_name, fields.file)


def _form(visit: SignedIn, fields: Annotated[Fields, Depends(_fields)]) -> Fields:
    return checked(fields, visit.secret)


def _visitor_form(request: Request, fields: Annotated[Fields, Depends(_fields)]) -> Fields:
    return checked(fields, request.cookies.get(cookie_name(request, "visitor"), ""))


Form = Annotated[Fields, Depends(_form)]
"""What a signed-in browser sent; a page that takes a POST takes this, or nothing is checked."""
VisitorForm = Annotated[Fields, Depends(_visitor_form)]
