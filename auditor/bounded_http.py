"""HTTP/1.1 by httptools (llhttp, in C), within bounds: headers of any length are not read, nor waited for.

What uvicorn's own protocol over httptools leaves open, and h11 does not:

1. A request line and headers above `MOST_HEADER_BYTES` are refused with 431 and the connection ends. So is
   whatever else comes without end and is no body: a header that never ends, extensions of chunks, trailers.
2. Headers that are not there `HEADER_SECONDS` after the connection or the request began: 408, and it ends.
3. HTTP/1.1 needs one `Host`; other versions than 1.0 and 1.1 are refused.
4. Trailers come after a request was begun to be answered: they are read past, and never become its headers.
5. At most `MOST_WAITING` requests wait behind one another in a connection.
6. Nothing is switched to another protocol. What follows `Upgrade` would be read as that one: a request with a
   body that asks for it is refused.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MOST_HEADER_BYTES = 16 << 10
"""Of the request line and all headers; h11's bound."""
HEADER_SECONDS = 30.0
MOST_WAITING = 64
"""Requests of one connection behind the one that is answered."""


class _RefusedError(Exception):
    """In the middle of parsing: answer with this status and end."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _OneWrite:
    """A transport that sends with one call what was written in one turn of the loop: head and body."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = list[bytes]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send soon."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        """Send the rest and end."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._transport.write(b"".join(held))


class BoundedHttp(HttpToolsProtocol):
    """A connection. Its bounds count bytes that were parsed and were no body."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._begun = False  # a request, whose headers are not whole yet
        self._in_body = False
        self._counted = 0  # bytes of this request's target, headers and trailers, once they are whole
        self._idle = 0  # bytes since the last that were of a body, or began or ended a request
        self._moved = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, not for ever."""
        super().connection_made(_OneWrite(transport, self.loop))  # type: ignore[arg-type]  # it is as good as one
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._refuse, 408)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, piece by piece where it may be headers."""
        self._unset_keepalive_if_required()
        start = 0
        while start < len(data):
            most = len(data) if self._in_body else MOST_HEADER_BYTES
            piece = data[start : start + most]
            start += len(piece)
            self._moved = False
            status = self._parse(piece)
            self._idle = 0 if self._moved else self._idle + len(piece)
            if status is None and self._idle > MOST_HEADER_BYTES:
                status = 431
            if status is not None:
                self._refuse(status)
            if self.transport.is_closing():
                return
        if self._begun and self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._refuse, 408)

    def _parse(self, piece: bytes) -> int | None:
        """The status with which this must be refused."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # it is answered as if it had not asked
        except httptools.HttpParserError as error:
            cause = error.__context__
            return cause.status if isinstance(cause, _RefusedError) else 400
        return None

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if len(self.pipeline) >= MOST_WAITING:
            raise _RefusedError(400)
        self._begun, self._counted, self._moved = True, 0, True

    def on_url(self, url: bytes) -> None:
        """Part of its target."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer, which is counted and let go."""
        self._count(len(name) + len(value) + 4)
        if self._begun:
            super().on_header(name, value)

    def _count(self, count: int) -> None:
        self._counted += count
        if self._counted > MOST_HEADER_BYTES:
            raise _RefusedError(431)

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        names = [name for name, _ in self.headers]
        version, hosts = self.parser.get_http_version(), names.count(b"host")
        if version not in ("1.0", "1.1") or hosts > 1 or (version == "1.1" and not hosts):
            raise _RefusedError(400)
        if self.parser.should_upgrade() and (b"content-length" in names or b"transfer-encoding" in names):
            raise _RefusedError(400)
        self._begun, self._in_body, self._moved = False, True, True
        self._forget_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of its body."""
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        self._in_body, self._moved = False, True
        super().on_message_complete()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int) -> None:
        """Say why, where nothing of another answer was said, and end the connection."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            head = b"content-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head)
        if cycle is not None:
            cycle.disconnected = True
        self.transport.close()
