"""A provider's session key on disk: 32 random bytes from which every salt is derived; mode 0600."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from auditor.durable_files import write_durably
from auditor.errors import KeyFileError, OutputExistsError
from auditor.merkle.token_leaves import MIN_KEY_BYTES

_LINE = re.compile(r"auditor\.session-key/v1 ([0-9a-f]{64})\n?")


def new_session_key(path: Path) -> None:
    """Make one from the system's random source.

    Raises:
        OutputExistsError: there is such a file; keys are never overwritten.
    """
    if path.exists():
        raise OutputExistsError(
            "exists; a key is never overwritten", where=str(path), fix="choose another name"
        )
    write_durably(path, f"auditor.session-key/v1 {os.urandom(MIN_KEY_BYTES).hex()}\n".encode(), mode=0o600)


def read_session_key(path: Path) -> bytes:
    """The key's bytes.

    Raises:
        KeyFileError: missing, open to others, or no session key.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(200)
            mode = os.fstat(stream.fileno()).st_mode
    except OSError as error:
        fix = "make one with `audit keys session`"
        raise KeyFileError(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileError("others can read this key", where=str(path), fix=f"chmod 600 {path}")
    match = _LINE.fullmatch(raw.decode("ascii", "replace"))
    if match is None:
        raise KeyFileError("no session key", where=str(path), fix="make one with `audit keys session`")
    return bytes.fromhex(match[1])
