"""What work adds to a process's resident memory, read from Linux's /proc; contestants of every benchmark use it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of(work: Callable[[], object]) -> int | None:
    """Bytes that `work` adds at its worst; None off Linux."""
    if not os.access(_CLEAR_REFS, os.W_OK):
        work()
        return None
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR_REFS.write_text("5")  # resets the high-water mark
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
