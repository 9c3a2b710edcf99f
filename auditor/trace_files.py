"""Trace files: read them without trusting them, write them without leaving half of one.

Reading (`read_traces`):

1. The file is opened; missing, unreadable, empty or of a foreign format is a `TraceFileError`, raised.
2. The container is told by its first bytes, not by its name: plain lines, gzip, zstd, Parquet.
3. Each line, decompressed in bounded steps, is one request (`auditor.trace/v1`, a raw server log), or what an
   observability tool keeps of some (`auditor.adapters`).
4. A bad line is *yielded* as an error with its place; the rest of the file is still read. Lines are
   counted from 1, blank ones too. Ids may repeat: a request is known by its place.
5. A compressed stream that breaks off yields an error at the line it reached, and ends.

Writing (`TraceWriter`, `write_traces`): the bytes go to a temporary file in the same folder, which takes
the name at the end, in one step; after a failure there is no file. Same traces, same bytes (no times).
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import secrets
import sys
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, Self, cast, get_args

import zstandard

from auditor.adapters import adapted, format_of
from auditor.adapters.generation import Place
from auditor.errors import (
    AuditError,
    OptionError,
    OutputExistsError,
    TraceFieldError,
    TraceFileError,
    TraceSyntaxError,
)
from auditor.input_formats import AdaptedFormat, InputFormat
from auditor.openai_logs import traces_from_exchange
from auditor.strict_json import MAX_LINE_BYTES, load_object
from auditor.trace_format import digest_of, trace_from_object, trace_to_line
from auditor.trace_recipe import assert_recipe
from auditor.trace_streams import (
    HEAD_BYTES,
    STEP_BYTES,
    BrokenStreamError,
    Line,
    container_of,
    decompressed,
    foreign_format_of,
    lines_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from auditor.trace import Trace

__all__ = ["STANDARD_INPUT", "InputFormat", "TraceWriter", "assert_recipe", "read_traces", "write_traces"]

STANDARD_INPUT = "<stdin>"
"""The file name that traces read from `-` carry."""


def read_traces(
    path: str | Path,
    *,
    input_format: InputFormat = "auto",
    max_line_bytes: int = MAX_LINE_BYTES,
    more: Callable[[bool], bool] = lambda _came: False,
    label: str | None = None,
) -> Iterator[Trace | AuditError]:
    """Read a log request by request, in bounded memory; bad lines come out as errors in their place.

    Args:
        path: the file, or `-` for standard input (which cannot hold Parquet: that needs seeking).
        input_format: forces how a line is read; `auto` looks at its keys; `parquet` insists on the
            container. The container is told by its first bytes in any case.
        max_line_bytes: a longer line is reported and skipped, without being held in memory.
        more: asked at the end of the file, and told whether anything came since it was asked last; true
            looks again, for a log that is still being written (not Parquet). A line is read when it ends.
        label: what the file is called in traces and messages; its path when None.

    Raises:
        OptionError: an unknown `input_format`.
        TraceFileError: the file is missing, unreadable, empty or of a foreign format. Raised when the
            first item is asked for, or at the end of a file that holds nothing but blank lines.
    """
    if input_format not in get_args(InputFormat):
        choices = ", ".join(get_args(InputFormat))
        raise OptionError(f"{input_format!r} is none of {choices}", where="--input-format")
    file = label or (STANDARD_INPUT if str(path) == "-" else str(path))
    with _opened(path, file) as stream:
        head = _read_or_refuse(partial(stream.read, HEAD_BYTES), file)
        container = container_of(head)
        if container == "parquet":
            if input_format not in {"auto", "trace", "parquet"}:
                raise TraceFileError(f"is Parquet, which holds traces, not {input_format} logs", where=file)
            if not stream.seekable():
                raise TraceFileError(
                    "Parquet cannot be read from a pipe", where=file, fix="save it to a file"
                )
            from auditor.trace_parquet import read_parquet  # noqa: PLC0415  # pyarrow takes 40 MB

            yield from read_parquet(stream, file=file)
            return
        if input_format == "parquet":
            raise TraceFileError("is no Parquet file", where=file, fix="drop --input-format parquet")
        raw = itertools.chain([head], _growing(partial(stream.read1, STEP_BYTES), more))
        chunks = _first_chunk_checked(decompressed(raw, container), file)
        yield from _read_lines(lines_of(chunks, max_bytes=max_line_bytes), file, input_format, max_line_bytes)


def _growing(read: Callable[[], bytes], more: Callable[[bool], bool]) -> Iterator[bytes]:
    came = True
    while True:
        while data := read():
            came = True
            yield data
        if not more(came):
            return
        came = False


@contextmanager
def _opened(path: str | Path, file: str) -> Iterator[io.BufferedReader]:
    if str(path) == "-":
        # Standard input belongs to the process: it is read, not closed.
        yield io.BufferedReader(_Unclosed(sys.stdin.buffer))
        return
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(path).open("rb"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise TraceFileError(f"cannot be opened: {reason}", where=file, fix="check the path") from None
        yield stream


class _Unclosed(io.RawIOBase):
    """Standard input as a raw stream whose end of life leaves the process's own stream open."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read: Callable[[int], bytes] = getattr(self._source, "read1", self._source.read)
        data = read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _read_or_refuse(read: Callable[[], bytes], file: str) -> bytes:
    try:
        head = read()
    except OSError as error:
        raise TraceFileError(f"cannot be read: {error.strerror}", where=file) from None
    if not head:
        raise TraceFileError("is empty", where=file, fix="a log has one request a line")
    return head


def _first_chunk_checked(chunks: Iterator[bytes], file: str) -> Iterator[bytes]:
    """Look at the first decoded bytes before any line is made of them: some files are no logs at all."""
    try:
        first = next(chunks, b"")
        # The head of a plain file is a chunk of its own, too short to judge by.
        if 0 < len(first) <= HEAD_BYTES:
            first += next(chunks, b"")
    except BrokenStreamError as error:
        raise TraceFileError(f"cannot be decompressed: {error}", where=file, fix="copy it again") from None
    except OSError as error:
        raise TraceFileError(f"cannot be read: {error.strerror}", where=file) from None
    foreign = foreign_format_of(first)
    if foreign:
        raise TraceFileError(
            f"is {foreign}, not a trace log", where=file, fix="use .jsonl, .jsonl.gz, .jsonl.zst or .parquet"
        )
    return itertools.chain([first], chunks)


def _read_lines(
    lines: Iterator[Line], file: str, input_format: InputFormat, max_line_bytes: int
) -> Iterator[Trace | AuditError]:
    number, blank = 0, True
    try:
        for line in lines:
            number = line.number
            if line.raw is None:
                blank = False
                yield TraceSyntaxError(
                    f"longer than {max_line_bytes} bytes", where=f"{file}:{number}", fix="one request a line"
                )
            elif line.raw.strip():
                for item in _read_line(line.raw, file, number, input_format, max_line_bytes):
                    blank = False
                    yield item
    except (BrokenStreamError, OSError) as error:
        yield TraceFileError(
            f"the stream breaks off: {error}", where=f"{file}:{number + 1}", fix="copy the file again"
        )
        return
    if blank:
        raise TraceFileError("holds no requests", where=file, fix="a log has one request a line")


def _read_line(
    raw: bytes, file: str, line: int, input_format: InputFormat, max_line_bytes: int
) -> Iterator[Trace | AuditError]:
    where = f"{file}:{line}"
    try:
        value = load_object(raw, where=where, max_bytes=max_line_bytes)
        kind = input_format if input_format != "auto" else _kind_of(value, where)
        place: dict[str, Any] = {"file": file, "line": line, "raw_digest": digest_of(raw)}
        found: Iterable[Trace | AuditError]
        if kind == "trace":
            found = (trace_from_object(value, **place),)
        elif kind == "openai":
            found = traces_from_exchange(value, **place)
        else:
            found = adapted(value, cast("AdaptedFormat", kind), Place(**place))
    except AuditError as error:
        yield error
    else:
        yield from found


def _kind_of(value: dict[str, Any], where: str) -> Literal["trace", "openai"] | AdaptedFormat:
    if "schema" in value:
        return "trace"
    if "request" not in value and (kind := format_of(value)) is not None:
        return kind
    if "request" in value or "response" in value:
        return "openai"
    raise TraceFieldError(
        "has neither a field schema (a trace) nor request and response (a server log), and is no span",
        where=where,
        fix="see the formats in the manual, or force one with --input-format",
    )


class _Encoder(Protocol):
    def write(self, trace: Trace) -> None: ...
    def close(self) -> None: ...


class _LineEncoder:
    """Trace lines into a stream; closing ends the compression, if any, and leaves the file open."""

    def __init__(self, stream: IO[bytes], *, compressed: bool) -> None:
        self._stream = stream
        self._compressed = compressed

    def write(self, trace: Trace) -> None:
        self._stream.write(trace_to_line(trace))

    def close(self) -> None:
        if self._compressed:
            self._stream.close()


def _gzip_encoder(stream: IO[bytes]) -> _Encoder:
    # No name and no time in the header: the same traces give the same bytes.
    packed = gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0)
    return _LineEncoder(cast("IO[bytes]", packed), compressed=True)


def _zstd_encoder(stream: IO[bytes]) -> _Encoder:
    packed = zstandard.ZstdCompressor(write_checksum=True).stream_writer(stream, closefd=False)
    return _LineEncoder(packed, compressed=True)


def _parquet_encoder(stream: IO[bytes]) -> _Encoder:
    from auditor.trace_parquet import ParquetTraceWriter  # noqa: PLC0415  # as above

    return ParquetTraceWriter(stream)


_ENCODERS: dict[str, Callable[[IO[bytes]], _Encoder]] = {
    ".jsonl": partial(_LineEncoder, compressed=False),
    ".jsonl.gz": _gzip_encoder,
    ".jsonl.zst": _zstd_encoder,
    ".parquet": _parquet_encoder,
}
"""File name ending -> how traces are written."""


class TraceWriter:
    """Write traces one after the other; the file appears when the `with` block ends without an error.

    Raises:
        OptionError: the name ends in none of .jsonl, .jsonl.gz, .jsonl.zst, .parquet.
        OutputExistsError: the file exists and `overwrite` is false.
        TraceFileError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.count = 0
        self._overwrite = overwrite
        self._cleanup = ExitStack()
        name = self.path.name.lower()
        fitting = [ending for ending in _ENCODERS if name.endswith(ending)]
        if not fitting:
            raise OptionError(f"the name ends in none of {', '.join(_ENCODERS)}", where=str(path))
        self._new_encoder = _ENCODERS[fitting[0]]
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.tmp")

    def __enter__(self) -> Self:
        if self.path.exists() and not self._overwrite:
            raise self._exists()
        with ExitStack() as stack, self._failures_named():
            self._stream = stack.enter_context(self._temporary.open("xb"))
            stack.callback(self._temporary.unlink, missing_ok=True)
            self._encoder = self._new_encoder(self._stream)
            self._cleanup = stack.pop_all()
        return self

    def write(self, trace: Trace) -> None:
        """Add one trace.

        Raises:
            TraceFieldError, TraceSyntaxError: the trace cannot be written and read back exactly.
            TraceFileError: the disk is full or gone.
        """
        with self._failures_named():
            self._encoder.write(trace)
        self.count += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._cleanup, self._failures_named():
            if kind is None:
                self._encoder.close()
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._publish()
            else:
                # Compressors flush on close; what they flush is thrown away with the file.
                with suppress(Exception):
                    self._encoder.close()

    def _publish(self) -> None:
        if self._overwrite:
            self._temporary.replace(self.path)
            return
        try:
            # A link, unlike a rename, fails when someone else made the file in the meantime.
            os.link(self._temporary, self.path)
        except FileExistsError:
            raise self._exists() from None
        except OSError:
            # Some file systems have no links; there the check at the start must do.
            if self.path.exists():
                raise self._exists() from None
            self._temporary.replace(self.path)

    def _exists(self) -> OutputExistsError:
        return OutputExistsError("exists already", where=str(self.path), fix="choose another name")

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TraceFileError(f"cannot be written: {error.strerror}", where=str(self.path)) from None


def write_traces(path: str | Path, traces: Iterable[Trace], *, overwrite: bool = False) -> int:
    """Write traces to a file in the format its name ends in, and return how many there were.

    Raises:
        OptionError, OutputExistsError, TraceFileError, TraceFieldError, TraceSyntaxError: see `TraceWriter`.
    """
    with TraceWriter(path, overwrite=overwrite) as writer:
        for trace in traces:
            writer.write(trace)
    return writer.count
