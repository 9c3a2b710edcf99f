"""OpenTelemetry's GenAI conventions, the newer (1.37 and later) and the older, which coexist. Pure.

Newer: `gen_ai.input.messages` and `gen_ai.output.messages` (JSON, messages made of parts),
`gen_ai.provider.name`, `gen_ai.request.seed`. Older: `gen_ai.system`, `gen_ai.openai.request.seed`,
`gen_ai.usage.prompt_tokens`, and the content in `gen_ai.prompt`/`gen_ai.completion` (whole or flattened
with numbers), in span events of those names, or in events `gen_ai.user.message`, `gen_ai.choice` and so on.
Content is opt-in: a span without any is a request of which only parameters and counts are known.

Log records are read where each holds a whole generation (`gen_ai.client.inference.operation.details`); the
older events, one record a message, cannot be joined line by line.

Source: open-telemetry/semantic-conventions, docs/gen-ai, v1.26 to v1.41, and semantic-conventions-genai.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auditor.adapters.extension import of_attributes
from auditor.adapters.generation import Generation, decoded, listed
from auditor.adapters.spans import numbered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from auditor.adapters.spans import Span

_GENERATING = ("chat", "text_completion", "generate_content")
_REQUEST = {
    "temperature": ("gen_ai.request.temperature",),
    "top_k": ("gen_ai.request.top_k",),
    "top_p": ("gen_ai.request.top_p",),
    "max_tokens": ("gen_ai.request.max_tokens",),
    "frequency_penalty": ("gen_ai.request.frequency_penalty",),
    "presence_penalty": ("gen_ai.request.presence_penalty",),
    "stop": ("gen_ai.request.stop_sequences",),
    "seed": ("gen_ai.request.seed", "gen_ai.openai.request.seed"),
    "n": ("gen_ai.request.choice.count",),
}
_USAGE = {
    "prompt_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
    "completion_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
    "reasoning_tokens": ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens"),
}
_MESSAGE_EVENTS = {
    f"gen_ai.{role}.message": role for role in ("system", "developer", "user", "assistant", "tool")
}


def generation_of(span: Span) -> Generation | None:
    """What a span tells of a generation; None when it is a span of something else."""
    held = span.attributes
    operation = held.get("gen_ai.operation.name")
    if operation not in _GENERATING and (operation is not None or "gen_ai.request.model" not in held):
        return None
    request: dict[str, Any] = {name: _first(held, keys) for name, keys in _REQUEST.items()}
    request["model"] = held.get("gen_ai.request.model")
    if isinstance(request["top_k"], float) and request["top_k"].is_integer():
        request["top_k"] = int(request["top_k"])  # the convention has it as a double
    messages = _messages(span)
    if messages:
        request["messages"] = messages
    response = {
        "id": held.get("gen_ai.response.id") or span.name,
        "model": held.get("gen_ai.response.model"),
        "created": span.created,
        "choices": _choices(span),
        "usage": {name: _first(held, keys) for name, keys in _USAGE.items()},
    }
    if span.failure is not None:
        response["error"] = {"message": span.failure}
    unmodelled = {}
    if "gen_ai.output.type" in held and held["gen_ai.output.type"] != "text":
        unmodelled["output_type"] = held["gen_ai.output.type"]
    if (
        "gen_ai.openai.request.response_format" in held
        and held["gen_ai.openai.request.response_format"] != "text"
    ):
        unmodelled["response_format"] = held["gen_ai.openai.request.response_format"]
    provider = held.get("gen_ai.provider.name") or held.get("gen_ai.system")
    return Generation(
        "opentelemetry",
        span.name,
        {name: value for name, value in request.items() if value is not None},
        {name: value for name, value in response.items() if value is not None},
        span.raw,
        provider=provider if isinstance(provider, str) else None,
        added=of_attributes(held),
        rest=span.raw,
        unmodelled=unmodelled,
        timing=span.timing,
    )


def _first(held: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((held[key] for key in keys if held.get(key) is not None), None)


def _messages(span: Span) -> list[dict[str, Any]]:
    held = span.attributes
    found = decoded(held.get("gen_ai.input.messages"))
    if found is not None:
        system = decoded(held.get("gen_ai.system_instructions"))
        first = [{"role": "system", "parts": listed(system)}] if system is not None else []
        return [_message(item) for item in (*first, *listed(found)) if isinstance(item, dict)]
    return _messages_of_old(span)


def _messages_of_old(span: Span) -> list[dict[str, Any]]:
    held = span.attributes
    flattened = numbered(held, "gen_ai.prompt")
    if flattened:
        return [_message(item) for item in flattened]
    whole = held.get("gen_ai.prompt")
    if whole is None:
        events = (e.attributes.get("gen_ai.prompt") for e in span.events if e.name == "gen_ai.content.prompt")
        whole = next(events, None)
    if whole is not None:
        value = decoded(whole)
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        return [_message(item) for item in listed(value) if isinstance(item, dict)]
    told = (event for event in span.events if event.name in _MESSAGE_EVENTS)
    return [_message({"role": _MESSAGE_EVENTS[event.name], **event.attributes}) for event in told]


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    """A message in OpenAI's form; what is neither text nor a tool's is kept as a part of its own type."""
    role = item.get("role", "user")
    parts = item.get("parts")
    if not isinstance(parts, list):
        content = decoded(item.get("content"))
        parts = content if isinstance(content, list) else None
    if parts is None:
        return {"role": role, "content": item.get("content")}
    result: dict[str, Any] = {"role": role, "content": None}
    contents = [part for part in parts if isinstance(part, dict)]
    texts = [_text(part) for part in contents]
    others = [part for part, text in zip(contents, texts, strict=True) if text is None]
    calls = [part for part in others if part.get("type") == "tool_call"]
    answers = [part for part in others if part.get("type") == "tool_call_response"]
    rest = [part for part in others if part not in calls and part not in answers]
    said = "".join(text for text in texts if text is not None)
    if calls:
        result["tool_calls"] = calls
    if answers and not said:
        return {
            **result,
            "content": str(answers[0].get("result", answers[0].get("response"))),
            "answers": answers,
        }
    if rest:
        result["content"] = [{"type": "text", "text": said}, *rest] if said else rest
    elif any(text is not None for text in texts):
        result["content"] = said
    return result


def _text(part: Mapping[str, Any]) -> str | None:
    if part.get("type", "text") != "text":
        return None
    found = part.get("content", part.get("text"))
    return found if isinstance(found, str) else None


def _choices(span: Span) -> list[dict[str, Any]]:
    held = span.attributes
    reasons = listed(held.get("gen_ai.response.finish_reasons"))
    found = list(_answers(span)) or [{} for _ in reasons[:1]] or [{}]
    choices = []
    for number, answer in enumerate(found):
        message = _message(answer) if answer else {}
        content = message.get("content")
        choice: dict[str, Any] = {"index": number, "message": {"role": "assistant"}}
        if isinstance(content, str):
            choice["message"]["content"] = content
        elif content is not None:
            choice["parts"] = content
        if message.get("tool_calls"):
            choice["message"]["tool_calls"] = message["tool_calls"]
        reason = answer.get("finish_reason") or (reasons[number] if number < len(reasons) else None)
        choice["finish_reason"] = reason if isinstance(reason, str) else None
        choices.append(choice)
    return choices


def _answers(span: Span) -> Iterator[dict[str, Any]]:
    held = span.attributes
    found = decoded(held.get("gen_ai.output.messages"))
    if found is not None:
        yield from (item for item in listed(found) if isinstance(item, dict))
        return
    flattened = numbered(held, "gen_ai.completion")
    if flattened:
        yield from flattened
        return
    whole = held.get("gen_ai.completion")
    if whole is None:
        events = (
            e.attributes.get("gen_ai.completion")
            for e in span.events
            if e.name == "gen_ai.content.completion"
        )
        whole = next(events, None)
    if whole is not None:
        value = decoded(whole)
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            yield from value
        else:
            yield {"role": "assistant", "content": whole}
        return
    for event in span.events:
        if event.name == "gen_ai.choice":
            message = decoded(event.attributes.get("message"))
            inner = message if isinstance(message, dict) else {"content": event.attributes.get("content")}
            yield {**inner, "finish_reason": event.attributes.get("finish_reason")}
