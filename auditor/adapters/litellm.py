"""LiteLLM's `StandardLoggingPayload`, a JSON object a line, bare or under `standard_logging_object`. Pure.

Request and response lie in it in OpenAI's form, and `api_base` says which backend answered. What LiteLLM
does not know of a choice it folds into `provider_specific_fields`: a vLLM behind it that was asked with
`return_token_ids` leaves its output ids there, and those of the prompt at the root of the response.

Source: docs.litellm.ai, "StandardLoggingPayload Specification".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auditor.adapters.extension import of_metadata
from auditor.adapters.generation import Generation, seconds_of_iso
from auditor.errors import TraceFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

_GENERATING = ("completion", "acompletion", "text_completion", "atext_completion")
_REDACTED = "redacted-by-litellm"


def is_payload(value: Mapping[str, Any]) -> bool:
    """Whether a line is such a payload."""
    inner = value.get("standard_logging_object", value)
    return isinstance(inner, dict) and "call_type" in inner and "model_parameters" in inner


def generation_of(value: Mapping[str, Any], *, where: str) -> Generation | None:
    """What a payload tells of a generation; None when it is of another call (embeddings, images).

    Raises:
        TraceFieldError: parts of it are not built as its specification has them.
    """
    value = value.get("standard_logging_object", value)
    if value.get("call_type") not in _GENERATING:
        return None
    request = value.get("model_parameters") or {}
    if not isinstance(request, dict):
        raise TraceFieldError("field model_parameters: is not an object", where=where)
    request = {name: item for name, item in request.items() if item is not None}
    request["model"] = value.get("model")
    notes = _put_prompt(request, value)
    name = str(value.get("id") or "payload")[:80]
    response = _response(value, name)
    if value.get("status") == "failure" or value.get("error_str"):
        response["error"] = {"message": str(value.get("error_str") or "the call failed")}
    if value.get("api_base"):
        notes.append(f"answered by {str(value['api_base'])[:200]}")
    provider = value.get("custom_llm_provider")
    known = {"model_parameters", "messages", "response"}
    return Generation(
        "litellm",
        name,
        {key: item for key, item in request.items() if item is not None},
        response,
        value,
        provider=provider if isinstance(provider, str) else None,
        added=_added(value.get("metadata")),
        rest={key: item for key, item in value.items() if key not in known},
        notes=tuple(notes),
        # An answer out of a cache was sampled for another request, under its seed.
        unmodelled={"cache_hit": True} if value.get("cache_hit") in (True, "True") else {},
    )


def _put_prompt(request: dict[str, Any], value: Mapping[str, Any]) -> list[str]:
    asked = value.get("messages")
    if isinstance(asked, dict) and isinstance(asked.get("messages"), list):
        asked = asked["messages"]
    if _REDACTED in _contents(asked):
        return ["the messages were left out of the log"]
    if isinstance(asked, str) and asked:
        request["prompt"] = asked
    elif isinstance(asked, list) and asked and all(isinstance(item, dict) for item in asked):
        request["messages"] = asked
    return []


def _contents(asked: Any) -> list[Any]:
    if isinstance(asked, str):
        return [asked]
    items = asked if isinstance(asked, list) else []
    return [item.get("content") for item in items if isinstance(item, dict)]


def _response(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    answered = value.get("response")
    response = dict(answered) if isinstance(answered, dict) else {}
    if isinstance(answered, str) and answered and answered != _REDACTED:
        response["choices"] = [{"index": 0, "message": {"role": "assistant", "content": answered}}]
    response.setdefault("id", name)
    choices = response.get("choices")
    choices = choices if isinstance(choices, list) and choices else [{"index": 0}]
    response["choices"] = [_choice(choice) if isinstance(choice, dict) else choice for choice in choices]
    started = value.get("startTime")
    seconds = started if isinstance(started, (int, float)) else seconds_of_iso(started)
    if response.get("created") is None and seconds is not None:
        response["created"] = float(seconds)
    counts = {
        "prompt_tokens": value.get("prompt_tokens"),
        "completion_tokens": value.get("completion_tokens"),
    }
    if not isinstance(response.get("usage"), dict) and any(count is not None for count in counts.values()):
        response["usage"] = counts
    return response


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(choice)
    folded = result.get("provider_specific_fields")
    if isinstance(folded, dict):
        for name in ("token_ids", "prompt_token_ids"):
            if result.get(name) is None and folded.get(name) is not None:
                result[name] = folded[name]
    message = result.get("message")
    if isinstance(message, dict) and message.get("content") == _REDACTED:
        result["message"] = {key: item for key, item in message.items() if key != "content"}
    return result


def _added(metadata: Any) -> dict[str, Any]:
    """Of what the caller sent along: LiteLLM keeps it as `requester_metadata`, or `spend_logs_metadata`."""
    if not isinstance(metadata, dict):
        return {}
    for holder in (metadata, metadata.get("requester_metadata"), metadata.get("spend_logs_metadata")):
        found = of_metadata(holder)
        if found:
            return found
    return {}
