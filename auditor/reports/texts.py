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


def template(name: str) -> str:
    """A text file among the package's templates."""
    return (files("auditor") / "templates" / name).read_text(encoding="utf-8")


def verify_instructions(vkey: str) -> str:
    """`VERIFY.md` of an evidence pack."""
    steps = "\n".join(texts()["verification"])
    return template("verify.md").format(vkey=vkey, steps=steps)
