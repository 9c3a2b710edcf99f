"""Langfuse exports: observations of type GENERATION, a JSON object a line. Pure.

The blob storage export names its fields `provided_model_name`, `model_parameters` (JSON text),
`usage_details`, `start_time`; the API and the export from the pages say `model`, `modelParameters`,
`usageDetails`, `startTime`. `input` and `output` are text that may be JSON. Observations of other types are
passed over.

Source: langfuse.com, "Blob storage export field reference" and the observations API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auditor.adapters.extension import of_metadata
from auditor.adapters.generation import Generation, decoded, parameters, seconds_of_iso

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNLIMITED = ("inf", "Infinity")
"""What its OpenAI integration writes for a `max_tokens` that was not sent."""


def is_observation(value: Mapping[str, Any]) -> bool:
    """Whether a line is an observation."""
    marks = ("provided_model_name", "model_parameters", "modelParameters")
    of_trace = "trace_id" in value or "traceId" in value
    return isinstance(value.get("type"), str) and of_trace and any(mark in value for mark in marks)


def generation_of(value: Mapping[str, Any], *, where: str) -> Generation | None:
    """What an observation tells of a generation; None when it is of another type.

    Raises:
        TraceFieldError: the parameters are no JSON object.
    """
    if value.get("type") != "GENERATION":
        return None
    sent = _either(value, "model_parameters", "modelParameters")
    request = parameters(sent, name="model_parameters", where=where)
    request = {name: item for name, item in request.items() if item is not None and item not in _UNLIMITED}
    request["model"] = _either(value, "provided_model_name", "model") or None
    asked = decoded(value.get("input"))
    if isinstance(asked, dict) and isinstance(asked.get("messages"), list):
        asked = asked["messages"]
    if isinstance(asked, list) and all(isinstance(item, dict) for item in asked):
        request["messages"] = asked
    elif isinstance(asked, str) and asked:
        request["prompt"] = asked
    usage = _either(value, "usage_details", "usageDetails")
    usage = usage if isinstance(usage, dict) else {}
    name = str(value.get("id") or "observation")[:80]
    response = {
        "id": name,
        "created": seconds_of_iso(_either(value, "start_time", "startTime")),
        "choices": [_choice(value.get("output"))],
        "usage": {
            "prompt_tokens": usage.get("input"),
            "completion_tokens": usage.get("output"),
            "reasoning_tokens": usage.get("reasoning_tokens", usage.get("output_reasoning_tokens")),
        },
    }
    if value.get("level") == "ERROR":
        said = _either(value, "status_message", "statusMessage")
        response["error"] = {"message": str(said or "the observation is of level ERROR")}
    metadata = decoded(value.get("metadata"))
    if isinstance(metadata, dict):
        metadata = {key: decoded(item) for key, item in metadata.items()}
    known = {"input", "output", "model_parameters", "modelParameters"}
    return Generation(
        "langfuse",
        name,
        {key: item for key, item in request.items() if item is not None},
        {key: item for key, item in response.items() if item is not None},
        value,
        added=of_metadata(metadata),
        rest={key: item for key, item in value.items() if key not in known},
    )


def _either(value: Mapping[str, Any], blob: str, api: str) -> Any:
    found = value.get(blob)
    return value.get(api) if found is None else found


def _choice(output: Any) -> dict[str, Any]:
    value = decoded(output)
    if isinstance(value, dict) and value.get("role") == "assistant":
        content = value.get("content")
        if content is None or isinstance(content, str):
            return {"index": 0, "message": value}
    if isinstance(output, str):
        return {"index": 0, "message": {"role": "assistant", "content": output}}
    # An object or list that is no message: kept, but nobody can say which text was sampled.
    return {"index": 0, "output": value}
