"""Strict reading of one JSON object that tells an engine how to compute.

Invariant: every field is either read by name, known to mean nothing for the arithmetic, or switched off
(null, false, empty). Any other is refused: a setting that is silently ignored here is a reference that
silently differs from what the provider ran.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NoReturn

from auditor.errors import ModelCorruptError, ModelUnsupportedError

_REQUIRED: Any = object()


class Settings:
    """Takes fields out of an object; `finish` refuses what is left.

    Args:
        raw: the object as parsed.
        name: what it is called in errors.
        where: the file it stands in.

    Raises:
        ModelCorruptError: not an object; from the methods, a field that is missing or of an impossible value.
        ModelUnsupportedError: from the methods, a value that the reference does not implement.
    """

    def __init__(self, raw: Any, name: str, where: str) -> None:
        if not isinstance(raw, dict):
            raise ModelCorruptError(f"{name} must be an object", where=where)
        self.name, self.where = name, where
        self._left = dict(raw)

    def take(self, field: str, default: Any = _REQUIRED) -> Any:
        """Whatever stands in `field`."""
        value = self._left.pop(field, default)
        if value is _REQUIRED:
            self.corrupt(f"{field} is missing")
        return value

    def rename(self, old: str, new: str) -> None:
        """Read the field `old` as `new`; both at once make no sense."""
        if old in self._left:
            if new in self._left:
                self.corrupt(f"both {old} and {new}")
            self._left[new] = self._left.pop(old)

    def choice(self, field: str, *allowed: Any, default: Any = _REQUIRED) -> Any:
        """One of the allowed values, of the very type."""
        value = self.take(field, default)
        if not any(type(value) is type(item) and value == item for item in allowed):
            choices = ", ".join("null" if item is None else str(item) for item in allowed)
            self.unsupported(f"{field} {_shown(value)}", f"supported: {choices}")
        return value

    def flag(self, field: str, *, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value = self.take(field, default)
        if not isinstance(value, bool):
            self.corrupt(f"{field} must be true or false, found {_shown(value)}")
        return value

    def integer(self, field: str, *, least: int = 1, default: Any = _REQUIRED) -> int:
        """A whole number of at least `least`."""
        value = self.take(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
            self.corrupt(f"{field} must be an integer of at least {least}, found {_shown(value)}")
        return value

    def number(self, field: str, *, default: Any = _REQUIRED) -> float:
        """A finite positive number."""
        value = self.take(field, default)
        fit = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        if not fit:
            self.corrupt(f"{field} must be a finite positive number, found {_shown(value)}")
        return float(value)

    def names(self, field: str) -> tuple[str, ...]:
        """A list of texts, empty where the field is missing or null."""
        value = self.take(field, None)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.corrupt(f"{field} must be a list of names")
        return tuple(value)

    def finish(self, meaningless: Collection[str] = ()) -> None:
        """Refuse what was not taken, unless it means nothing or is switched off."""
        for field, value in sorted(self._left.items()):
            if field not in meaningless and value not in (None, False, "", [], {}):
                self.unsupported(f"{field} {_shown(value)}", "remove it if it means nothing")

    def corrupt(self, message: str) -> NoReturn:
        """Raise what says that the object makes no sense."""
        raise ModelCorruptError(f"{self.name}: {message}", where=self.where, fix="copy the file again")

    def unsupported(self, what: str, fix: str = "") -> NoReturn:
        """Raise what says that the reference cannot do this."""
        raise ModelUnsupportedError(f"{self.name}: not implemented: {what}", where=self.where, fix=fix)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
