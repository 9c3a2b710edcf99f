"""Spans as they are exported, whatever convention their attributes follow. Pure.

* OTLP/JSON, as the OpenTelemetry Collector's file exporter writes it: `resourceSpans` or `resourceLogs` (an
  event of the newer convention holds what a span does), attributes as lists of `{"key", "value"}`, integers
  as decimal text (protobuf's JSON mapping).
* One span a line, as SDKs print them: `attributes` an object, `context` with ids.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from auditor.adapters.generation import iso_of_nanoseconds, seconds_of_iso
from auditor.errors import TraceFieldError

_INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_SIGNALS = {"resourceSpans": ("scopeSpans", "spans"), "resourceLogs": ("scopeLogs", "logRecords")}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during a span."""

    name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """One span, or one log record.

    Attributes:
        attributes: its own, and of its resource those of the namespace `auditor`.
        started, finished: ISO times.
        failure: what went wrong, None when nothing did.
        raw: as it came.
    """

    name: str
    attributes: Mapping[str, Any]
    events: tuple[Event, ...] = ()
    started: str | None = None
    finished: str | None = None
    failure: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def timing(self) -> dict[str, str]:
        """As a trace has it."""
        times = {"received": self.started, "finished": self.finished}
        return {name: time for name, time in times.items() if time is not None}

    @property
    def created(self) -> float | None:
        """Seconds since 1970."""
        return None if self.started is None else seconds_of_iso(self.started)


def holds_spans(value: Mapping[str, Any]) -> bool:
    """Whether a line is of this kind."""
    if any(name in value for name in _SIGNALS):
        return True
    ids = ("context", "span_id", "spanId", "traceId")
    return "attributes" in value and "name" in value and any(name in value for name in ids)


def spans_of(value: Mapping[str, Any], *, where: str) -> Iterator[Span]:
    """Every span of a line, in order.

    Raises:
        TraceFieldError: the line is not built as its keys promise.
    """
    nested = False
    for signal, (scopes, records) in _SIGNALS.items():
        for resource in _objects(value, signal, where):
            nested = True
            shared = _attributes(_object(resource, "resource", where), where)
            shared = {key: item for key, item in shared.items() if key.startswith("auditor.")}
            for scope in _objects(resource, scopes, where):
                for record in _objects(scope, records, where):
                    yield _span(record, shared, where)
    if not nested and not any(signal in value for signal in _SIGNALS):
        yield _span(value, {}, where)


def _span(record: Mapping[str, Any], shared: Mapping[str, Any], where: str) -> Span:
    context = _object(record, "context", where)
    name = next(
        (
            str(found)[:80]
            for found in (record.get("spanId"), record.get("span_id"), context.get("span_id"))
            if isinstance(found, str) and found
        ),
        "span",
    )
    place = f"{where} {name}"
    attributes = _attributes(record, place)
    events = tuple(
        Event(str(event.get("name") or "")[:200], _attributes(event, place))
        for event in _objects(record, "events", place)
    )
    return Span(
        name,
        {**shared, **attributes},
        events,
        _time(record, "startTimeUnixNano", "start_time") or _time(record, "timeUnixNano", "timestamp"),
        _time(record, "endTimeUnixNano", "end_time"),
        _failure(record, attributes),
        record,
    )


def _failure(record: Mapping[str, Any], attributes: Mapping[str, Any]) -> str | None:
    status = record.get("status")
    status = status if isinstance(status, dict) else {}
    code = status.get("code", status.get("status_code", record.get("status_code")))
    kind = attributes.get("error.type")
    if kind is None and code not in (2, "STATUS_CODE_ERROR", "ERROR"):
        return None
    said = status.get("message") or status.get("description") or kind or "the span failed"
    return str(said)[:120]


def _time(record: Mapping[str, Any], nanoseconds: str, iso: str) -> str | None:
    if nanoseconds in record:
        return iso_of_nanoseconds(record[nanoseconds])
    text = record.get(iso)
    return text if isinstance(text, str) and len(text) <= 40 else None


def _objects(value: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    found = value.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise TraceFieldError(f"field {name}: is no list of objects", where=where)
    return found


def _object(value: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = value.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise TraceFieldError(f"field {name}: is not an object", where=where)
    return found


def _attributes(holder: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = holder.get("attributes")
    if found is None:
        return {}
    if isinstance(found, dict):
        return found
    return _pairs(found, where)


def _pairs(found: Any, where: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if not isinstance(found, list):
        raise TraceFieldError("field attributes: is neither a list nor an object", where=where)
    for pair in found:
        key = pair.get("key") if isinstance(pair, dict) else None
        if not isinstance(key, str):
            raise TraceFieldError("field attributes: holds something without a key", where=where)
        if key in result:
            raise TraceFieldError(f"field attributes: {key[:60]} is there twice", where=where)
        result[key] = _value(pair.get("value"), key, where)
    return result


_PLAIN = {"stringValue": str, "bytesValue": str, "boolValue": bool}


def _value(wrapped: Any, key: str, where: str) -> Any:
    """The plain value of an OTLP `AnyValue`; nesting is bounded by that of the line."""
    if wrapped is None or wrapped == {}:
        return None
    if isinstance(wrapped, dict) and len(wrapped) == 1:
        ((kind, value),) = wrapped.items()
        if kind in _PLAIN and isinstance(value, _PLAIN[kind]):
            return value
        if isinstance(value, dict) and kind == "arrayValue":
            return [_value(item, key, where) for item in _values_of(value, key, where)]
        if isinstance(value, dict) and kind == "kvlistValue":
            return _pairs(_values_of(value, key, where), where)
        number = _number(kind, value)
        if number is not None:
            return number
    raise TraceFieldError(f"field attributes: {key[:60]} has no value of a known type", where=where)


def _number(kind: str, value: Any) -> int | float | None:
    if kind == "intValue" and isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if kind == "intValue":
        return value if isinstance(value, int) else None
    return float(value) if kind == "doubleValue" and math.isfinite(value) else None


def _values_of(value: Mapping[str, Any], key: str, where: str) -> list[Any]:
    values = value.get("values", [])
    if not isinstance(values, list):
        raise TraceFieldError(f"field attributes: {key[:60]} has no list of values", where=where)
    return values


def numbered(attributes: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Flattened lists (`PREFIX.0.message.role`) in order of their numbers, as objects of the rest of the key.

    A list that was not flattened is taken as it is. Numbers of more than four digits are no list of ours.
    """
    whole = attributes.get(prefix)
    if isinstance(whole, list):
        return [item for item in whole if isinstance(item, dict)]
    found: dict[int, dict[str, Any]] = {}
    start = len(prefix) + 1
    for key, value in attributes.items():
        if key.startswith(f"{prefix}."):
            number, dot, rest = key[start:].partition(".")
            if dot and number.isascii() and number.isdigit() and len(number) <= 4:
                found.setdefault(int(number), {})[rest] = value
    return [found[number] for number in sorted(found)]
