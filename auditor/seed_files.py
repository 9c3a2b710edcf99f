"""Seed keys on disk, and the counter that sees to it that no seed is handed out twice.

The counter of `FILE` lies in `FILE.next`. Numbers are reserved there, and on disk, before they are used: a
crash skips some, nothing repeats one. One process at a time holds the counter.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from auditor.errors import OptionError, OutputExistsError
from auditor.seeds import SeedKey, key_from_json, key_to_json

_BLOCK = 64


def read_key(path: Path) -> SeedKey:
    """Read a key file.

    Raises:
        OptionError, TraceSyntaxError: it is missing, unreadable or no key.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise OptionError(
            f"cannot be read: {error.strerror}", where=str(path), fix="make one with `audit seed new`"
        ) from error
    return key_from_json(raw, where=str(path))


def write_key(path: Path, key: SeedKey) -> None:
    """Write a new key file that only its owner may read.

    Raises:
        OutputExistsError: the file exists; a key is never overwritten.
        OptionError: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise OutputExistsError("exists already", where=str(path), fix="choose another name") from None
    except OSError as error:
        raise OptionError(f"cannot be written: {error.strerror}", where=str(path)) from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(key_to_json(key))
        stream.flush()
        os.fsync(stream.fileno())


class SeedDispenser:
    """Hands out the seeds of a key file in order, across processes and crashes. A context manager.

    Raises:
        OptionError: the key or its counter cannot be used, or another process is handing out its seeds.
    """

    def __init__(self, path: Path) -> None:
        self.key = read_key(path)
        self._path = path.with_name(path.name + ".next")
        self._descriptor = -1
        self._next = self._reserved = 0

    def __enter__(self) -> Self:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            text = os.read(self._descriptor, 64).decode("ascii", errors="replace").strip()
        except BlockingIOError:
            self._close()
            raise OptionError(
                "another process is handing out this key's seeds", where=str(self._path)
            ) from None
        except OSError as error:
            self._close()
            raise OptionError(f"cannot be used: {error.strerror}", where=str(self._path)) from error
        if text and not (text.isascii() and text.isdecimal()):
            self._close()
            raise OptionError(f"holds {text[:20]!r}, not the next request's number", where=str(self._path))
        self._next = self._reserved = int(text or "0")
        return self

    def take(self) -> tuple[int, int]:
        """The next request's number and seed.

        Raises:
            OptionError: all seeds of the key are used up, or the disk is full.
        """
        if self._next == self._reserved:
            self._reserve(self._next + _BLOCK)
        counter, self._next = self._next, self._next + 1
        return counter, self.key.seed(counter)

    def _reserve(self, upto: int) -> None:
        try:
            # Always 21 bytes, so that one write replaces the old number whole.
            os.pwrite(self._descriptor, f"{upto:020d}\n".encode("ascii"), 0)
            os.fsync(self._descriptor)
        except OSError as error:
            raise OptionError(f"cannot be written: {error.strerror}", where=str(self._path)) from error
        self._reserved = upto

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._next < self._reserved:
                self._reserve(self._next)  # what was reserved and not used is given back
        finally:
            self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
