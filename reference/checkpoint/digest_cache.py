"""Digests of large files, remembered between runs in the user's cache directory.

Invariants:

- An entry counts for one path, device, inode, size, modification time and change time (nanoseconds): the last
  one moves with every write and cannot be set back by the file's owner.
- Nothing is remembered of a file that changed while it was hashed or within `SETTLED_SECONDS` before: clocks
  of file systems are coarse, and a later write could bear the same time.
- A cache that is missing, unreadable, too large, malformed, or writable by others is no cache. It is never an
  error, and neither is a directory that cannot be written.
- The file is replaced as a whole, so a reader sees one version of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

SETTLED_SECONDS = 2.0
MOST_ENTRIES = 4096
MOST_BYTES = 4 << 20
_VERSION = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True)
class KnownDigests:
    """What a run knows; threads may add to it.

    Attributes:
        entries: (state of the file, digest) by absolute path.
        changed: whether it knows more than the file it was read from.
    """

    least_bytes: int
    entries: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    changed: bool = False

    def find(self, path: Path, now: os.stat_result) -> str | None:
        """Look up the digest of an open file whose state is `now`."""
        known = self.entries.get(_key(path))
        return known[1] if known is not None and known[0] == _state(now) else None

    def add(self, path: Path, before: os.stat_result, after: os.stat_result, digest: str) -> None:
        """Remember a digest that was computed between two looks at the file, if it may be."""
        settled = max(after.st_mtime, after.st_ctime) < time.time() - SETTLED_SECONDS
        if settled and _state(before) == _state(after) and after.st_size >= self.least_bytes:
            self.entries.pop(_key(path), None)  # what is newest stands last
            self.entries[_key(path)] = (_state(after), digest)
            self.changed = True


@dataclass(frozen=True, slots=True)
class DigestCache:
    """Where digests are remembered.

    Attributes:
        file: a JSON file; it and its directory are made when needed.
        least_bytes: smaller files are hashed anew each time.
    """

    file: Path = field(default_factory=lambda: Path(user_cache_dir("auditor")) / "digests.json")
    least_bytes: int = 16 << 20

    def load(self) -> KnownDigests:
        """Read what is remembered; nothing if the file is not fit to be believed."""
        known = KnownDigests(self.least_bytes)
        with contextlib.suppress(OSError, ValueError, RecursionError):
            known.entries.update(_entries(_private_text(self.file)))
        return known

    def save(self, known: KnownDigests) -> None:
        """Write what is new, with what other processes have written meanwhile."""
        if not known.changed:
            return
        others = {key: entry for key, entry in self.load().entries.items() if key not in known.entries}
        newest = list((others | known.entries).items())[-MOST_ENTRIES:]
        value = {"version": _VERSION, "entries": {key: [*state, digest] for key, (state, digest) in newest}}
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(self.file, json.dumps(value))


def _key(path: Path) -> str:
    return str(path.absolute())


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _private_text(file: Path) -> str:
    with file.open("rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise ValueError("not a small regular file")
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            raise ValueError("others can write it")
        return stream.read(MOST_BYTES + 1).decode()


def _entries(text: str) -> dict[str, tuple[tuple[int, ...], str]]:
    value: Any = json.loads(text)
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        raise ValueError("another format")
    entries = value.get("entries")
    if not isinstance(entries, dict):
        raise ValueError("no entries")  # noqa: TRY004  one kind of unfit file
    result = {}
    for key, row in entries.items():
        if not isinstance(row, list) or len(row) != 6 or not all(type(number) is int for number in row[:5]):
            raise ValueError("not a file's state")
        if not isinstance(row[5], str) or not _DIGEST.fullmatch(row[5]):
            raise ValueError("not a digest")
        result[key] = (tuple(row[:5]), row[5])
    return result


def _replace(file: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".new")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).replace(file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
