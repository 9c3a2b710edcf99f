"""Server-sent events of a streamed answer: whole events off a stream of bytes, and the answer they amount to.

Pure. Sources: WHATWG HTML, "Server-sent events"; the chunk objects of OpenAI's streaming API.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

# Atomic groups: a CRLF is one line end and never two.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")

_PARSED = ("tool_calls", "reasoning", "reasoning_content")
"""Parts of a delta that a server makes by parsing its own output."""

_NAMES = ("role", "id", "type", "name", "index")
"""Text in a delta that names something; other text is the next piece of a longer one."""


class EventSplitter:
    """Cuts a stream into events, each with the blank line that ends it. Their bytes join to the stream."""

    def __init__(self) -> None:
        self._held = b""
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes."""
        self._held += data
        events, start = [], 0
        place = self._searched
        while found := _BLANK_LINE.search(self._held, place):
            events.append(self._held[start : found.end()])
            start = place = found.end()
        self._held = self._held[start:]
        self._searched = max(0, len(self._held) - 3)
        return events

    @property
    def rest(self) -> bytes:
        """The beginning of an event whose end has not come."""
        return self._held


def event_data(event: bytes) -> bytes | None:
    """The data of an event, None when it has none (a comment, a ping)."""
    found = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(found) if found else None


def with_data(event: bytes, data: bytes) -> bytes:
    """The event with other data (without line ends) in place of its own; everything else stays."""
    out, written = [], False
    for line in event.splitlines(keepends=True):
        if not line.startswith(b"data:"):
            out.append(line)
        elif not written:
            written = True
            space = b" " if line.startswith(b"data: ") else b""
            out.append(b"data:" + space + data + line[len(line.rstrip(b"\r\n")) :])
    return b"".join(out)


class StreamAssembler:
    """Puts the chunks of a stream together to the object that the same server answers without streaming."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._gaps: set[int] = set()
        self._parsed = False
        self.chunks = 0
        self.error: Any = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take one chunk; what is not shaped like one is kept as it came."""
        self.chunks += 1
        for name, value in chunk.items():
            if name == "error" and value:
                self.error = value
            elif name == "choices" and isinstance(value, list):
                for place, choice in enumerate(value):
                    if isinstance(choice, dict):
                        self._add_choice(choice, place)
            elif value is not None or name not in self._top:
                self._top[name] = value

    @property
    def started(self) -> bool:
        """Whether any choice has come."""
        return bool(self._choices)

    def _add_choice(self, choice: Mapping[str, Any], place: int) -> None:
        index = choice.get("index")
        index = index if type(index) is int else place
        whole = self._choices.setdefault(index, {"index": index})
        delta = choice.get("delta")
        for name, value in choice.items():
            if name == "delta" and isinstance(value, dict):
                self._parsed |= any(value.get(field) for field in _PARSED)
                _merge(whole.setdefault("message", {}), value)
            elif name in ("text", "token_ids"):
                _merge(whole, {name: value})
            elif name == "logprobs" and isinstance(value, dict):
                _merge_lists(whole, value)
            elif name != "index" and (value is not None or name not in whole):
                whole[name] = value
        pieces = delta if isinstance(delta, dict) else {}
        said = choice.get("text") or any(pieces[name] for name in pieces if name != "role")
        if said and not choice.get("token_ids"):
            self._gaps.add(index)

    def response(self, *, tools: bool = False) -> tuple[dict[str, Any], list[str]]:
        """The whole answer, and sentences on what it lacks.

        Servers that parse reasoning or tool calls out of a stream may send no chunk at all for some tokens,
        and the ids of these tokens are then missing in the middle. Replayed, such an output would accuse an
        honest provider. Ids are therefore given as `token_ids` only if nothing speaks against their being
        whole, else as `token_ids_incomplete`.

        Args:
            tools: whether the request offered tools.
        """
        notes: list[str] = []
        choices = [dict(self._choices[index]) for index in sorted(self._choices)]
        usage = self._top.get("usage")
        billed = usage.get("completion_tokens") if isinstance(usage, dict) else None
        received = sum(len(choice.get("token_ids") or ()) for choice in choices)
        lacking = ""
        if type(billed) is int and billed > received:
            lacking = f"the stream carried the ids of {received} of {billed} completion tokens"
        elif type(billed) is not int and (tools or self._parsed):
            lacking = "with tools or reasoning a stream may leave out ids, and its tokens were not counted"
        for choice in choices:
            ids = choice.get("token_ids")
            if isinstance(ids, list) and (lacking or choice["index"] in self._gaps):
                why = lacking or "a piece of text in the stream came without its ids"
                notes.append(f"{why}: they are not taken for the output")
                choice["token_ids"], choice["token_ids_incomplete"] = None, ids
        kind = self._top.get("object")
        if kind == "chat.completion.chunk":
            self._top["object"] = "chat.completion"
        return {**self._top, "choices": choices}, sorted(set(notes))


def _merge(whole: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        old = whole.get(name)
        if isinstance(old, str) and isinstance(value, str) and name not in _NAMES:
            whole[name] = old + value
        elif name == "tool_calls" and isinstance(value, list):
            whole[name] = _merged_calls(old if isinstance(old, list) else [], value)
        elif isinstance(old, list) and isinstance(value, list):
            old.extend(value)
        elif isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        elif value is not None or name not in whole:
            whole[name] = copy.deepcopy(value)


def _merged_calls(calls: list[Any], pieces: list[Any]) -> list[Any]:
    """Tool calls come in pieces that name the call by its index."""
    for piece in pieces:
        index = piece.get("index") if isinstance(piece, dict) else None
        same = [call for call in calls if isinstance(call, dict) and call.get("index") == index]
        if same and isinstance(piece, dict):
            _merge(same[0], piece)
        else:
            calls = [*calls, copy.deepcopy(piece)]
    return calls


def _merge_lists(whole: dict[str, Any], logprobs: Mapping[str, Any]) -> None:
    held = whole.get("logprobs")
    if not isinstance(held, dict):
        held = whole["logprobs"] = {}
    _merge(held, logprobs)
