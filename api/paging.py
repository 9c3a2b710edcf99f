"""Pages: an opaque cursor over (created, id), so that what is added meanwhile moves nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Annotated, Protocol, TypeVar
from urllib.parse import urlencode

from fastapi import Query, Request, Response

from auditor.service.errors import RequestInvalidError

MOST_ITEMS = 200
Limit = Annotated[int, Query(ge=1, le=MOST_ITEMS, description="Items of a page.")]
Cursor = Annotated[
    str | None, Query(max_length=400, description="From `next` of the page before.", alias="cursor")
]


def encode_cursor(created: int, identifier: str) -> str:
    """Where a page ended."""
    return base64.urlsafe_b64encode(json.dumps([created, identifier]).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> tuple[int, str] | None:
    """Where the last page ended; None for the first.

    Raises:
        RequestInvalidError: not a cursor of ours.
    """
    if cursor is None:
        return None
    wrong = RequestInvalidError("not a cursor of an earlier page", where="cursor")
    try:
        value = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        raise wrong from None
    match value:
        case [int(created), str(identifier)] if abs(created) < 1 << 62 and "\0" not in identifier:
            if not isinstance(created, bool):
                return created, identifier
    raise wrong


class Placed(Protocol):
    """What stands in a page: (created, id) says where."""

    @property
    def created(self) -> int: ...  # noqa: D102  microseconds since 1970
    @property
    def id(self) -> str: ...  # noqa: D102


P = TypeVar("P", bound=Placed)


def cursor_behind(found: Sequence[Placed], limit: int) -> str | None:
    """Where a page of so many ends; None where nothing follows it.

    Args:
        found: one more than `limit` where there is a next page.
    """
    if len(found) <= limit:
        return None
    last = found[limit - 1]
    return encode_cursor(last.created, last.id)


def page_of(
    request: Request, response: Response, found: Sequence[P], limit: int
) -> tuple[Sequence[P], str | None]:
    """A page and the cursor behind it, which a `Link` header names too (RFC 8288).

    Args:
        found: one more than `limit` where there is a next page.
    """
    page, cursor = found[:limit], cursor_behind(found, limit)
    if cursor is None:
        return page, None
    query = dict(request.query_params) | {"cursor": cursor}
    response.headers["Link"] = f'<{request.url.path}?{urlencode(query)}>; rel="next"'
    return page, cursor
