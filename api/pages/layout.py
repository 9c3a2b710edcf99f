"""What every page shares: templates, navigation, headers.

Everything that came from a log, a provider or a caller reaches HTML through the templates' autoescape only.
The policy allows script and style from our own files and nothing inline, so what slipped through would still
not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from auditor.api.pages import wording

if TYPE_CHECKING:
    from auditor.api.pages.visits import Visit

FOLDER = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
    "Vary": "Accept, Cookie",
}


@dataclass(frozen=True, slots=True)
class NavItem:
    """A line of the navigation; shown to keys with the scope, None to everybody."""

    path: str
    label: str
    scope: str | None = None


NAVIGATION = (
    NavItem("/", "Overview", "audits:read"),
    NavItem("/audits", "Audits", "audits:read"),
    NavItem("/submit", "Submit", "audits:write"),
    NavItem("/schedules", "Schedules", "audits:read"),
    NavItem("/reports", "Reports", "audits:read"),
    NavItem("/challenges", "Challenges", "audits:read"),
    NavItem("/disputes", "Disputes", "audits:read"),
    NavItem("/profiles", "Profiles", "audits:read"),
    NavItem("/log", "Log"),
    NavItem("/keys", "Keys", "keys"),
)
"""Every page that has a place of its own, in order; a new one is a line here."""

_templates = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= wording.FILTERS


def render(
    request: Request, template: str, visit: Visit | None, *, status: int = 200, **context: Any
) -> HTMLResponse:
    """A page, or a part of one."""
    scopes = () if visit is None else visit.key.scopes
    text = _templates.get_template(f"{template}.html.jinja").render(
        visit=visit,
        navigation=[item for item in NAVIGATION if item.scope is None or item.scope in scopes],
        here=request.url.path,
        **context,
    )
    # A lone surrogate in somebody's text must not become an error of ours.
    return HTMLResponse(text.encode("utf-8", "replace"), status, HEADERS)


def download(body: bytes, name: str, media_type: str) -> Response:
    """A file to be saved under that name."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(body, headers=headers, media_type=media_type)
