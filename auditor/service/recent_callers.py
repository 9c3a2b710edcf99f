"""Who came a moment ago: spares looking up a key that is looked up again where it counts.

Not for reads: what is found here may have been revoked `SECONDS` ago. No secrets are kept, but digests.
"""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auditor.service.tenants import ApiKey

SECONDS = 5.0
MOST = 1000


class RecentCallers:
    """Callers by the text they came with; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[bytes, tuple[float, ApiKey]] = {}

    def find(self, text: str) -> ApiKey | None:
        """Who came with this text, if that is no longer than `SECONDS` ago."""
        found = self._found.get(_digest(text))
        return None if found is None or found[0] < time.monotonic() else found[1]

    def keep(self, text: str, caller: ApiKey) -> None:
        """Remember a caller who has just been authenticated."""
        with self._lock:
            if len(self._found) >= MOST:
                self._found.clear()
            self._found[_digest(text)] = (time.monotonic() + SECONDS, caller)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
