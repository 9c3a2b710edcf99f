"""One way to write a report's values, so that the same rows always give the same bytes.

JSON with sorted keys, no spaces and ASCII only. Measured numbers are decimal texts of fixed precision: a
double never reaches the file, so no reader's or writer's float formatting can change a digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

LEAST_E = 1e-300


def canonical(value: Any) -> bytes:
    """The bytes of a report, with a line end.

    Raises:
        TypeError: a double is in it.
    """
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _check(value: Any, where: str) -> None:
    if isinstance(value, float):
        raise TypeError(f"{where} is a double; write it with `decimal`")
    if isinstance(value, dict):
        for key, part in value.items():
            _check(part, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            _check(part, f"{where}[{number}]")


def decimal(value: float, places: int = 4) -> str:
    """A measured number as text; minus zero is zero."""
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0.0 else text


def significant(value: float) -> str:
    """A small or large number in six significant digits, without an exponent where it is short."""
    return f"{value:.6g}"


def log10_text(log_e: float) -> str:
    """A natural log e-value as the decimal exponent of ten."""
    return decimal(log_e / math.log(10.0), 3)


def log_of(e_value: float) -> float:
    """Natural logarithm of a stored e-value, kept finite."""
    return math.log(max(e_value, LEAST_E))


def digest(data: bytes) -> str:
    """`sha256:...`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
