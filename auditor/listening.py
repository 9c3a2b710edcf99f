"""Serve an ASGI application on an address, until told to stop."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from auditor.bounded_http import BoundedHttp
from auditor.errors import OptionError


def bound_socket(listen: str) -> socket.socket:
    """A listening socket for `HOST:PORT` (port 0: any free one; `[::1]:0` for IPv6).

    Raises:
        OptionError: it is no address, or cannot be listened on.
    """
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise OptionError(f"{listen!r} is no address", where="--listen", fix="say 127.0.0.1:8900")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=2048)
    except OSError as error:
        raise OptionError(
            f"cannot listen on {listen}: {error.strerror or error}",
            where="--listen",
            fix="choose another port",
        ) from None


def address_of(listener: socket.socket) -> str:
    """`http://HOST:PORT` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def new_server(application: Any) -> uvicorn.Server:
    """A server that adds nothing of its own to answers: no `Server`, no `Date`, no access log."""
    config = uvicorn.Config(
        application,
        http=BoundedHttp,
        loop="auto",  # uvloop where it is installed
        ws="none",
        lifespan="on",
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
    )
    return uvicorn.Server(config)


def serve(application: Any, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; answers on their way are finished."""
    new_server(application).run(sockets=[listener])


@contextmanager
def serving(application: Any, listen: str = "127.0.0.1:0") -> Iterator[str]:
    """Serve in a thread for as long as the `with` block lasts; yields the address.

    Raises:
        OptionError: the address cannot be listened on.
    """
    listener = bound_socket(listen)
    server = new_server(application)
    run: Callable[[], None] = lambda: server.run(sockets=[listener])  # noqa: E731
    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    try:
        # The socket listens already: whoever connects before the server is up waits.
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
