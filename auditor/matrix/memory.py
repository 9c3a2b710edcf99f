"""What a run of the matrix has finished, a JSON line each, apart by settings and version of the code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from auditor import fingerprints, kernels, reference
from auditor.durable_files import append_whole, locked
from auditor.errors import TraceFileError


@dataclass(frozen=True, slots=True)
class Settings:
    """What a row's figures depend on, beside the deviation.

    Attributes:
        model_digest: of the model. recipe: of the honest provider. requests: of each log.
        alpha: the false-alarm rate of every figure.
        code: digest of the program's sources: figures of another version are measured again.
    """

    model_digest: str
    recipe: str
    reference_recipe: str
    requests: int
    alpha: float
    code: str

    @property
    def id(self) -> str:
        """A digest that keeps rows of other settings apart."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_version() -> str:
    """Digest of the sources that measurements rest on: all but those that name causes, show or serve."""
    own = Path(__file__).parent.parent
    rooms = (Path(room.__path__[0]) for room in (fingerprints, kernels, reference))
    found = [(own, path) for path in own.glob("*.py")] + [(own, path) for path in own.glob("matrix/*.py")]
    found += [(room.parent, path) for room in rooms for path in room.rglob("*.py")]
    apart = {own / name for name in (*_NAMING, *_SHOWING)}
    return _digest((root, path) for root, path in found if path not in apart)


@cache
def naming_version() -> str:
    """Digest of the sources that name causes, beside those of `code_version`."""
    own = Path(__file__).parent.parent
    found = [*(own / "diagnosis").glob("*.py"), *(own / name for name in _NAMING)]
    return _digest((own, path) for path in found)


_NAMING = ("matrix/naming.py", "matrix/naming_served.py")
_SHOWING = (
    *("matrix/tables.py", "matrix/texts.py", "matrix/page.py", "matrix/summary.py"),
    *("page.py", "html_templates.py", "page_figures.py", "plan_figure.py", "doctor.py"),
)


def _digest(found: Iterable[tuple[Path, Path]]) -> str:
    digest = hashlib.sha256()
    for root, path in sorted(found):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


class Memory:
    """Finished parts of a run by name; without a file nothing is remembered."""

    def __init__(self, path: Path | None, settings: Settings) -> None:
        self._path, self._settings = path, settings.id
        self._known = {} if path is None or not path.exists() else _read(path, settings.id)

    def find(self, name: str) -> dict[str, Any] | None:
        """What was finished under that name."""
        return self._known.get(name)

    def add(self, name: str, found: dict[str, Any]) -> None:
        """Remember it.

        Raises:
            TraceFileError: the file cannot be written.
        """
        self._known[name] = found
        if self._path is not None:
            _append(self._path, {"settings": self._settings, "part": name, "found": found})


def _read(path: Path, settings: str) -> dict[str, dict[str, Any]]:
    found = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that an interruption cut short is measured again
        if entry.get("settings") == settings:
            found[entry["part"]] = entry["found"]
    return found


def _append(path: Path, entry: dict[str, Any]) -> None:
    try:
        with locked(path), path.open("ab") as stream:
            # A line that an interruption cut short ends here, and the next one begins on its own.
            whole = not stream.tell() or path.read_bytes().endswith(b"\n")
            append_whole(stream.fileno(), (b"" if whole else b"\n") + json.dumps(entry).encode() + b"\n")
    except OSError as error:
        raise TraceFileError(f"cannot be written: {error.strerror}", where=str(path)) from error
