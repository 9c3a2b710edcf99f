"""What a log handed in may expand to: bounded before anybody works on it.

One encoding layer; once `FREE_BYTES` came out, at most `MOST_RATIO` bytes for each byte in. Real logs shrink
some tens of times, a gigabyte of zeros thirty thousand times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from auditor.service.errors import CompressionBombError, RequestInvalidError
from auditor.trace_streams import (
    HEAD_BYTES,
    STEP_BYTES,
    BrokenStreamError,
    container_of,
    decompressed,
    foreign_format_of,
)

MOST_RATIO = 200
FREE_BYTES = 1 << 20


def check_log(chunks: Iterable[bytes]) -> None:
    """Decompress a log and throw it away, in the memory of a step.

    Args:
        chunks: the log's bytes; the first holds at least 8 of them unless it is all there is.

    Raises:
        RequestInvalidError: empty, broken off, or a format that is no log.
        CompressionBombError: it expands too far, or to compressed bytes.
    """
    stream = iter(chunks)
    head = next(stream, b"")
    if not head:
        raise RequestInvalidError("the log is empty", where="body")
    container = container_of(head)
    if container == "parquet":
        return  # see `parquet_check`: it is not read from front to back
    read = 0

    def counted() -> Iterator[bytes]:
        nonlocal read
        for start in range(0, len(head), STEP_BYTES):
            part = head[start : start + STEP_BYTES]
            read += len(part)
            yield part
        for part in stream:
            read += len(part)
            yield part

    came, beginning = 0, b""
    try:
        for part in decompressed(counted(), container):
            if len(beginning) < HEAD_BYTES:
                beginning += part[:4096]
                _check_beginning(beginning, compressed=container != "plain")
            came += len(part)
            if came > max(FREE_BYTES, MOST_RATIO * read):
                raise CompressionBombError(f"expands more than {MOST_RATIO}-fold", where="body")
    except BrokenStreamError as error:
        raise RequestInvalidError(f"cannot be decompressed: {error}", where="body") from None


def _check_beginning(beginning: bytes, *, compressed: bool) -> None:
    if compressed and container_of(beginning) != "plain":
        raise CompressionBombError("compressed twice", where="body", fix="send one layer")
    foreign = foreign_format_of(beginning)
    if foreign:
        raise RequestInvalidError(f"is {foreign}, not a trace log", where="body")
