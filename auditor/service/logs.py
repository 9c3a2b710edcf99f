"""The service's own logs: for its operator, and without anything that a tenant handed in.

Messages are ours: identifiers, codes, counts. An exception is told by its type and where it was raised,
never by its text, because that may quote a prompt. `--log-format json` writes one object a line.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

LogFormat = Literal["text", "json"]


def log_to_standard_error(form: LogFormat) -> None:
    """Send every logger's records to standard error, in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else Lines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    # Its messages name revisions; those of the HTTP client name addresses with their queries.
    for name in ("alembic", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def raised(record: logging.LogRecord) -> list[str]:
    """Type and places of a record's exception, outermost first; empty when it has none."""
    if not record.exc_info or record.exc_info[0] is None:
        return []
    kind, _, trace = record.exc_info
    frames = traceback.extract_tb(trace)[-12:]
    return [kind.__name__, *(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)]


class Lines(logging.Formatter):
    """Time, level, logger, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatException(self, ei: object) -> str:  # noqa: N802  # logging's name
        """Nothing: `format` says what may be said."""
        del ei
        return ""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and one for an exception."""
        found = raised(record)
        record.exc_text = None
        line = super().format(record).rstrip("\n")
        return f"{line} [{' < '.join(reversed(found))}]" if found else line


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and `raised` for an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        value: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if found := raised(record):
            value["raised"] = found
        return json.dumps(value, ensure_ascii=False)
