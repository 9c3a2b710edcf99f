"""One generation as an adapter found it, and the traces it becomes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from auditor.adapters.extension import EXTENSION, Extension, read_extension
from auditor.errors import TraceFieldError, TraceSyntaxError
from auditor.openai_logs import traces_from_exchange
from auditor.strict_json import dump_json, load_json
from auditor.trace_format import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from auditor.trace import Trace


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line was read, and the digest of its bytes."""

    file: str
    line: int
    raw_digest: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Generation:
    """A request and its answer in the form of OpenAI's API, as far as the log tells them.

    Attributes:
        source: name of the format.
        name: what tells it from the other generations of its line.
        request, response: as an OpenAI-compatible server would have logged them.
        added: of the namespace `auditor`, undecoded.
        raw: the object it was read from; its canonical JSON is digested where a line holds several.
        rest: what else lay around it.
        notes: sentences for the reader of the verdict.
        unmodelled: reasons why it cannot be replayed, as `extra["sampling"]` has them.
        timing: ISO times.
    """

    source: str
    name: str
    request: dict[str, Any]
    response: dict[str, Any]
    raw: Any
    provider: str | None = None
    added: Mapping[str, Any] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unmodelled: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, str] = field(default_factory=dict)


def traces_of(generation: Generation, place: Place, *, alone: bool) -> tuple[Trace, ...]:
    """Make traces, one for each answer.

    Args:
        generation: what was found.
        place: of its line.
        alone: the line holds no other; its bytes' digest is then the trace's.

    Raises:
        TraceFieldError: a field is mistyped or out of range, two places contradict each other, or the
            request had failed.
    """
    extension = read_extension(generation.added, where=place.where)
    request, response = _completed(generation, extension, place.where)
    exchange: dict[str, Any] = {"request": request, "response": response}
    if generation.timing:
        exchange["timing"] = dict(generation.timing)
    digest = place.raw_digest
    if not alone:
        digest = digest_of(dump_json(generation.raw, where=place.where, sort_keys=True))
    traces = traces_from_exchange(exchange, file=place.file, line=place.line, raw_digest=digest)
    several = len(traces) > 1
    if several and extension.per_answer:
        raise TraceFieldError(
            f"field {EXTENSION}: says one answer's token ids, and there are {len(traces)}", where=place.where
        )
    return tuple(_finished(trace, generation, extension, place) for trace in traces)


def _completed(
    generation: Generation, extension: Extension, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Request and response with what the extension adds, which must not contradict them."""
    request, response = dict(generation.request), dict(generation.response)
    for name, value in extension.request.items():
        if request.get(name) not in (None, value):
            raise TraceFieldError(
                f"field {EXTENSION}.{name}: says other than the log itself", where=where, fix="log it once"
            )
        request[name] = value
    if extension.prompt_token_ids is not None:
        response["prompt_token_ids"] = list(extension.prompt_token_ids)
    choices = listed(response.get("choices")) or [{}]
    if extension.output_token_ids is not None and isinstance(choices[0], dict):
        choices[0] = {**choices[0], "token_ids": list(extension.output_token_ids)}
    response["choices"] = choices
    return request, response


def _finished(trace: Trace, generation: Generation, extension: Extension, place: Place) -> Trace:
    extra = dict(trace.extra)
    notes = [*extra["notes"], f"read from a log of {generation.source}", *generation.notes]
    extra["notes"] = notes
    if generation.unmodelled:
        extra["sampling"] = {**extra.get("sampling", {}), **generation.unmodelled}
    kept: dict[str, Any] = {"format": generation.source, "line_digest": place.raw_digest}
    if generation.rest:
        kept["rest"] = dict(generation.rest)
    extra["adapted"] = kept
    return replace(trace, extra=extra, provider=generation.provider, **extension.known)


def decoded(text: Any) -> Any:
    """What a text holds as JSON where it is an object or a list that can be read exactly, else the text.

    An answer may well begin with a bracket: what is no JSON is no error. Anything but a text stays as it is.
    """
    if not isinstance(text, str) or not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return load_json(text.encode("utf-8", "surrogatepass"), where="")
    except TraceSyntaxError:
        return text


def parameters(value: Any, *, name: str, where: str) -> dict[str, Any]:
    """Parameters of a call: an object, or its JSON text; nothing where none were logged.

    Raises:
        TraceFieldError: anything else.
    """
    found = decoded(value)
    if found in (None, ""):
        return {}
    if not isinstance(found, dict):
        raise TraceFieldError(f"field {name}: is no JSON object that can be read exactly", where=where)
    return dict(found)


def listed(value: Any) -> list[Any]:
    """A list as it is, anything else but null as its only item."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def iso_of_nanoseconds(value: Any) -> str | None:
    """ISO time, in UTC, of nanoseconds since 1970; None where there is none or it is no time of ours."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if not isinstance(value, int) or not 0 < value < 253402300800 * 10**9:
        return None
    return f"{datetime.fromtimestamp(value // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{value % 10**9:09d}Z"


def seconds_of_iso(text: Any) -> float | None:
    """Seconds since 1970 of an ISO time (UTC where it names no zone); None where it is none."""
    if not isinstance(text, str) or len(text) > 40:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
