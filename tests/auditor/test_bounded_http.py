"""What is no request is refused over a raw socket, in bounded memory and time; what is one is answered."""

from __future__ import annotations

import asyncio
import socket
import time
from urllib.parse import urlsplit

import pytest

from auditor import bounded_http
from auditor.bounded_http import MOST_HEADER_BYTES
from auditor.listening import serving

HEAD = b"POST /x HTTP/1.1\r\nHost: here\r\n"


async def application(scope, receive, send):
    """Answers with the names of the headers it saw after the body was read, and the body's length."""
    if scope["type"] != "http":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message["body"]), message["more_body"]
    await asyncio.sleep(0.01)  # trailers that came meanwhile would be there
    body = b"%s %d" % (b",".join(name for name, _ in scope["headers"]), length)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address():
    with serving(application) as found:
        yield urlsplit(found)


@pytest.fixture
def link(address):
    with socket.create_connection((address.hostname, address.port), timeout=20) as found:
        yield found


def answer(link):
    """All that comes until the server ends the connection, or says nothing for a second after an answer."""
    found = b""
    try:
        while part := link.recv(65536):
            found += part
            link.settimeout(1.0)
    except TimeoutError:
        return found + b"[open]"
    except ConnectionError:  # it ended while bytes were on their way to it
        pass
    return found


def flood(link, beginning, more, most=64 << 20):
    """Send without end; how many bytes were taken before the server ended it."""
    link.sendall(beginning)
    sent = 0
    try:
        while sent < most:
            sent += link.send(more)
    except ConnectionError:
        pass
    return sent


def test_requests_are_answered_one_after_the_other_and_at_once(link):
    one = HEAD + b"Content-Length: 3\r\n\r\nabc"
    link.sendall(one * 2)
    assert answer(link).count(b"host,content-length 3") == 2
    link.settimeout(20)
    for byte in one:
        link.sendall(bytes([byte]))
    assert answer(link).endswith(b"host,content-length 3[open]")


def test_headers_up_to_the_bound_are_taken_and_beyond_it_refused(link, address):
    filler = b"X: " + b"y" * (MOST_HEADER_BYTES - 200) + b"\r\n"
    link.sendall(HEAD + filler + b"Content-Length: 0\r\n\r\n")
    assert answer(link).startswith(b"HTTP/1.1 200 ")
    with socket.create_connection((address.hostname, address.port), timeout=20) as other:
        other.sendall(HEAD + filler + b"Y: " + b"y" * 400 + b"\r\nContent-Length: 0\r\n\r\n")
        assert answer(other).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    ("beginning", "more"),
    [
        (b"GET /", b"a" * 8192),
        (HEAD + b"X: ", b"y" * 8192),
        (HEAD + b"X", b"x" * 8192),
        (HEAD, b"X: y\r\n" * 1024),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"e" * 8192),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ", b"y" * 8192),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"X: y\r\n" * 1024),
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\nGET /", b"a" * 8192),
    ],
    ids=["target", "value", "name", "many", "extension", "trailer", "trailers", "second target"],
)
def test_what_never_ends_is_cut_off_soon(link, beginning, more):
    link.settimeout(20)
    assert flood(link, beginning, more) < 16 << 20  # what socket buffers hold
    assert b"[open]" not in answer(link)


def test_trailers_never_become_headers_of_a_request_under_way(link):
    link.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
    found = answer(link)
    assert found.endswith(b"host,transfer-encoding 3[open]")
    assert b"authorization" not in found


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\nX : y\n\n",
        HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
        b"CONNECT other:443 HTTP/1.1\r\nHost: other\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_ends_the_connection(link, request_bytes):
    link.sendall(request_bytes)
    found = answer(link)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert b"[open]" not in found


def test_an_upgrade_that_is_not_offered_is_an_ordinary_request(link):
    link.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    found = answer(link)
    assert found.startswith(b"HTTP/1.1 200 ")
    assert b"[open]" not in found


def test_a_crowd_of_requests_behind_one_another_is_refused(link):
    assert flood(link, b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 300, most=300 * 27) > 0
    assert b"[open]" not in answer(link)


def test_headers_that_do_not_come_are_not_waited_for(address, monkeypatch):
    monkeypatch.setattr(bounded_http, "HEADER_SECONDS", 0.3)
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: h"):
        with socket.create_connection((address.hostname, address.port), timeout=20) as link:
            link.sendall(sent)
            started = time.monotonic()
            assert answer(link).startswith(b"HTTP/1.1 408 ")
            assert time.monotonic() - started < 5


def test_an_answer_that_takes_longer_than_headers_may_is_waited_for(address, monkeypatch):
    monkeypatch.setattr(bounded_http, "HEADER_SECONDS", 0.3)
    with socket.create_connection((address.hostname, address.port), timeout=20) as link:
        link.sendall(HEAD + b"Content-Length: 2\r\n\r\na")
        time.sleep(0.8)
        link.sendall(b"b")
        assert answer(link).startswith(b"HTTP/1.1 200 ")
