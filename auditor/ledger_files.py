"""The alpha ledger on disk: a level is written down, and on the disk, before its evidence is looked at.

One JSON object a line: first `{"ledger": 1, "alpha": 0.01}`, then for each accusation that was ever opened
`{"number": 1, "subject": "acme 2026-11", "alpha": 0.006..., "opened": "2026-11-28T19:00:00Z"}`. A subject
is one growing log: its evidence may be looked at again at the same level; another log needs another subject.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from auditor.errors import OptionError, TraceFileError
from auditor.ledger import Entry, Ledger

_VERSION = 1
_FIX = "keep the file as it was written, or begin another"


def level_for(path: Path, subject: str, alpha: float | None, *, now: datetime | None = None) -> Entry:
    """The entry of a subject: the one it has, or a new one, which is on the disk when this returns.

    Args:
        alpha: false-alarm rate of the whole ledger, for one that does not exist yet; otherwise it must be the
            ledger's own, or None.

    Raises:
        OptionError: no ledger and no alpha, another alpha than the ledger's, an empty subject, or a file that
            is no ledger. TraceFileError: it cannot be read or written.
    """
    if not subject.strip():
        raise OptionError(
            "is empty", where="--subject", fix="name what is audited, for instance 'acme 2026-11'"
        )
    with _locked(path) as stream:
        ledger = _read(stream, path) if stream.tell() else None
        if ledger is None:
            if alpha is None:
                raise OptionError("a new ledger needs its alpha", where=str(path), fix="pass --alpha")
            ledger = Ledger(alpha)
            _write(stream, {"ledger": _VERSION, "alpha": alpha})
        elif alpha is not None and alpha != ledger.alpha:
            raise OptionError(
                f"alpha {alpha}; the ledger's is {ledger.alpha}", where=str(path), fix="drop --alpha"
            )
        for entry in ledger.entries:
            if entry.subject == subject:
                return entry
        _, entry = ledger.opened(subject)
        opened = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
        _write(stream, {"number": entry.number, "subject": subject, "alpha": entry.alpha, "opened": opened})
        return entry


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    """The file, at its end and held by nobody else."""
    try:
        with path.open("a+", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0, os.SEEK_END)
            yield stream
    except OSError as error:
        raise TraceFileError(f"cannot be used: {error.strerror}", where=str(path)) from error


def _write(stream: IO[str], value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()
    os.fsync(stream.fileno())


def _read(stream: IO[str], path: Path) -> Ledger:
    """Every level again from its number: a file that was edited to give more is refused."""
    stream.seek(0)
    lines = stream.read().splitlines()
    try:
        head, *rest = (json.loads(line) for line in lines)
        if head["ledger"] != _VERSION:
            raise OptionError(f"version {head['ledger']!r}", where=str(path), fix=_FIX)
        ledger = Ledger(head["alpha"])
        for number, line in enumerate(rest, start=2):
            ledger, entry = ledger.opened(line["subject"])
            if (line["number"], line["alpha"]) != (entry.number, entry.alpha):
                raise OptionError("is not the level that comes next", where=f"{path}:{number}", fix=_FIX)
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError("is not a ledger", where=str(path), fix=_FIX) from error
    return ledger
