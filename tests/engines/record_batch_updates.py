"""Write down what vLLM tells a logits processor, for tests of the recorder without vLLM. Runs in vLLM's environment.

Few rows and few blocks of key-value cache, so that requests take over rows, are moved, and are preempted and
resumed. An output list is named by the request it belongs to; before each report its content is written down.

usage: record_batch_updates.py MODEL OUT.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "AUDITOR_CAPTURE": str(Path(sys.argv[2]).with_suffix(".traces.jsonl")),
}

PROMPT = [
    1,
    3,
    1140,
    1148,
    312,
    718,
    274,
    514,
    20,
    4,
    1022,
    362,
    528,
    227,
    27,
    81,
    311,
    227,
    26,
    282,
    227,
    24,
    31,
    20,
]


def main():
    import vllm
    from vllm import LLM, SamplingParams

    from auditor.capture.rows import Rows

    steps, lists, seen = [], {}, Rows.update

    def watched(rows, change):
        if change is not None and any(not hasattr(params, "extra_args") for _, params, _, _ in change.added):
            seen(rows, change)  # the recorder's own start-up check
            return
        step = {"outputs": {name: list(output) for name, output in lists.items()}}
        if change is not None:
            for _, params, _, output in change.added:
                lists[params.extra_args["audit_id"]] = output
            step |= {
                "removed": list(change.removed),
                "added": [
                    [row, parameters(params), list(prompt), params.extra_args["audit_id"]]
                    for row, params, prompt, _ in change.added
                ],
                "moved": [[a, b, direction.name] for a, b, direction in change.moved],
            }
        steps.append(step)
        seen(rows, change)

    def parameters(params):
        return {
            "eos_token_id": params.eos_token_id,
            "stop_token_ids": params.stop_token_ids,
            "max_tokens": params.max_tokens,
            "seed": params.seed,
        }

    Rows.update = watched
    llm = LLM(
        sys.argv[1],
        dtype="bfloat16",
        enforce_eager=True,
        max_num_seqs=3,
        num_gpu_blocks_override=5,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
    )
    asked = [
        SamplingParams(
            seed=i + 1, max_tokens=m, ignore_eos=i % 2 == 0, stop=stop, extra_args={"audit_id": f"r{i}"}
        )
        for i, (m, stop) in enumerate(
            [(110, None), (5, None), (120, None), (60, ["="]), (115, None), (1, None), (118, None)]
        )
    ]
    outputs = llm.generate(
        [{"prompt_token_ids": [*PROMPT, 227, i + 22, 20, 5]} for i in range(len(asked))], asked
    )
    llm.generate(
        [{"prompt_token_ids": PROMPT}], SamplingParams(max_tokens=1, extra_args={"audit_id": "last"})
    )
    defaults = SamplingParams()
    result = {
        "engine": f"vllm {vllm.__version__}",
        "sampling_defaults": {
            name: list(value) if isinstance(value := getattr(defaults, name), set) else value
            for name in SamplingParams.__struct_fields__
            if name != "output_kind"
        },
        "returned": {f"r{i}": list(o.outputs[0].token_ids) for i, o in enumerate(outputs)},
        "steps": steps,
    }
    Path(sys.argv[2]).write_text(json.dumps(result, separators=(",", ":")))


main()
