"""OpenInference's conventions (Arize Phoenix): flattened `llm.*` attributes of spans of kind LLM. Pure.

`llm.model_name`, `llm.invocation_parameters` (JSON), `llm.input_messages.N.message.role` and `.content` or
`.contents.M.message_content.text`, the same for `llm.output_messages`, `llm.prompts.N.prompt.text` and
`llm.choices.N.completion.text` for completions, `llm.token_count.*`. Where no messages are there,
`input.value` and `output.value` of type text/plain stand for them.

Source: Arize-ai/openinference, spec/semantic_conventions.md and spec/llm_spans.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auditor.adapters.extension import of_attributes
from auditor.adapters.generation import Generation, parameters
from auditor.adapters.spans import numbered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from auditor.adapters.spans import Span

_KIND = "openinference.span.kind"
_USAGE = {
    "prompt_tokens": "llm.token_count.prompt",
    "completion_tokens": "llm.token_count.completion",
    "reasoning_tokens": "llm.token_count.completion_details.reasoning",
}
_TEXT = (None, "text/plain")


def is_marked(span: Span) -> bool:
    """Whether a span says that it follows this convention."""
    return _KIND in span.attributes or "llm.model_name" in span.attributes


def generation_of(span: Span, *, where: str) -> Generation | None:
    """What a span tells of a generation; None when it is a span of something else.

    Raises:
        TraceFieldError: the parameters are no JSON object.
    """
    held = span.attributes
    kind = held.get(_KIND, span.raw.get("span_kind", "LLM"))
    if kind != "LLM":
        return None
    name = "llm.invocation_parameters"
    request = parameters(held.get(name), name=name, where=f"{where} {span.name}")
    request = {key: value for key, value in request.items() if value is not None}
    request["model"] = request.get("model") or held.get("llm.model_name")
    messages = [_message(item) for item in numbered(held, "llm.input_messages")]
    prompts = [item.get("prompt.text") for item in numbered(held, "llm.prompts")]
    if messages:
        request["messages"] = messages
    elif prompts and all(isinstance(prompt, str) for prompt in prompts):
        request["prompt"] = prompts
    elif isinstance(held.get("input.value"), str) and held.get("input.mime_type") in _TEXT:
        request.setdefault("messages", [{"role": "user", "content": held["input.value"]}])
    response = {
        "id": span.name,
        "model": held.get("llm.model_name"),
        "created": span.created,
        "choices": _choices(held),
        "usage": {name: held[key] for name, key in _USAGE.items() if held.get(key) is not None},
    }
    if span.failure is not None:
        response["error"] = {"message": span.failure}
    provider = held.get("llm.provider") or held.get("llm.system")
    return Generation(
        "openinference",
        span.name,
        {name: value for name, value in request.items() if value is not None},
        {name: value for name, value in response.items() if value is not None},
        span.raw,
        provider=provider if isinstance(provider, str) else None,
        added=of_attributes(held),
        rest=span.raw,
        timing=span.timing,
    )


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": item.get("message.role", "user"),
        "content": item.get("message.content"),
    }
    contents = numbered(item, "message.contents")
    if contents:
        parts = [_part(content) for content in contents]
        message["content"] = parts
    calls = numbered(item, "message.tool_calls")
    if calls:
        message["tool_calls"] = calls
    return message


def _part(content: Mapping[str, Any]) -> dict[str, Any]:
    kind = content.get("message_content.type", "text")
    if kind == "text":
        return {"type": "text", "text": content.get("message_content.text")}
    return {"type": str(kind), "value": dict(content)}


def _choices(held: Mapping[str, Any]) -> list[dict[str, Any]]:
    texts = [item.get("completion.text") for item in numbered(held, "llm.choices")]
    if texts:
        return [
            {"index": n, "text": text}
            for n, text in enumerate(texts)
            if text is None or isinstance(text, str)
        ]
    reason = held.get("llm.finish_reason")
    choices: list[dict[str, Any]] = []
    for number, item in enumerate(numbered(held, "llm.output_messages")):
        message = _message(item)
        content = message["content"]
        if isinstance(content, list) and all(part["type"] == "text" for part in content):
            content = "".join(str(part["text"]) for part in content)
        known = {
            "role": "assistant",
            **({"content": content} if isinstance(content, str) else {"parts": content}),
        }
        if "tool_calls" in message:
            known["tool_calls"] = message["tool_calls"]
        choices.append({"index": number, "message": known})
    if not choices and isinstance(held.get("output.value"), str) and held.get("output.mime_type") in _TEXT:
        choices = [{"index": 0, "message": {"role": "assistant", "content": held["output.value"]}}]
    choices = choices or [{"index": 0}]
    if isinstance(reason, str):
        choices[0]["finish_reason"] = reason
    return choices
