"""The recording reverse proxy: an ASGI application between a client and an OpenAI-compatible server.

Completions and chat completions are recorded, everything else passes. Steps for a recorded request:

1. The client's body is read; token ids are asked for in it (`exchange.amended`).
2. It goes to the server. If the server refuses the request (400, 422), it goes again as the client sent it.
3. The answer comes back without what only our asking brought (`exchange.restored`), a stream event by event.
4. The log line is on disk before the last byte of the answer leaves.

A client that leaves ends the request at the server too; what had come by then is logged. Whatever cannot be
recorded still passes, and is counted with its reason: this proxy never stands between a client and an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx

from auditor.errors import AuditError, TraceFileError, TraceSyntaxError
from auditor.recording.answers import Answer, JsonAnswer, Outcome, RawAnswer, StreamAnswer
from auditor.recording.codings import offered, readable
from auditor.recording.exchange import Sent, Timing, amended, exchange_line, failure_line
from auditor.recording.headers import forwarded
from auditor.recording.line_log import LineLog
from auditor.strict_json import MAX_LINE_BYTES

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = MAX_LINE_BYTES // 2

_RECORDED = ("/completions", "/chat/completions")
_UNREACHABLE = 502
_REFUSED = (400, 422)


class _ClientLeftError(Exception):
    """The client closed the connection before its request was whole."""


@dataclass(slots=True)
class Tally:
    """What a recorder did.

    Attributes:
        recorded: log lines written.
        passed: requests that are not generations.
        missed: generations that were not recorded, by reason.
        lost: lines that could not be written.
    """

    recorded: int = 0
    passed: int = 0
    missed: Counter[str] = field(default_factory=Counter)
    lost: int = 0


@dataclass(slots=True)
class Recorder:
    """The ASGI application.

    Attributes:
        upstream: base address of the server, say `http://127.0.0.1:8000`.
        log, failures: where exchanges go, and requests that brought nothing to record.
        client: connections to the server; closed by whoever made it.
        next_seed: gives a seed to requests without one; None leaves them.
        mute: paths whose server refused to be asked for token ids.
        on_loss: told when a line cannot be written; the client is served all the same.
        now: the clock.
    """

    upstream: httpx.URL
    log: LineLog
    failures: LineLog
    client: httpx.AsyncClient
    next_seed: Callable[[], int] | None = None
    on_loss: Callable[[AuditError], None] = lambda _error: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    max_body_bytes: int = MAX_BODY_BYTES
    tally: Tally = field(default_factory=Tally)
    mute: set[str] = field(default_factory=set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of ASGI 3."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            with contextlib.suppress(_ClientLeftError):
                await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["method"] == "POST" and path.rstrip("/").endswith(_RECORDED):
            body, more = await _read(receive, self.max_body_bytes)
            if len(body) <= self.max_body_bytes:
                call = _Call(self, scope, send, path, body)
                await _until_client_leaves(call.run(), receive)
                return
            self._miss("the request is too large to record", path, None)
            content: AsyncIterator[bytes] | None = _chained(body, receive, more=more)
        else:
            self.tally.passed += 1
            has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
            content = _chained(b"", receive, more=True) if has_body else None
        await self._pass(scope, content, send)

    async def _pass(self, scope: Scope, content: AsyncIterator[bytes] | None, send: Send) -> None:
        request = self.request(scope, content, keep_length=True)
        try:
            response = await self.client.send(request, stream=True)
        except httpx.HTTPError as error:
            await _refuse(send, error)
            return
        await RawAnswer(response, send).forward()

    def request(
        self, scope: Scope, content: bytes | AsyncIterator[bytes] | None, *, keep_length: bool
    ) -> httpx.Request:
        """The client's request, addressed to the server."""
        url = self.upstream.copy_with(
            raw_path=self.upstream.raw_path.rstrip(b"/")
            + (scope.get("raw_path") or scope["path"].encode())
            + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        )
        dropped = {b"host"} | (set() if keep_length else {b"content-length"})
        return httpx.Request(
            scope["method"], url, headers=forwarded(scope["headers"], dropped), content=content
        )

    def _miss(
        self, reason: str, path: str, status: int | None, request: dict[str, Any] | None = None
    ) -> None:
        self.tally.missed[reason] += 1
        self.write(
            self.failures, failure_line(reason, path=path, status=status, when=self.now(), request=request)
        )

    def miss(self, reason: str, path: str, status: int | None, sent: Sent | None) -> None:
        """Count and note down a generation that is not recorded."""
        self._miss(reason, path, status, dict(sent.request) if sent else None)

    def write(self, log: LineLog, line: bytes) -> bool:
        """Write a line; a full disk is reported, and does not stop the proxy."""
        try:
            log.write(line)
        except TraceFileError as error:
            self.tally.lost += 1
            self.on_loss(error)
            return False
        return True


@dataclass(slots=True)
class _Call:
    """One recorded request on its way."""

    recorder: Recorder
    scope: Scope
    send: Send
    path: str
    body: bytes
    received: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.received = self.recorder.now()

    async def run(self) -> None:
        try:
            sent = self._amended()
        except (AuditError, zlib.error) as error:
            # What we cannot read the server will judge; it passes untouched.
            self.recorder.miss(f"the request cannot be read: {error}"[:200], self.path, None, None)
            await self._forward_plainly()
            return
        try:
            response, sent = await self._ask(sent)
        except httpx.HTTPError as error:
            self.recorder.miss(f"the server cannot be reached: {type(error).__name__}", self.path, None, sent)
            await _refuse(self.send, error)
            return
        except asyncio.CancelledError:
            self.recorder.miss("the client left before the answer", self.path, None, sent)
            raise
        await self._answer(response, sent)

    def _amended(self) -> Sent:
        coding = dict(self.scope["headers"]).get(b"content-encoding", b"")
        if coding not in (b"", b"identity"):
            raise TraceSyntaxError("its body is encoded", where="request")
        seed = self.recorder.next_seed
        sent = amended(self.body, ask=self.path not in self.recorder.mute, seed=None)
        if seed is not None and sent.request.get("seed") is None:
            sent = amended(self.body, ask=self.path not in self.recorder.mute, seed=seed())
        return sent

    async def _ask(self, sent: Sent) -> tuple[httpx.Response, Sent]:
        """Send the request; a server that does not take our additions gets it as the client wrote it."""
        response = await self._send(sent.body)
        asked = {name for name in sent.added if name != "seed"}
        if response.status_code not in _REFUSED or not asked:
            return response, sent
        await response.aclose()
        plain = amended(self.body, ask=False, seed=sent.added.get("seed"))
        response = await self._send(plain.body)
        if response.status_code not in _REFUSED:
            self.recorder.mute.add(self.path)
        return response, plain

    async def _send(self, body: bytes) -> httpx.Response:
        request = self.recorder.request(self.scope, body, keep_length=False)
        if "accept-encoding" in request.headers:
            request.headers["accept-encoding"] = offered(request.headers["accept-encoding"])
        return await self.recorder.client.send(request, stream=True)

    async def _forward_plainly(self) -> None:
        try:
            request = self.recorder.request(self.scope, self.body, keep_length=False)
            response = await self.recorder.client.send(request, stream=True)
        except httpx.HTTPError as error:
            await _refuse(self.send, error)
            return
        await RawAnswer(response, self.send).forward()

    async def _answer(self, response: httpx.Response, sent: Sent) -> None:
        status, kind = response.status_code, response.headers.get("content-type", "")
        kind = kind.split(";")[0].strip().lower()
        log = partial(self._log, sent)
        answer: Answer
        if status != 200:
            self.recorder.miss(f"the server answered {status}", self.path, status, sent)
            answer = RawAnswer(response, self.send)
        elif not readable(response.headers.get("content-encoding", "")):
            self.recorder.miss("the answer is in an unknown encoding", self.path, status, sent)
            answer = RawAnswer(response, self.send)
        elif kind == "text/event-stream":
            answer = StreamAnswer(response, self.send, sent, log, self.recorder.max_body_bytes)
        else:
            answer = JsonAnswer(response, self.send, sent, log, self.recorder.max_body_bytes)
        await answer.forward()

    async def _log(self, sent: Sent, outcome: Outcome) -> None:
        """Write the line of a finished answer; on disk when this returns."""
        recorder = self.recorder
        if outcome.response is None:
            recorder.miss(outcome.ended, self.path, 200, sent)
            return
        try:
            line = exchange_line(
                sent,
                outcome.response,
                timing=Timing(self.received, outcome.first_token, recorder.now()),
                path=self.path,
                status=200,
                ended=outcome.ended,
                notes=outcome.notes,
            )
        except TraceSyntaxError as error:
            recorder.miss(f"the exchange cannot be written: {error.message}", self.path, 200, sent)
            return
        if recorder.write(recorder.log, line):
            recorder.tally.recorded += 1
            await asyncio.to_thread(recorder.log.sync)


async def _read(receive: Receive, limit: int) -> tuple[bytes, bool]:
    """The body up to the first piece beyond the limit, and whether more follows."""
    parts, size, more = [], 0, True
    while more and size <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeftError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts), more


async def _chained(start: bytes, receive: Receive, *, more: bool) -> AsyncIterator[bytes]:
    if start:
        yield start
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeftError
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _until_client_leaves(work: Any, receive: Receive) -> None:
    """Run `work`; cancel it when the client closes the connection."""
    serving = asyncio.ensure_future(work)

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    watching = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        if not serving.done():
            serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def _refuse(send: Send, error: httpx.HTTPError) -> None:
    """Tell the client, in the form of OpenAI's errors, that the server cannot be reached."""
    text = f"the server behind this recorder cannot be reached: {type(error).__name__}"
    body = json.dumps(
        {"error": {"message": text, "type": "upstream_unreachable", "code": _UNREACHABLE}}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": _UNREACHABLE, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
