"""JSON from strangers: one value, read exactly or refused.

Invariants of what `load_json` returns, so that no reader above it has to check them again:

1. the bytes were within the size limit and valid UTF-8;
2. no object names a key twice (two readers would see two different requests);
3. every number is finite: no NaN, no Infinity, no 1e999; integers are exact, never doubles;
4. arrays and objects nest no deeper than `MAX_DEPTH`;
5. every text is Unicode: no half surrogate pair, which no file we write could hold.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from auditor.errors import TraceSyntaxError

MAX_LINE_BYTES = 64 * 1024 * 1024
"""A line longer than this is refused unread: 64 MiB holds a million tokens with their logprobs."""

MAX_DEPTH = 64
"""Levels of arrays and objects; real logs (a JSON schema in a grammar) need about fifteen."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class _RefusedError(ValueError):
    """Raised inside the decoder's hooks, which know neither the place nor the file."""


def _refuse_constant(name: str) -> NoReturn:
    raise _RefusedError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _RefusedError(f"the number {digits[:40]} is beyond the range of a double")
    return value


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"the key {key[:40]!r} occurs twice in one object")
            seen.add(key)
    return result


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_of_unique_keys, parse_constant=_refuse_constant, parse_float=_finite
)


def _nests_too_deep(value: Any, text: str) -> bool:
    # Fewer brackets than levels cannot nest too deep; most lines are done here.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    level = [value] if isinstance(value, (dict, list, tuple)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list, tuple))
        ]
    return bool(level)


def _decode_text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TraceSyntaxError(
            f"byte {error.start + 1} is not UTF-8", where=where, fix="write the log as UTF-8"
        ) from None


def _decode_value(text: str, where: str) -> Any:
    try:
        return _DECODER.decode(text)
    except _RefusedError as error:
        raise TraceSyntaxError(str(error), where=where, fix="write plain JSON (RFC 8259)") from None
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" starting at").lower()
        cut_off = error.pos >= len(text.rstrip()) or problem == "unterminated string"
        raise TraceSyntaxError(
            f"not valid JSON at character {error.pos + 1}: {problem}",
            where=where,
            fix="the line is cut off" if cut_off else "write one JSON object a line",
        ) from None
    except RecursionError:
        raise TraceSyntaxError(f"nested deeper than {MAX_DEPTH} levels", where=where) from None
    except ValueError:
        # Python refuses to convert integers of more than 4300 digits: the cost is quadratic.
        raise TraceSyntaxError("holds an integer of thousands of digits", where=where) from None


def load_json(raw: bytes, *, where: str, max_bytes: int = MAX_LINE_BYTES) -> Any:
    """Decode one JSON value under the invariants of this module.

    Args:
        raw: the bytes of the value, without a byte order mark.
        where: place for error messages.
        max_bytes: most bytes accepted.

    Raises:
        TraceSyntaxError: the bytes break one of the invariants.
    """
    if len(raw) > max_bytes:
        raise TraceSyntaxError(f"longer than {max_bytes} bytes", where=where, fix="split the request")
    text = _decode_text(raw, where)
    value = _decode_value(text, where)
    if _nests_too_deep(value, text):
        raise TraceSyntaxError(f"nested deeper than {MAX_DEPTH} levels", where=where)
    if _SURROGATE_ESCAPE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise TraceSyntaxError(
                "holds half of a surrogate pair, which is no Unicode text", where=where
            ) from None
    return value


def load_object(raw: bytes, *, where: str, max_bytes: int = MAX_LINE_BYTES) -> dict[str, Any]:
    """Decode one JSON object; see `load_json`.

    Raises:
        TraceSyntaxError: the bytes break an invariant or are no object.
    """
    value = load_json(raw, where=where, max_bytes=max_bytes)
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(
            type(value), "a number"
        )
        raise TraceSyntaxError(f"{kind} is not a JSON object", where=where, fix="write one object a line")
    return value


def dump_json(value: Any, *, where: str, sort_keys: bool = False) -> bytes:
    """Write a value as one line of compact JSON, without a line end, that `load_json` reads back.

    Raises:
        TraceSyntaxError: the value holds NaN, infinity, half a surrogate pair or a type that JSON has
            not, or is larger or deeper than the reader accepts.
    """
    try:
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=(",", ":")
        )
        raw = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise TraceSyntaxError(f"cannot be written as JSON: {error}", where=where) from None
    if len(raw) > MAX_LINE_BYTES or _nests_too_deep(value, text):
        raise TraceSyntaxError(
            f"cannot be written: more than {MAX_LINE_BYTES} bytes or {MAX_DEPTH} levels", where=where
        )
    return raw
