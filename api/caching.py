"""Strong ETags (RFC 9110 section 8.8): what did not change is not sent again."""

from __future__ import annotations

from fastapi import Request, Response

from auditor.service.errors import VersionMissingError, VersionStaleError

IF_MATCH_PARAMETER = {
    "name": "If-Match",
    "in": "header",
    "required": True,
    "schema": {"type": "string"},
    "description": "The ETag of what is to be changed, as it was read.",
    "example": '"1"',
}


def unchanged(request: Request, response: Response, tag: str) -> Response | None:
    """304 where the caller holds this very thing; else None, with the ETag set on what will be answered."""
    etag = f'"{tag}"'
    held = [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]
    if etag in held or "*" in held:
        return Response(status_code=304, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return None


def seen_version(request: Request) -> str:
    """The one ETag of If-Match, without its quotes.

    Raises:
        VersionMissingError: there is none.
        VersionStaleError: not a strong one, so none of ours.
    """
    given = request.headers.get("if-match", "").strip()
    if not given:
        raise VersionMissingError("send If-Match with the ETag of what you saw", where="If-Match")
    if len(given) < 2 or given[0] != '"' or given[-1] != '"':
        raise VersionStaleError("not an ETag of this service", where="If-Match", fix="read it again")
    return given[1:-1]


def immutable(body: bytes, tag: str, media_type: str = "application/json") -> Response:
    """Bytes that will never be others."""
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, max-age=31536000, immutable"}
    return Response(body, headers=headers, media_type=media_type)
