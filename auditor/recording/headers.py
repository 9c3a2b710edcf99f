"""Which headers pass through a proxy: all but those of one connection (RFC 9110, section 7.6.1). Pure."""

from __future__ import annotations

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
    *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}


def forwarded(headers: Iterable[tuple[bytes, bytes]], dropped: Iterable[bytes] = ()) -> Headers:
    """Names in lower case with their values, in order, without hop-by-hop headers and `dropped`."""
    found = [(name.lower(), value) for name, value in headers]
    named = {
        part.strip().lower() for name, value in found if name == b"connection" for part in value.split(b",")
    }
    gone = _HOP_BY_HOP | named | set(dropped)
    return [(name, value) for name, value in found if name not in gone]
