"""Logs of observability tools, a file each: OpenTelemetry, OpenInference, Langfuse, LiteLLM.

What such a tool keeps of a generation is brought to the form of an OpenAI request and response, and read as
one (`auditor.openai_logs`). None of them carries token ids or says which noise was drawn: without more their
traces are grade C, which is never `consistent`. A deployment adds what is missing in the namespace `auditor`
(`extension.py`), and the same spans can then be replayed.

Spans of other work (tools, retrieval, embeddings) are no generations and are passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auditor.adapters import langfuse, litellm, openinference, otel, spans
from auditor.adapters.generation import Generation, Place, traces_of
from auditor.errors import AuditError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from auditor.input_formats import AdaptedFormat
    from auditor.trace import Trace

__all__ = ["adapted", "format_of"]


def format_of(value: Mapping[str, Any]) -> AdaptedFormat | None:
    """Tell the format of a line by its keys; None when it is none of these."""
    if spans.holds_spans(value):
        return "otel"  # which convention each span follows is told span by span
    if litellm.is_payload(value):
        return "litellm"
    return "langfuse" if langfuse.is_observation(value) else None


def adapted(value: Mapping[str, Any], kind: AdaptedFormat, place: Place) -> Iterator[Trace | AuditError]:
    """Every generation that a line holds, and an error for each that cannot be read."""
    try:
        found = list(_generations(value, kind, place))
    except AuditError as error:
        yield error
        return
    alone = sum(isinstance(item, Generation) for item in found) == 1
    for item in found:
        if isinstance(item, AuditError):
            yield item
            continue
        try:
            traces = traces_of(item, place, alone=alone)
        except AuditError as error:
            error.where = f"{place.where} {item.name}" if not alone else error.where
            yield error
        else:
            yield from traces


def _generations(
    value: Mapping[str, Any], kind: AdaptedFormat, place: Place
) -> Iterator[Generation | AuditError]:
    if kind in {"otel", "openinference"}:
        for span in spans.spans_of(value, where=place.where):
            try:
                found = _of_span(span, kind, place)
            except AuditError as error:
                error.where = f"{place.where} {span.name}"
                yield error
            else:
                if found is not None:
                    yield found
        return
    read = litellm.generation_of if kind == "litellm" else langfuse.generation_of
    found = read(value, where=place.where)
    if found is not None:
        yield found


def _of_span(span: spans.Span, kind: AdaptedFormat, place: Place) -> Generation | None:
    if kind == "openinference" or openinference.is_marked(span):
        return openinference.generation_of(span, where=place.where)
    return otel.generation_of(span)
