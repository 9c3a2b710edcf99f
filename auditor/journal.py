"""Resumable work: a file that remembers which traces were already replayed, and what came out.

One JSON object a line, written after each trace. A line is taken up again only for the same raw bytes of
the trace, the same model and the same reference recipe. A line cut short by a crash is ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from auditor.errors import OptionError
from auditor.fingerprint_scores import FingerprintScore
from auditor.fingerprints.token_difr import TokenScores
from auditor.noise_model import RequestCounts

_VERSION = 2
Entry = tuple[TokenScores, RequestCounts, tuple[str, ...], tuple[FingerprintScore, ...]]


class Remembered(Protocol):
    """Scores by the digest of a trace's raw bytes, wherever they are kept."""

    def find(self, raw_digest: str) -> Entry | None:
        """What an earlier run made of the trace with these bytes."""

    def add(self, raw_digest: str, entry: Entry) -> None:
        """Remember a result."""


class Journal:
    """Scores by trace, on disk. Use `open_journal`."""

    def __init__(self, stream: IO[str] | None, key: str, entries: dict[str, Entry]) -> None:
        self._stream, self._key, self._entries = stream, key, entries

    def find(self, raw_digest: str) -> Entry | None:
        """What an earlier run made of the trace with these bytes."""
        return self._entries.get(raw_digest)

    def add(self, raw_digest: str, entry: Entry) -> None:
        """Remember a result; on disk when this returns."""
        if self._stream is None or not raw_digest:
            return
        line = {"journal": _VERSION, "key": self._key, **entry_to_json(raw_digest, entry)}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


def entry_to_json(raw_digest: str, entry: Entry) -> dict[str, Any]:
    """A result as plain values."""
    scores, counts, notes, fingerprints = entry
    return {
        "trace": raw_digest,
        "scores": {name: getattr(scores, name) for name in TokenScores.__slots__},
        "counts": [
            counts.tokens,
            sorted(counts.matched.items()),
            sorted((d, m, n) for (d, m), n in counts.missed.items()),
        ],
        "notes": notes,
        "fingerprints": [[getattr(f, name) for name in FingerprintScore.__slots__] for f in fingerprints],
    }


@contextmanager
def open_journal(
    path: Path | Remembered | None, *, model_digest: str, reference_recipe: str
) -> Iterator[Remembered]:
    """Open a journal for appending; without a path it remembers nothing, and one that is open is used.

    Raises:
        OptionError: the path cannot be read or written, or is not a journal.
    """
    key = hashlib.sha256(f"{_VERSION} {model_digest} {reference_recipe}".encode()).hexdigest()
    if path is None:
        yield Journal(None, key, {})
        return
    if not isinstance(path, Path):
        yield path
        return
    try:
        entries = dict(_read(path, key)) if path.exists() else {}
        # After a crash the last line may lack its end; a new line must not be glued to it.
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as stream:
            if torn:
                stream.write("\n")
            yield Journal(stream, key, entries)
    except OSError as error:
        raise OptionError(f"cannot be used: {error.strerror}", where=str(path)) from error


def _read(path: Path, key: str) -> Iterator[tuple[str, Entry]]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, 1):
            try:
                value = json.loads(line)
            except ValueError:
                continue  # torn by a crash: that trace is replayed again
            if not isinstance(value, dict) or value.get("journal") != _VERSION:
                raise OptionError(
                    "not a journal of this version", where=f"{path}:{number}", fix="name another file"
                )
            if value["key"] == key:
                yield entry_from_json(value)


def entry_from_json(value: dict[str, Any]) -> tuple[str, Entry]:
    """The trace's digest and the result that `entry_to_json` made plain."""
    scores = dict(value["scores"])
    scores["misses"] = tuple((t, margin, slack) for t, margin, slack in scores["misses"])
    scores["forbidden"] = tuple(scores["forbidden"])
    tokens, matched, missed = value["counts"]
    counts = RequestCounts(tokens, dict(map(tuple, matched)), {(d, m): n for d, m, n in missed})
    fingerprints = tuple(FingerprintScore(*fields) for fields in value["fingerprints"])
    return value["trace"], (TokenScores(**scores), counts, tuple(value["notes"]), fingerprints)
