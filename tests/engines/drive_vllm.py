"""Drive vLLM (CPU) through the cases of a job; its own plug-in writes the traces. Runs in vLLM's environment.

usage: drive_vllm.py JOB.json REPORT.json    (AUDITOR_CAPTURE names the trace file)
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    options = dict(job["options"])
    probe = options.pop("probe", None)
    report = PROBES[probe](job, options) if probe else serve(job, options)
    Path(sys.argv[2]).write_text(json.dumps(report))


def engine(job, options):
    from vllm import LLM

    settings = {"dtype": "bfloat16", "enforce_eager": True, "max_num_seqs": 16, **options}
    return LLM(job["model"], distributed_executor_backend="uni", **settings)


def parameters(request):
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    sampling = dict(request["sampling"])
    grammar = sampling.pop("grammar", None)
    if grammar is not None:
        sampling["structured_outputs"] = StructuredOutputsParams(json=grammar)
    if "logit_bias" in sampling:
        sampling["logit_bias"] = {int(token): bias for token, bias in sampling["logit_bias"].items()}
    return SamplingParams(seed=request["seed"], extra_args={"audit_id": request["id"]}, **sampling)


def ask(llm, requests):
    prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
    outputs = llm.generate(prompts, [parameters(request) for request in requests], use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def serve(job, options):
    """All cases under one engine; what the API returned goes into the report, to compare with the traces."""
    llm = engine(job, options)
    returned = {}
    for case in job["cases"]:
        asked = case["requests"]
        half = len(asked) // 2
        for part in (asked[:half], asked[half:]) if case["repeat_prompts"] else (asked,):
            for request, output in zip(part, ask(llm, part), strict=True):
                returned[request["id"]] = output
    return {"returned": returned}


def mixed_batch(job, options):
    """Whether a seeded request keeps its noise when an unseeded one shares the step."""
    llm = engine(job, options)
    seeded = job["cases"][0]["requests"][:8]
    strangers = [request | {"seed": None, "id": "stranger"} for request in seeded]
    alone = ask(llm, seeded)
    together = ask(llm, [*seeded, *strangers])[: len(seeded)]
    return {"same": sum(a == b for a, b in zip(alone, together, strict=True)), "of": len(seeded)}


def runner_v2(job, options):
    """The plug-in under vLLM's V2 loader: accepted while inactive, a clear refusal while it should record."""
    from vllm.v1.worker.gpu.sample.logits_processor import loader

    del job, options
    recording = os.environ.pop("AUDITOR_CAPTURE")
    (recorder,) = loader._load_v2_logitsprocs_plugins()
    inactive = recorder(None, None)
    loader.build_custom_logits_processors_params_validator(())(None)
    os.environ["AUDITOR_CAPTURE"] = recording
    try:
        recorder(None, None)
    except Exception as error:
        return {"inactive": inactive.add_request(0, None) is False, "active": str(error)}
    return {"inactive": True, "active": "started"}


PROBES = {"mixed batch": mixed_batch, "V2 loader": runner_v2}

if __name__ == "__main__":
    main()
