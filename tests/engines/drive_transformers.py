"""Drive transformers' `generate` through the cases of a job, recorded by our wrapper. Runs in its own environment.

usage: drive_transformers.py JOB.json REPORT.json    (AUDITOR_CAPTURE names the trace file)
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from auditor.capture import recorded_generate

RENAMED = {"max_tokens": "max_new_tokens"}


def options_of(sampling):
    options = {RENAMED.get(name, name): value for name, value in sampling.items()}
    if options["temperature"] == 0.0:
        return {"do_sample": False} | {k: v for k, v in options.items() if k != "temperature"}
    return {"do_sample": True, "top_k": 0, **options}


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    log = Path(os.environ["AUDITOR_CAPTURE"])
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["options"]["dtype"]))
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    returned = {}
    for case in job["cases"]:
        for request in case["requests"]:
            prompt = torch.tensor([request["prompt"]])
            whole = recorded_generate(
                model,
                prompt,
                seed=request["seed"],
                log=log,
                tokenizer=tokenizer,
                messages=request["messages"],
                **options_of(request["sampling"]),
            )
            returned[request["id"]] = whole[0, prompt.shape[1] :].tolist()
    Path(sys.argv[2]).write_text(json.dumps({"returned": returned}))


main()
