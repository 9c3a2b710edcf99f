"""A log that grows by whole lines: each is written in one piece, and on disk before anybody relies on it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from auditor.durable_files import append_whole
from auditor.errors import TraceFileError


class LineLog:
    """Appends lines to a file, which one process at a time may do. A context manager.

    Raises:
        TraceFileError: the file cannot be opened, or another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                # A crash cut the last line short: it stays a bad line of its own.
                os.write(self._descriptor, b"\n")
        except BlockingIOError:
            self._close()
            raise TraceFileError("another process is writing it", where=str(self.path)) from None
        except OSError as error:
            self._close()
            raise TraceFileError(f"cannot be opened: {error.strerror}", where=str(self.path)) from None
        return self

    def write(self, line: bytes) -> None:
        """Append one line; after a failure the file is as it was before.

        Raises:
            TraceFileError: the disk is full or gone.
        """
        try:
            append_whole(self._descriptor, line)
        except OSError as error:
            raise TraceFileError(f"cannot be written: {error.strerror}", where=str(self.path)) from None

    def sync(self) -> None:
        """Wait until what was written is on disk."""
        os.fsync(self._descriptor)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
