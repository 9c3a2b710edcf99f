"""Strong ETags (RFC 9110 section 8.8): what did not change is not sent again."""

from __future__ import annotations

from fastapi import Request, Response


def unchanged(request: Request, response: Response, tag: str) -> Response | None:
    """304 where the caller holds this very thing; else None, with the ETag set on what will be answered."""
    etag = f'"{tag}"'
    held = [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]
    if etag in held or "*" in held:
        return Response(status_code=304, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return None


def immutable(body: bytes, tag: str, media_type: str = "application/json") -> Response:
    """Bytes that will never be others."""
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, max-age=31536000, immutable"}
    return Response(body, headers=headers, media_type=media_type)
