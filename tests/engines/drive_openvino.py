"""Drive OpenVINO GenAI through the cases of a job, one request at a time. Runs in its own environment.

It exports the checkpoint first (optimum-intel), and writes what was sampled into the report.

usage: drive_openvino.py JOB.json REPORT.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai


def export(model, target):
    if not target.exists():
        command = [str(Path(sys.executable).parent / "optimum-cli"), "export", "openvino", "--model", model]
        command += ["--task", "text-generation-with-past", "--weight-format", "fp32", str(target)]
        subprocess.run(command, check=True)


def configured(sampling, seed):
    config = genai.GenerationConfig()
    config.max_new_tokens = sampling["max_tokens"]
    config.do_sample = sampling["temperature"] > 0
    config.rng_seed = seed
    config.eos_token_id = 2
    config.stop_token_ids = {2}
    config.apply_chat_template = False
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        setattr(config, name, sampling.get(name, getattr(config, name)))
    if config.do_sample:
        for name in ("temperature", "top_p", "top_k", "min_p"):
            if name in sampling:
                setattr(config, name, sampling[name])
    return config


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[1]).parent / "exported"
    export(job["model"], folder)
    pipeline = genai.LLMPipeline(str(folder), "CPU", **job["options"])
    returned, refused = {}, {}
    for case in job["cases"]:
        for request in case["requests"]:
            ids = np.array([request["prompt"]], np.int64)
            tokens = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
            try:
                config = configured(request["sampling"], request["seed"])
            except AttributeError as error:
                refused[case["name"]] = str(error)
                break
            returned[request["id"]] = list(pipeline.generate(tokens, config).tokens[0])
    Path(sys.argv[2]).write_text(json.dumps({"returned": returned, "refused": refused}))


main()
