"""What every report says in plain words: what a reader must know, and how to check it."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def texts() -> dict[str, Any]:
    """`texts.toml`: `limitations`, `verification` and `mapping`."""
    return tomllib.loads((files("auditor.reports") / "texts.toml").read_text(encoding="utf-8"))
