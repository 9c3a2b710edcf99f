"""Style, script and pictures: files of ours, and HTMX, each under its own path."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from auditor.api.caching import unchanged
from auditor.api.pages.layout import FOLDER
from auditor.service.errors import NotFoundError

router = APIRouter(include_in_schema=False)
_TYPES = {
    "colours.css": "text/css; charset=utf-8",
    "pages.css": "text/css; charset=utf-8",
    "htmx-4.0.1.min.js": "text/javascript; charset=utf-8",
    "receipt-check.js": "text/javascript; charset=utf-8",
    "mark.svg": "image/svg+xml",
}


@cache
def _read(name: str) -> tuple[bytes, str]:
    if name == "colours.css":  # the demo's page has the same
        raw = files("auditor").joinpath("templates", name).read_bytes()
    else:
        raw = (FOLDER / "static" / name).read_bytes()
    return raw, hashlib.sha256(raw).hexdigest()[:32]


@router.get("/static/{name}")
def static(request: Request, name: str) -> Response:
    """Asked for again with each page, and not sent again."""
    if name not in _TYPES:
        raise NotFoundError("no such file")
    raw, tag = _read(name)
    headers = {"Cache-Control": "no-cache", "Cross-Origin-Resource-Policy": "same-origin"}
    response = Response(raw, headers=headers, media_type=_TYPES[name])
    return unchanged(request, response, tag) or response
