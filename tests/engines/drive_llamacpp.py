"""Drive llama.cpp through the cases of a job, one request at a time. Runs in its own environment.

It writes the checkpoint as GGUF first (`write_gguf.py`), and what was sampled into the report.

usage: drive_llamacpp.py JOB.json REPORT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llama_cpp import Llama
from llama_cpp._internals import LlamaSampler
from write_gguf import write_gguf

KV_TYPES = {"f32": 0, "f16": 1}  # enum ggml_type


class ServersChain(Llama):
    """`Llama` with the two filters of llama.cpp's server that its own chain lacks, in the server's places."""

    top_n_sigma, xtc_probability, xtc_threshold = -1.0, 0.0, 0.1

    def _init_sampler(self, top_k=40, top_p=0.95, min_p=0.05, typical_p=1.0, temp=0.8, **others):
        if self.top_n_sigma <= 0 and self.xtc_probability <= 0:
            return super()._init_sampler(top_k, top_p, min_p, typical_p, temp, **others)
        off = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        assert temp > 0
        assert all(others.get(name, value) == value for name, value in off.items())
        chain = LlamaSampler()
        chain.add_top_n_sigma(self.top_n_sigma)
        chain.add_top_k(top_k)
        chain.add_typical(typical_p, 0)
        chain.add_top_p(top_p, 0)
        chain.add_min_p(min_p, 0)
        chain.add_xtc(self.xtc_probability, self.xtc_threshold, 0, self._seed)
        chain.add_temp(temp)
        chain.add_dist(self._seed)
        return chain


def filters_of(sampling):
    """Everything explicit: the library's own defaults filter (top-k 40, top-p 0.95, min-p 0.05)."""
    return {
        "temp": sampling["temperature"],
        "top_k": sampling.get("top_k", 0),
        "top_p": sampling.get("top_p", 1.0),
        "min_p": sampling.get("min_p", 0.0),
        "typical_p": sampling.get("typical_p", 1.0),
        "repeat_penalty": sampling.get("repetition_penalty", 1.0),
        "presence_penalty": sampling.get("presence_penalty", 0.0),
        "frequency_penalty": sampling.get("frequency_penalty", 0.0),
    }


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    options = job["options"]
    gguf = Path(sys.argv[1]).with_suffix(f".{options['weights']}.gguf")
    write_gguf(Path(job["model"]), gguf, options["weights"])
    kv = KV_TYPES[options["kv"]]
    llama = ServersChain(
        str(gguf), n_ctx=512, n_threads=1, n_threads_batch=1, type_k=kv, type_v=kv, verbose=False
    )
    returned = {}
    for case in job["cases"]:
        for request in case["requests"]:
            llama.set_seed(request["seed"])
            llama.top_n_sigma = request["sampling"].get("top_n_sigma", -1.0)
            llama.xtc_probability = request["sampling"].get("xtc_probability", 0.0)
            llama.xtc_threshold = request["sampling"].get("xtc_threshold", 0.1)
            output = []
            for token in llama.generate(request["prompt"], **filters_of(request["sampling"])):
                output.append(int(token))
                if token == llama.token_eos() or len(output) >= request["sampling"]["max_tokens"]:
                    break
            returned[request["id"]] = output
    Path(sys.argv[2]).write_text(json.dumps({"returned": returned}))


main()
