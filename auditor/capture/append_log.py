"""A trace file that a running engine appends to, and the proof that somebody is doing so.

Invariants:

* A line is in the file whole or not at all, whoever else appends (record lock) and if the disk fills up (the
  file is cut back).
* While a recorder is alive it holds a shared `flock` on the file. `is_recorded` asks for that lock, which is
  how a front end in another process learns that the engine's recorder is not there: engines leave plug-ins
  out without saying so. A recorder that fails lets go of the lock.

The file is made readable by its owner only: it holds prompts. Local file systems; POSIX only.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from auditor.durable_files import append_whole
from auditor.errors import CaptureError

_MODE = 0o600


class AppendLog:
    """The recorder's end of a trace file.

    Raises:
        CaptureError: the name does not end in .jsonl, or the file cannot be opened for appending.
    """

    def __init__(self, path: Path) -> None:
        if not path.name.lower().endswith(".jsonl"):
            raise CaptureError(
                "the name does not end in .jsonl", where=str(path), fix="lines are appended as text"
            )
        self.path = path
        try:
            # Read access too, for a record lock is taken on it and its end is looked up.
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        except OSError as error:
            raise CaptureError(f"cannot be opened: {error.strerror}", where=str(path)) from None
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def write(self, line: bytes) -> None:
        """Append one line, which ends in its line feed.

        Raises:
            CaptureError: the disk is full or gone; the log is closed, and the lock free.
        """
        if self._file < 0:
            raise CaptureError("is closed", where=str(self.path))
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                append_whole(self._file, line)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)
        except OSError as error:
            self.close()
            raise CaptureError(f"cannot be written: {error.strerror}", where=str(self.path)) from None

    def close(self) -> None:
        """Let go of file and lock; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_recorded(path: Path) -> bool:
    """Whether some process on this machine holds `path` open as its `AppendLog`."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
