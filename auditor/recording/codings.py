"""Content codings of HTTP that can be read, changed and written again: gzip, deflate, identity. Pure.

RFC 9110, section 8.4. A proxy offers a server only these, because it must look into the answer.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_STEP = 1 << 16


def readable(coding: str) -> bool:
    """Whether a Content-Encoding is one of ours (empty and identity are)."""
    return coding.strip().lower() in ("", "identity", *_WINDOW)


def offered(accept_encoding: str) -> str:
    """An Accept-Encoding cut down to what can be read."""
    kept = [
        part.strip()
        for part in accept_encoding.split(",")
        if part.split(";")[0].strip().lower() in ("gzip", "x-gzip", "deflate", "identity")
    ]
    return ", ".join(kept) or "identity"


class TooLargeError(Exception):
    """More than the permitted bytes came out of a body."""


@dataclass(slots=True)
class Coding:
    """Decodes a body, and encodes one the same way, piece by piece.

    Attributes:
        name: the Content-Encoding.
        limit: most decoded bytes; beyond it `decode` raises.
    """

    name: str
    limit: int
    _size: int = 0
    _decoder: zlib._Decompress | None = field(default=None)
    _encoder: zlib._Compress | None = field(default=None)

    def __post_init__(self) -> None:
        window = _WINDOW.get(self.name.strip().lower())
        if window is not None:
            self._decoder, self._encoder = zlib.decompressobj(window), zlib.compressobj(wbits=window)

    def decode(self, data: bytes) -> bytes:
        """The plain bytes of the next piece.

        Raises:
            TooLargeError: there are more than the limit.
            zlib.error: the data is damaged.
        """
        if self._decoder is None:
            plain = data
        else:
            parts, rest = [], data
            while rest and not self._decoder.eof:
                parts.append(self._decoder.decompress(rest, _STEP))
                rest = self._decoder.unconsumed_tail
                if self._size + sum(map(len, parts)) > self.limit:
                    raise TooLargeError
            plain = b"".join(parts)
        self._size += len(plain)
        if self._size > self.limit:
            raise TooLargeError
        return plain

    def encode(self, data: bytes, *, last: bool = False) -> bytes:
        """The next piece encoded, so that it can be decoded without what follows."""
        if self._encoder is None:
            return data
        out = self._encoder.compress(data) if data else b""
        return out + self._encoder.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
