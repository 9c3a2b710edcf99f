"""Bytes as text, in one way only: strict base64 and decimals, as C2SP's formats ask for."""

from __future__ import annotations

import base64
import binascii
import re

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


def encode_base64(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648 section 4)."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str) -> bytes | None:
    """Decode exactly what `encode_base64` writes; None for any other spelling, too."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    return data if encode_base64(data) == text else None


def decode_decimal(text: str) -> int | None:
    """A number from 0 to 2**63 - 1 without sign, leading zeros or foreign digits; None for anything else."""
    if not _DECIMAL.fullmatch(text):
        return None
    value = int(text)
    return value if value < 1 << 63 else None
