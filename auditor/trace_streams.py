"""Byte streams of trace files: which container it is, bounded decompression, bounded lines. Pure.

Chunks come in as an iterator of bytes and leave as an iterator of bytes or lines, so nothing here knows
a file. Invariants:

* Memory: one chunk in, one chunk out (`STEP_BYTES`; for a hostile zstd stream 8 MiB), plus one
  line of at most the permitted length. A longer line is skipped as it passes, never collected.
* A compressed stream that ends before its end mark, or is damaged, raises `BrokenStreamError` after what
  was decoded before it (a failed checksum costs the step it is found in): that is audited, and the break
  is not silent.
* Only a line feed ends a line. A carriage return before it is dropped.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MOST_WINDOW_BYTES = 8 << 20
"""What a zstd frame may ask a reader to hold; RFC 8878, section 3.1.1.1.2, has readers support so much."""
STEP_BYTES = 64 * 1024

# A zstd block of 4 bytes can stand for 128 KiB, and the library hands out all that a chunk decodes to.
_ZSTD_STEP_BYTES = 256

Container = Literal["plain", "gzip", "zstd", "parquet"]

HEAD_BYTES = 8
"""Enough bytes to tell every container below."""

_CONTAINERS: dict[bytes, Container] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "parquet",
}

_FOREIGN = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7-Zip",
    b"\x04\x22\x4d\x18": "lz4",
    b"ARROW1": "Arrow IPC",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"SQLite": "SQLite",
    b"\x89PNG": "PNG",
    b"%PDF": "PDF",
}


class BrokenStreamError(Exception):
    """Compressed data that cannot be decoded to its end; the caller knows the place and reports it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end; `raw` is None when it was longer than permitted and skipped."""

    number: int
    raw: bytes | None


def container_of(head: bytes) -> Container:
    """Tell the container by its first bytes; whatever has no mark is taken for plain lines."""
    if head[1:4] == b"\x2a\x4d\x18" and head[:1] and 0x50 <= head[0] <= 0x5F:
        return "zstd"  # a skippable frame, which may come before the data
    return next((kind for magic, kind in _CONTAINERS.items() if head.startswith(magic)), "plain")


def foreign_format_of(head: bytes) -> str | None:
    """Name a format we cannot read, or None when the bytes may be lines of JSON.

    NUL bytes alone do not condemn a file: a provider could hide a whole log behind one junk line.
    They do when no line of the head even begins like an object.
    """
    for magic, name in _FOREIGN.items():
        if head.startswith(magic):
            return name
    begins_like_json = any(line.lstrip().startswith(b"{") for line in head.split(b"\n"))
    return "a binary file" if b"\0" in head and not begins_like_json else None


def decompressed(chunks: Iterable[bytes], container: Container) -> Iterator[bytes]:
    """Decode a stream chunk by chunk.

    Raises:
        BrokenStreamError: the stream is damaged or ends early.
    """
    if container == "gzip":
        return filter(None, _decoded(chunks, _new_inflater, "gzip"))
    if container == "zstd":
        return filter(None, _decoded(_in_small_steps(chunks), _new_unzstd, "zstd"))
    return iter(chunks)


class _Decoder(Protocol):
    """What zlib and zstandard objects have in common: they decode one member or frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, /, *most_bytes: int) -> bytes: ...


def _new_inflater() -> _Decoder:
    return cast("_Decoder", zlib.decompressobj(31))  # gzip with header, checksum and length


def _new_unzstd() -> _Decoder:
    return cast("_Decoder", zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW_BYTES).decompressobj())


def _in_small_steps(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), _ZSTD_STEP_BYTES):
            yield chunk[start : start + _ZSTD_STEP_BYTES]


def _decoded(chunks: Iterable[bytes], new_decoder: Callable[[], _Decoder], name: str) -> Iterator[bytes]:
    """Decode members or frames that follow each other; zeros between and after them are padding."""
    decoder: _Decoder | None = None
    for chunk in chunks:
        pending = chunk
        while pending:
            if decoder is None:
                pending = pending.lstrip(b"\0")
                if not pending:
                    break
                decoder = new_decoder()
            yield _step(decoder, pending, name)
            if decoder.eof:
                pending, decoder = decoder.unused_data, None
            else:
                pending = decoder.unconsumed_tail
    # All input is taken, but zlib may still hold output that did not fit into its last step.
    while decoder is not None and (rest := _step(decoder, b"", name)):
        yield rest
    if decoder is not None and not decoder.eof:
        raise BrokenStreamError(f"{name}: the stream ends before its end mark")


def _step(decoder: _Decoder, data: bytes, name: str) -> bytes:
    if decoder.eof:
        return b""
    limit = (STEP_BYTES,) if name == "gzip" else ()  # zstandard takes none, hence its small steps
    try:
        return decoder.decompress(data, *limit)
    except (zlib.error, zstandard.ZstdError) as error:
        raise BrokenStreamError(f"{name}: {error}") from None


def lines_of(chunks: Iterable[bytes], *, max_bytes: int) -> Iterator[Line]:
    """Split a stream at line feeds; a byte order mark before the first line is dropped.

    A last line without a line feed is a line. Errors of `chunks` pass through after the lines before.
    """
    number, parts, size = 0, list[bytes](), 0

    def finished() -> Line:
        if size > max_bytes + len(b"\r"):
            return Line(number, None)
        raw = b"".join(parts).removesuffix(b"\r")
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        return Line(number, raw if len(raw) <= max_bytes else None)

    for chunk in chunks:
        start = 0
        while True:
            end = chunk.find(b"\n", start)
            piece = chunk[start:] if end < 0 else chunk[start:end]
            size += len(piece)
            if size <= max_bytes + len(b"\r"):
                parts.append(piece)
            else:
                parts.clear()
            if end < 0:
                break
            number += 1
            yield finished()
            parts, size, start = [], 0, end + 1
    if size:
        number += 1
        yield finished()
