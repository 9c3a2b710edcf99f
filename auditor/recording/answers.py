"""Three ways an answer goes back through the recorder: as it is, as one JSON object, as a stream."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import httpx

from auditor.errors import TraceSyntaxError
from auditor.recording.codings import Coding, TooLargeError
from auditor.recording.events import EventSplitter, StreamAssembler, event_data, with_data
from auditor.recording.exchange import Sent, restored
from auditor.recording.headers import forwarded
from auditor.strict_json import load_object

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request.

    Attributes:
        response: the answer to log, None when there is nothing to record.
        ended: `complete`, how the answer was cut short, or why nothing is recorded.
        notes: sentences for whoever reads the trace.
        first_token: when the first piece of a stream came.
    """

    response: dict[str, Any] | None
    ended: str
    notes: tuple[str, ...] = ()
    first_token: datetime | None = None


Log = Callable[[Outcome], Awaitable[None]]
"""Writes the line of an answer; returns when it is on disk."""


class Answer(Protocol):
    """An answer on its way to the client."""

    async def forward(self) -> None:
        """Pass it on."""


async def _start(send: Send, response: httpx.Response, *, length: int | None = -1) -> None:
    """Send the head of the answer; `length` -1 leaves Content-Length as it is, None drops it."""
    dropped = () if length == -1 else (b"content-length",)
    headers = forwarded(response.headers.raw, dropped)
    if length is not None and length != -1:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})


async def _body(send: Send, data: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


@dataclass(slots=True)
class RawAnswer:
    """Bytes as they come. A server that breaks off breaks off here too: the last part is never sent."""

    response: httpx.Response
    send: Send

    async def forward(self) -> None:
        """Pass the answer on."""
        try:
            await _start(self.send, self.response)
            try:
                async for piece in self.response.aiter_raw():
                    await _body(self.send, piece, more=True)
            except httpx.HTTPError:
                return
            await _body(self.send, b"", more=False)
        finally:
            await asyncio.shield(self.response.aclose())


@dataclass(slots=True)
class JsonAnswer:
    """One JSON object, held until it is whole, logged, and passed on without what our asking brought."""

    response: httpx.Response
    send: Send
    sent: Sent
    log: Log
    limit: int

    async def forward(self) -> None:
        """Pass the answer on."""
        try:
            raw, whole = await self._read()
        except asyncio.CancelledError:
            await self.log(Outcome(None, "the client left before the answer"))
            raise
        finally:
            await asyncio.shield(self.response.aclose())
        if raw is None:
            return
        if not whole:
            await self.log(Outcome(None, "the answer broke off"))
            await _start(self.send, self.response)
            await _body(self.send, raw, more=True)  # and no last part: here too it breaks off
            return
        outcome, text = self._judge(raw)
        await self.log(outcome)
        out = raw if outcome.response is None else self._restored(outcome.response, text, raw)
        had_length = "content-length" in self.response.headers
        await _start(self.send, self.response, length=-1 if out is raw else len(out) if had_length else None)
        await _body(self.send, out, more=False)

    async def _read(self) -> tuple[bytes | None, bool]:
        """The encoded body and whether it is whole; None when it was too large and has been passed on."""
        parts: list[bytes] = []
        size = 0
        stream = self.response.aiter_raw()
        try:
            async for piece in stream:
                parts.append(piece)
                size += len(piece)
                if size > self.limit:
                    await self._pass_large(parts, stream)
                    return None, True
        except httpx.HTTPError:
            return b"".join(parts), False
        return b"".join(parts), True

    async def _pass_large(self, parts: list[bytes], stream: AsyncIterator[bytes]) -> None:
        await self.log(Outcome(None, "the answer is too large to record"))
        await _start(self.send, self.response)
        await _body(self.send, b"".join(parts), more=True)
        async for later in stream:
            await _body(self.send, later, more=True)
        await _body(self.send, b"", more=False)

    def _judge(self, raw: bytes) -> tuple[Outcome, str]:
        """What the body says, and its text."""
        coding = Coding(self.response.headers.get("content-encoding", ""), self.limit)
        try:
            plain = coding.decode(raw)
            answer = load_object(plain, where="response")
        except zlib.error:
            return Outcome(None, "the answer's encoding is damaged"), ""
        except TooLargeError:
            return Outcome(None, "the answer is too large to record"), ""
        except TraceSyntaxError as error:
            return Outcome(None, f"the answer cannot be read: {error.message}"), ""
        if not isinstance(answer.get("choices"), list) or not answer["choices"]:
            return Outcome(None, "the answer has no choices"), ""
        return Outcome(answer, "complete"), plain.decode("utf-8")

    def _restored(self, answer: dict[str, Any], text: str, raw: bytes) -> bytes:
        out = restored(text, answer, self.sent.added)
        if out is None or out == text:
            return raw
        coding = Coding(self.response.headers.get("content-encoding", ""), self.limit)
        return coding.encode(out.encode("utf-8"), last=True)


@dataclass(slots=True)
class StreamAnswer:
    """A stream of events, passed on event by event; the log line is written before the one that ends it."""

    response: httpx.Response
    send: Send
    sent: Sent
    log: Log
    limit: int
    _whole: StreamAssembler = field(default_factory=StreamAssembler)
    _first: datetime | None = None
    _logged: bool = False
    _size: int = 0
    _trouble: str = ""

    async def forward(self) -> None:
        """Pass the answer on."""
        name = self.response.headers.get("content-encoding", "")
        splitter, reading, writing = EventSplitter(), Coding(name, 1 << 40), Coding(name, 1 << 40)
        try:
            await _start(self.send, self.response, length=None)
            try:
                async for piece in self.response.aiter_raw():
                    events = splitter.feed(reading.decode(piece))
                    out = b"".join([await self._passed(event) for event in events])
                    if len(splitter.rest) > self.limit:
                        raise httpx.DecodingError("an event without end")
                    if out:
                        await _body(self.send, writing.encode(out), more=True)
            except (httpx.HTTPError, zlib.error, TooLargeError):
                await self._finish("the answer broke off")
                return
            last = splitter.rest and await self._passed(splitter.rest)
            await self._finish("complete")
            await _body(self.send, writing.encode(last, last=True), more=False)
        except asyncio.CancelledError:
            await self._finish("the client left")
            raise
        finally:
            await asyncio.shield(self.response.aclose())

    async def _passed(self, event: bytes) -> bytes:
        """Take note of an event and return what of it the client gets."""
        data = event_data(event)
        if data is None:
            return event
        if data.strip() == b"[DONE]":
            await self._finish("complete")
            return event
        self._size += len(data)
        try:
            chunk = load_object(data, where="response")
        except TraceSyntaxError as error:
            self._trouble = self._trouble or f"a chunk cannot be read: {error.message}"
            return event
        if self._size > self.limit:
            self._trouble = self._trouble or "the answer is too large to record"
        else:
            self._whole.add(chunk)
        if self._first is None and self._whole.started:
            self._first = datetime.now(UTC)
        text = data.decode("utf-8")
        out = restored(text, chunk, self.sent.added)
        if out is None:
            return b""
        return event if out == text else with_data(event, out.encode("utf-8"))

    async def _finish(self, ended: str) -> None:
        if self._logged:
            return
        self._logged = True
        if self._trouble or not self._whole.started:
            reason = "the stream has no choices" if ended == "complete" else ended
            await self.log(Outcome(None, self._trouble or reason))
            return
        answer, notes = self._whole.response(tools=bool(self.sent.request.get("tools")))
        if self._whole.error:
            ended = f"the server reported an error: {str(self._whole.error)[:120]}"
        await self.log(Outcome(answer, ended, tuple(notes), self._first))
