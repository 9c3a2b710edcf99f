"""A type's prefix and a UUIDv7 (RFC 9562 section 5.7), so that text order is near time order."""

from __future__ import annotations

import secrets
import time
from uuid import UUID


def new_id(prefix: str) -> str:
    """A fresh identifier, for instance `aud_0193...`; 74 of its bits are random."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62)
    return f"{prefix}_{UUID(int=value).hex}"
