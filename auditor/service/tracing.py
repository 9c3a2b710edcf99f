"""OpenTelemetry traces: of requests, of an audit's steps, of blobs and SQL. Off unless asked for.

1. On is what names a collector: `--traces URL`, `OTEL_EXPORTER_OTLP_ENDPOINT`,
   `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_TRACES_EXPORTER=otlp`; `OTEL_SDK_DISABLED=true` is off,
   whatever else is said. Every other `OTEL_*` variable means what OpenTelemetry says.
2. The names and attributes of a span are in this program's source, or identifiers that it made, or counts and
   codes: no prompt, no output, no name that somebody gave, no secret. An error is told by its class, without
   its message; SQL by its verb and table, without its text.
3. The trace context of a submission lies beside its job (`traceparent`, W3C), so that a worker's spans belong
   to the trace in which the audit was ordered. Baggage, which may say anything, is not read.

Off, a span costs one comparison.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

from sqlalchemy import Engine, event

from auditor.errors import AuditError, OptionError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Kind = Literal["internal", "server", "client", "consumer"]
Value = str | int | float | bool

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_TABLE = re.compile(r"\b(?:FROM|INTO|UPDATE|TABLE)\s+\"?([a-z_]+)")
_KEPT = "auditor_span"
_S = TypeVar("_S")
_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Tracing:
    """What is on in this process: at most one provider of spans."""

    def __init__(self) -> None:
        self.provider: TracerProvider | None = None
        self.tracer: Tracer | None = None


_on = _Tracing()


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces.

    Raises:
        OptionError: it asks for an exporter or a protocol that there is not.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter == "none" or not (exporter or any(environment.get(name) for name in _ENDPOINTS)):
        return False
    if exporter not in ("", "otlp"):
        raise OptionError("traces go to an OTLP collector only", where="OTEL_TRACES_EXPORTER", fix="use otlp")
    for name in _PROTOCOLS:
        if environment.get(name, "http/protobuf") not in ("", "http/protobuf"):
            raise OptionError("traces are sent as http/protobuf only", where=name, fix="use http/protobuf")
    return True


def start(role: str, endpoint: str | None = None) -> bool:
    """Send this process's spans to a collector, if somebody asks for it; whether spans are made now.

    Args:
        role: `serve` or `worker`; the service is `auditor-ROLE` unless `OTEL_SERVICE_NAME` says otherwise.
        endpoint: an OTLP/HTTP collector, `http://host:4318`; for processes that this one starts, too.

    Raises:
        OptionError: the environment asks for what there is not, or a package is missing.
    """
    if endpoint is not None:
        if not re.fullmatch(r"https?://[^\s/]+\S*", endpoint):
            raise OptionError("not an http(s) address", where="--traces", fix="for instance http://host:4318")
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    if _on.tracer is None and wanted(os.environ):
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
                OTLPSpanExporter,
            )
        except ModuleNotFoundError as error:
            raise OptionError(
                f"OpenTelemetry traces need {error.name}",
                fix="pip install 'verifiable-inference-auditor[otel]', or unset the OTEL_* variables",
            ) from None
        start_with(role, OTLPSpanExporter())
    return _on.tracer is not None


def start_with(role: str, exporter: SpanExporter) -> None:
    """Hand this process's spans to an exporter, in batches; `stop` first what was started before."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    stop()
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"auditor-{role}"}
    _on.provider = TracerProvider(resource=Resource.create(named))
    _on.provider.add_span_processor(BatchSpanProcessor(exporter))
    _on.tracer = _on.provider.get_tracer("auditor")
    for name, listener in _LISTENERS:
        event.listen(Engine, name, listener)


def stop() -> None:
    """Send what is left, and make no more spans."""
    if _on.provider is None:
        return
    for name, listener in _LISTENERS:
        event.remove(Engine, name, listener)
    provider, _on.provider, _on.tracer = _on.provider, None, None
    provider.shutdown()


@contextmanager
def span(
    name: str,
    *,
    kind: Kind = "internal",
    parent: str | None = None,
    since: int | None = None,
    **attributes: Value,
) -> Iterator[Callable[[str, Value], None]]:
    """A span for as long as the block lasts, around those that are made in it; gives what sets attributes.

    Args:
        parent: `traceparent` of a span elsewhere; by default the span around this one.
        since: when it began, in nanoseconds since 1970, if that was before.
        attributes: `auditor.` is put before their names.
    """
    tracer = _on.tracer
    if tracer is None:
        yield _nowhere
        return
    from opentelemetry import trace  # noqa: PLC0415

    given = {f"auditor.{key}": value for key, value in attributes.items()}
    with tracer.start_as_current_span(
        name,
        context=None if parent is None else _context(parent),
        kind=trace.SpanKind[kind.upper()],
        attributes=given,
        start_time=since,
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        try:
            yield made.set_attribute
        except Exception as error:
            _blame(made, error)
            raise


def spanned(
    name: str,
) -> Callable[[Callable[Concatenate[_S, _P], _R]], Callable[Concatenate[_S, _P], _R]]:
    """A span around every call of a method; nothing of its arguments is told."""

    def around(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
        @wraps(method)
        def called(self: _S, /, *arguments: _P.args, **named: _P.kwargs) -> _R:
            if _on.tracer is None:
                return method(self, *arguments, **named)
            with span(name):
                return method(self, *arguments, **named)

        return called

    return around


def traceparent() -> str | None:
    """The trace context of this moment (W3C), to be carried elsewhere; None where nothing is traced."""
    if _on.tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def rename(name: str) -> None:
    """Call the span around this moment otherwise."""
    from opentelemetry import trace  # noqa: PLC0415

    trace.get_current_span().update_name(name)


def is_on() -> bool:
    """Whether spans are made in this process."""
    return _on.tracer is not None


def _context(parent: str) -> Context:
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _nowhere(_name: str, _value: Value) -> None:
    """An attribute of a span that is not made."""


def _blame(made: Span, error: BaseException) -> None:
    """Say that a span failed, without a word of what somebody sent."""
    from opentelemetry.trace import StatusCode  # noqa: PLC0415

    made.set_attribute("error.type", error.code if isinstance(error, AuditError) else type(error).__name__)
    made.set_status(StatusCode.ERROR)


def _before_sql(
    connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool
) -> None:
    from opentelemetry import trace  # noqa: PLC0415

    # What belongs to nothing (a worker that looks for work twice a second) is not worth a trace of its own.
    if _on.tracer is None or context is None or not trace.get_current_span().is_recording():
        return
    verb = statement.split(None, 1)[0].upper() if statement.strip() else "SQL"
    table = _TABLE.search(statement)
    summary = f"{verb} {table[1]}" if table else verb
    made = _on.tracer.start_span(
        summary,
        kind=trace.SpanKind.CLIENT,
        attributes={"db.system.name": connection.dialect.name, "db.query.summary": summary},
    )
    setattr(context, _KEPT, made)


def _after_sql(
    _connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool
) -> None:
    made = getattr(context, _KEPT, None)
    if made is not None:
        made.end()


def _failed_sql(failure: Any) -> None:
    made = getattr(failure.execution_context, _KEPT, None)
    if made is not None and made.is_recording():
        _blame(made, failure.original_exception)
        made.end()


_LISTENERS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("before_cursor_execute", _before_sql),
    ("after_cursor_execute", _after_sql),
    ("handle_error", _failed_sql),
)
