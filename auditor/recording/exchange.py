"""A recorded request and its answer: what is asked on top, what is taken out again, the line logged.

Pure. Invariants:

* The client's text is not written anew: members are put in and cut out, every other byte stays.
* A member that the server would have sent anyway stays. vLLM writes null for ids that nobody asked for, so
  there ids become null; other servers leave them out, so there they are cut.
* A logged request is the one that was sent, `recorded.added` names what the client did not write.
* Headers are never logged, so no credential is; of the address only the path is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from auditor.errors import TraceSyntaxError
from auditor.recording.members import with_members, without_members
from auditor.strict_json import dump_json, load_object

_ID_CUTS: dict[str, Any] = {
    "prompt_token_ids": True,
    "choices": {"token_ids": True, "prompt_token_ids": True},
}


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it goes to the server.

    Attributes:
        body: its text.
        request: the same decoded.
        added: members that the client did not send, or sent otherwise.
    """

    body: bytes
    request: Mapping[str, Any]
    added: Mapping[str, Any]

    @property
    def streams(self) -> bool:
        """Whether a stream was asked for."""
        return self.request.get("stream") is True


def amended(body: bytes, *, ask: bool, seed: int | None) -> Sent:
    """A client's request with token ids asked for and, where it has none, a seed.

    For a stream the count of its tokens is asked for too: only with it can missing ids be noticed.

    Args:
        ask: whether to ask for anything.
        seed: a seed for a request without one; None adds none.

    Raises:
        TraceSyntaxError: the body is no JSON object that can be read exactly.
    """
    request = load_object(body, where="request")
    added: dict[str, Any] = {}
    if ask and request.get("return_token_ids") is not True:
        added["return_token_ids"] = True
    if ask and request.get("stream") is True and request.get("stream_options") is None:
        added["stream_options"] = {"include_usage": True}
    if seed is not None and request.get("seed") is None:
        added["seed"] = seed
    if not added:
        return Sent(body, request, {})
    try:
        text = with_members(body.decode("utf-8"), added)
    except ValueError as error:
        raise TraceSyntaxError(f"cannot be amended: {error}", where="request") from None
    return Sent(text.encode("utf-8"), {**request, **added}, added)


def restored(text: str, answer: Mapping[str, Any], added: Mapping[str, Any]) -> str | None:
    """An answer, or a chunk of one, without what only our asking brought; None when nothing remains.

    Raises:
        ValueError: the text is not the JSON object `answer`.
    """
    if "stream_options" in added:
        if answer.get("choices") == [] and isinstance(answer.get("usage"), dict):
            return None
        if "usage" in answer and answer["usage"] is None:
            text = without_members(text, {"usage": True}, as_null=False, nulls_too=True)
    if "return_token_ids" in added:
        text = without_members(text, _ID_CUTS, as_null=_writes_null(answer))
    return text


def _writes_null(answer: Mapping[str, Any]) -> bool:
    """Whether the server spells "not asked for" as null: vLLM, known by its fingerprint or its own fields."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    fingerprint = answer.get("system_fingerprint")
    named = isinstance(fingerprint, str) and fingerprint.startswith("vllm-")
    return named or "stop_reason" in first or "kv_transfer_params" in answer


@dataclass(frozen=True, slots=True)
class Timing:
    """When things happened; None what did not."""

    received: datetime
    first_token: datetime | None
    finished: datetime


def exchange_line(
    sent: Sent,
    response: Mapping[str, Any],
    *,
    timing: Timing,
    path: str,
    status: int,
    ended: str,
    notes: Sequence[str] = (),
    **more: Any,
) -> bytes:
    """The log line, with its line feed.

    Args:
        ended: `complete`, or how the answer was cut short.
        notes: sentences for whoever reads the trace.
        more: further members of the line.

    Raises:
        TraceSyntaxError: it is longer or deeper than the reader accepts.
    """
    recorded = {
        "path": path,
        "status": status,
        "stream": sent.streams,
        "added": sorted(sent.added),
        "ended": ended,
        "notes": list(notes),
    }
    moments = {
        "received": iso(timing.received),
        "first_token": None if timing.first_token is None else iso(timing.first_token),
        "finished": iso(timing.finished),
    }
    line = {"request": sent.request, "response": response, "recorded": recorded, "timing": moments, **more}
    return dump_json(line, where="exchange") + b"\n"


def failure_line(
    reason: str, *, path: str, status: int | None, when: datetime, request: Mapping[str, Any] | None = None
) -> bytes:
    """The line of a request that brought nothing to record, with its line feed."""
    line = {"failure": reason, "path": path, "status": status, "when": iso(when), "request": request}
    try:
        return dump_json(line, where="exchange") + b"\n"
    except TraceSyntaxError:
        return dump_json({**line, "request": None}, where="exchange") + b"\n"


def iso(moment: datetime) -> str:
    """UTC with milliseconds, as a trace writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
