"""Recorded traces as an observability tool would have logged them, with and without the namespace `auditor`."""

from __future__ import annotations

import json


def otlp_value(value):
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)} if abs(value) < 2**63 else {"stringValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [otlp_value(item) for item in value]}}
    return {"stringValue": value}


def otlp_attributes(attributes):
    return [{"key": key, "value": otlp_value(item)} for key, item in attributes.items() if item is not None]


def otlp(*spans, resource=None):
    """A line of the Collector's file exporter."""
    built = [
        {
            "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
            "spanId": f"{number:016x}",
            "name": "chat demo",
            "kind": 3,
            "startTimeUnixNano": "1795445519000000123",
            "endTimeUnixNano": "1795445520000000000",
            "attributes": otlp_attributes(attributes),
            "events": events,
            "status": status,
        }
        for number, (attributes, events, status) in enumerate(spans)
    ]
    held = {"resource": {"attributes": otlp_attributes(resource or {})}, "scopeSpans": [{"spans": built}]}
    return {"resourceSpans": [held]}


def span(attributes, events=(), status=None):
    return attributes, list(events), status or {}


def namespace(trace):
    """What a deployment adds of a trace, keys without the prefix."""
    return {
        "prompt_token_ids": trace["prompt_token_ids"],
        "output_token_ids": trace["output_token_ids"],
        "noise": trace["noise"],
        "model_digest": trace["model_digest"],
        "seed": str(trace["seed"]),
        **{f"engine.{name}": item for name, item in trace["engine"].items() if item is not None},
    }


def sampling(trace, names):
    return {name: trace["sampling"][name] for name in names if trace["sampling"].get(name) is not None}


def parts(text):
    return [{"type": "text", "content": text}]


def as_otel(trace, *, added=True, old=False):
    sent = sampling(trace, ("temperature", "top_p", "max_tokens", "frequency_penalty", "presence_penalty"))
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": trace["model"],
        **{f"gen_ai.request.{name}": value for name, value in sent.items()},
        "gen_ai.request.top_k": float(trace["sampling"]["top_k"]),
        "gen_ai.response.id": trace["id"],
        "gen_ai.response.finish_reasons": [trace["finish_reason"]],
    }
    messages = trace["messages"] or [{"role": "user", "content": "?"}]
    if old:
        attributes |= {
            "gen_ai.system": "vllm",
            "gen_ai.openai.request.seed": trace["seed"] if trace["seed"] < 2**63 else None,
            "gen_ai.usage.prompt_tokens": len(trace["prompt_token_ids"]),
            "gen_ai.usage.completion_tokens": len(trace["output_token_ids"]),
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": trace["text"],
        }
        for number, message in enumerate(messages):
            attributes |= {f"gen_ai.prompt.{number}.{key}": item for key, item in message.items()}
    else:
        answer = {"role": "assistant", "parts": parts(trace["text"]), "finish_reason": trace["finish_reason"]}
        told = [{"role": m["role"], "parts": parts(m["content"])} for m in messages]
        attributes |= {
            "gen_ai.provider.name": "vllm",
            "gen_ai.request.seed": trace["seed"] if trace["seed"] < 2**63 else None,
            "gen_ai.usage.input_tokens": len(trace["prompt_token_ids"]),
            "gen_ai.usage.output_tokens": len(trace["output_token_ids"]),
            "gen_ai.input.messages": json.dumps(told),
            "gen_ai.output.messages": json.dumps([answer]),
        }
    if added:
        attributes |= {f"auditor.{name}": item for name, item in namespace(trace).items()}
    return attributes


def as_openinference(trace, *, added=True):
    names = ("temperature", "top_k", "top_p", "max_tokens", "frequency_penalty", "presence_penalty")
    attributes = {
        "openinference.span.kind": "LLM",
        "llm.provider": "vllm",
        "llm.model_name": trace["model"],
        "llm.invocation_parameters": json.dumps(sampling(trace, names) | {"seed": trace["seed"]}),
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": trace["text"],
        "llm.token_count.prompt": len(trace["prompt_token_ids"]),
        "llm.token_count.completion": len(trace["output_token_ids"]),
    }
    for number, message in enumerate(trace["messages"] or [{"role": "user", "content": "?"}]):
        attributes |= {f"llm.input_messages.{number}.message.{key}": item for key, item in message.items()}
    if added:
        attributes |= {f"auditor.{name}": item for name, item in namespace(trace).items()}
    return attributes


def as_langfuse(trace, *, added=True):
    names = ("temperature", "top_k", "top_p", "max_tokens", "frequency_penalty", "presence_penalty")
    return {
        "id": trace["id"],
        "trace_id": "t",
        "project_id": "p",
        "type": "GENERATION",
        "start_time": "2026-11-23 14:51:59.000000",
        "level": "DEFAULT",
        "input": json.dumps(trace["messages"] or [{"role": "user", "content": "?"}]),
        "output": json.dumps({"role": "assistant", "content": trace["text"]}),
        "provided_model_name": trace["model"],
        "model_parameters": json.dumps(sampling(trace, names) | {"seed": trace["seed"]}),
        "usage_details": {
            "input": len(trace["prompt_token_ids"]),
            "output": len(trace["output_token_ids"]),
            "total": 9,
        },
        "metadata": {"auditor": json.dumps(namespace(trace))} if added else {"user": "x"},
    }


def as_litellm(trace, *, added=True):
    names = ("temperature", "top_k", "top_p", "max_tokens", "frequency_penalty", "presence_penalty")
    choice = {
        "index": 0,
        "finish_reason": trace["finish_reason"],
        "message": {"role": "assistant", "content": trace["text"]},
    }
    response = {"id": trace["id"], "model": trace["model"], "created": 1795445519, "choices": [choice]}
    return {
        "id": trace["id"],
        "trace_id": "t",
        "call_type": "acompletion",
        "status": "success",
        "custom_llm_provider": "hosted_vllm",
        "model": trace["model"],
        "api_base": "http://vllm:8000/v1",
        "cache_hit": None,
        "startTime": 1795445519.2,
        "prompt_tokens": len(trace["prompt_token_ids"]),
        "completion_tokens": len(trace["output_token_ids"]),
        "messages": trace["messages"] or [{"role": "user", "content": "?"}],
        "response": response,
        "model_parameters": sampling(trace, names) | {"seed": trace["seed"]},
        "metadata": {"requester_metadata": {"auditor": namespace(trace)} if added else {}},
    }


LINES = {
    "otel": lambda trace, **more: otlp(span(as_otel(trace, **more))),
    "otel-old": lambda trace, **more: otlp(span(as_otel(trace, old=True, **more))),
    "openinference": lambda trace, **more: otlp(span(as_openinference(trace, **more))),
    "langfuse": as_langfuse,
    "litellm": as_litellm,
}
