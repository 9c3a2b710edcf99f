"""`record`: run the recording proxy until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from auditor.errors import AuditError, OptionError
from auditor.listening import bound_socket, is_loopback, serve
from auditor.recording.line_log import LineLog
from auditor.recording.proxy import Recorder, Tally
from auditor.seed_files import SeedDispenser

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_SECONDS = 30.0


def server_url(address: str, *, option: str) -> httpx.URL:
    """A server's base address.

    Raises:
        OptionError: it is no http or https address.
    """
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise OptionError(f"{address!r}: {error}", where=option) from None
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise OptionError(f"{address!r} is no server address", where=option, fix="say http://127.0.0.1:8000")
    if url.userinfo:
        raise OptionError("holds a password", where=option, fix="let the client send its credentials")
    return url


def new_client(url: httpx.URL, *, answer_seconds: float | None) -> httpx.AsyncClient:
    """Connections to a server, as many as are needed.

    Proxies of the environment are used for other machines only.
    """
    timeout = httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=not is_loopback(url.host))


@contextmanager
def recorder(
    upstream: str,
    out: Path,
    *,
    seed_key: Path | None = None,
    answer_seconds: float | None = None,
    on_loss: Callable[[AuditError], None] = lambda _error: None,
) -> Iterator[Recorder]:
    """The proxy's application with its files open.

    Args:
        upstream: base address of the server.
        out: log to append to; requests without an answer to record go to `OUT.failures`.
        seed_key: key file whose seeds are given to requests without one.
        answer_seconds: longest silence of the server; None waits.
        on_loss: told when a line cannot be written.

    Raises:
        OptionError, TraceFileError: an option or file cannot be used.
    """
    url = server_url(upstream, option="--upstream")
    with ExitStack() as stack:
        log = stack.enter_context(LineLog(out))
        failures = stack.enter_context(LineLog(out.with_name(out.name + ".failures")))
        dispenser = stack.enter_context(SeedDispenser(seed_key)) if seed_key else None
        yield Recorder(
            url,
            log,
            failures,
            new_client(url, answer_seconds=answer_seconds),
            next_seed=None if dispenser is None else lambda: dispenser.take()[1],
            on_loss=on_loss,
        )


def record(
    upstream: str,
    out: Path,
    *,
    listen: str = "127.0.0.1:8900",
    seed_key: Path | None = None,
    answer_seconds: float | None = None,
    on_start: Callable[[socket.socket], None] = lambda _listener: None,
    on_loss: Callable[[AuditError], None] = lambda _error: None,
) -> Tally:
    """Serve the recording proxy until SIGINT or SIGTERM, and say what was recorded.

    Args:
        upstream, out, seed_key, answer_seconds, on_loss: as `recorder`.
        listen: `HOST:PORT`; loopback unless said otherwise.
        on_start: told the listening socket.

    Raises:
        OptionError, TraceFileError: an option or file cannot be used.
    """
    opened = recorder(upstream, out, seed_key=seed_key, answer_seconds=answer_seconds, on_loss=on_loss)
    with opened as application, bound_socket(listen) as listener:
        on_start(listener)
        serve(with_client(application), listener)
    return application.tally


def with_client(application: Recorder) -> Any:
    """The application with its connections closed at shutdown."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            async with _closing(application):
                await application(scope, receive, send)
        else:
            await application(scope, receive, send)

    return wrapped


@asynccontextmanager
async def _closing(application: Recorder) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await application.client.aclose()
