"""Traces of engines that have no recorder of ours: what was asked, and the ids the engine returned."""

from __future__ import annotations

from auditor.reference.checkpoint.digests import template_digest, tokenizer_digest, weights_digest
from auditor.reference.demo.prompts import TARGET
from auditor.trace import SCHEMA
from auditor.trace_files import write_traces
from auditor.trace_format import trace_from_object
from tests.engines.cases import requests_of

END = 2


def engine_of(environment, options):
    """Declared engine and noise scheme of a run."""
    if environment.startswith("llama-cpp-python"):
        release = environment.removeprefix("llama-cpp-python-")
        return {
            "name": "llama.cpp",
            "version": f"llama-cpp-python {release}",
            "dtype": {"f32": "float32", "f16": "float16"}[options["weights"]],
            "device": "cpu",
            "recipe": f"{environment}/weights-{options['weights']}/kv-{options['kv']}",
        }, "llama.cpp/mt19937-u64-icdf"
    precision = options.get("INFERENCE_PRECISION_HINT", "default")
    return {
        "name": "openvino-genai",
        "version": environment.removeprefix("openvino-genai-"),
        "dtype": {"f32": "float32"}.get(precision),
        "device": "cpu",
        "recipe": f"{environment}/{precision}/kv-{options.get('KV_CACHE_PRECISION', 'default')}",
    }, "openvino-genai-2026.4.1/mt19937-u32-icdf"


def write_traces_of(path, environment, run, returned):
    """Write every answered request of a run, in order."""
    engine, noise = engine_of(environment, run.options)
    digests = {
        "model_digest": weights_digest(TARGET),
        "tokenizer_digest": tokenizer_digest(TARGET),
        "template_digest": template_digest(TARGET),
    }
    traces = []
    for case in run.cases:
        for request in requests_of(run.name, case):
            output = returned.get(request["id"])
            if output is None:
                continue
            value = {
                "schema": SCHEMA,
                "id": f"{environment}/{run.name}/{request['id']}",
                "provider": engine["name"],
                "model": "demo",
                **digests,
                "messages": request["messages"],
                "prompt_token_ids": request["prompt"],
                "sampling": request["sampling"],
                "seed": request["seed"],
                "noise": "greedy" if request["sampling"]["temperature"] == 0 else noise,
                "output_token_ids": output,
                "finish_reason": "stop" if output[-1] == END else "length",
                "usage": {"prompt_tokens": len(request["prompt"]), "completion_tokens": len(output)},
                "engine": engine,
                "audit_id": request["id"],
            }
            traces.append(trace_from_object(value, file=str(path), line=0, raw_digest=""))
    write_traces(path, traces)
