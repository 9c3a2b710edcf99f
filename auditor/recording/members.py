"""Put members into the text of a JSON object and take them out again, every other byte as it was. Pure.

A proxy that reads and writes JSON anew changes it: spaces, escapes, the digits of a number. Here values are
found by the decoder and cut by their place in the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"

Cuts = Mapping[str, "Cuts | Literal[True]"]
"""Member name -> True (cut it) or what to cut in its value: an object, or every object of a list."""


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    start: int
    value: int
    end: int


def with_members(text: str, added: Mapping[str, Any]) -> str:
    """The object with members put first; those of the same name that it had are cut.

    Raises:
        ValueError: the text is no JSON object.
    """
    bare = without_members(text, dict.fromkeys(added, True), as_null=False, nulls_too=True)
    if not added:
        return bare
    start = bare.index("{") + 1
    inner = json.dumps(dict(added), separators=(",", ":"))[1:-1]
    empty = bare[_skip(bare, start)] == "}"
    return f"{bare[:start]}{inner}{'' if empty else ','}{bare[start:]}"


def without_members(text: str, cuts: Cuts, *, as_null: bool, nulls_too: bool = False) -> str:
    """The object without some members, or with null in their place.

    Args:
        text: a JSON object.
        cuts: what to cut, where it is there.
        as_null: write null for the value instead of leaving the member out.
        nulls_too: also cut members whose value is null.

    Raises:
        ValueError: the text is no JSON object.
    """
    start = _skip(text, 0)
    out, end = _object(text, start, cuts, as_null, nulls_too)
    return text[:start] + out + text[end:]


def _object(text: str, start: int, cuts: Cuts, as_null: bool, nulls_too: bool) -> tuple[str, int]:
    members = list(_members(text, start))
    end = _skip(text, members[-1].end if members else start + 1)
    if text[end : end + 1] != "}":
        raise ValueError("an object that does not end")
    if not members:
        return text[start : end + 1], end + 1
    kept: list[str] = []
    for number, member in enumerate(members):
        cut = cuts.get(member.name)
        value = text[member.value : member.end]
        if cut is True and (nulls_too or value != "null"):
            if not as_null:
                continue
            value = "null"
        elif cut is not None and cut is not True:
            value = _inside(text, member.value, cut, as_null, nulls_too)
        # What stood between a member and the one before it stays with the member.
        between = text[members[number - 1].end : member.start] if kept else ""
        kept.append(between + text[member.start : member.value] + value)
    head = text[start : members[0].start]
    tail = text[members[-1].end : end + 1]
    return head + "".join(kept) + tail, end + 1


def _inside(text: str, start: int, cuts: Cuts, as_null: bool, nulls_too: bool) -> str:
    if text[start] == "{":
        return _object(text, start, cuts, as_null, nulls_too)[0]
    if text[start] != "[":
        return text[start : _end(text, start)]
    out, place = ["["], start + 1
    while True:
        begin = _skip(text, place)
        out.append(text[place:begin])
        if text[begin] == "]":
            return "".join([*out, "]"])
        if text[begin] == ",":
            out.append(",")
            place = begin + 1
        elif text[begin] == "{":
            piece, place = _object(text, begin, cuts, as_null, nulls_too)
            out.append(piece)
        else:
            place = _end(text, begin)
            out.append(text[begin:place])


def _members(text: str, start: int) -> Iterator[_Member]:
    if text[start : start + 1] != "{":
        raise ValueError("not an object")
    place = _skip(text, start + 1)
    while text[place : place + 1] == '"':
        name, after = _DECODER.raw_decode(text, place)
        colon = _skip(text, after)
        if text[colon : colon + 1] != ":":
            raise ValueError("a member without a value")
        value = _skip(text, colon + 1)
        end = _end(text, value)
        yield _Member(name, place, value, end)
        comma = _skip(text, end)
        if text[comma : comma + 1] != ",":
            return
        place = _skip(text, comma + 1)


def _end(text: str, start: int) -> int:
    end: int = _DECODER.raw_decode(text, start)[1]
    return end


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _SPACE:
        place += 1
    return place
