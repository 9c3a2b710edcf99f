"""Does the diagnosis name the right cause? Logs of about 5,000 tokens, one dishonest provider each.

The profile is calibrated on other honest requests; its simulated providers never saw these prompts, and its
stand-in for another model is the reference with every second layer dropped, not the draft model that is really
served, and that model is not at hand either (with it, `--draft-model`, it is named). The simulated provider
quantizes as the hypothesis that names it does; how the diagnosis fares where the real quantizer is another one,
the recorded engines show (last table: llama.cpp's q4_0, vLLM's w4a16 with groups of 128, its fp8 cache,
transformers' int4, hidden prompts, a hidden temperature).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tests.study.pools import Pool, load, traces_of, traffic_of

TOKENS = 5_000
LOGS = 6
TEMPLATE_LOGS = 100
CALIBRATED = 160
SEED = 7_003
RECORDED = {
    "vllm-cpu-draft-substituted": "model/substituted",
    "vllm-cpu-hidden-system-prompt": "prompt/system",
    "vllm-cpu-hidden-t11": "temperature/+0.1",
    "vllm-cpu-kv-fp8": "kv/fp8",
    "vllm-cpu-seed-plus-1": "seed/wrong",
    "vllm-cpu-w4a16-g128": "weights/int4",
    "transformers-int4": "weights/int4",
    "llamacpp-q4_0": "weights/int4",
}


def prepare(out):
    """Calibrate once; the profile goes to a file that every worker reads."""
    from auditor.calibration import calibrate
    from auditor.profile import profile_bytes
    from auditor.reference.demo.prompts import TARGET
    from auditor.replay import Reference

    traces = traces_of(Pool("calibration", requests=480))[:CALIBRATED]
    path = Path(out) / "diagnosis-profile.json"
    path.write_bytes(profile_bytes(calibrate(traces, Reference.load(TARGET))))
    return path


def logs(cause, count):
    """`count` logs of about `TOKENS` tokens of one provider, as lists of scored requests."""
    from auditor.replay import Scored

    pool = Pool("report", traffic_of(cause), cause, requests=320)
    items, traces = load(pool), traces_of(pool)
    generator = np.random.default_rng(SEED)
    order = generator.permutation(len(items)).tolist()
    for _ in range(count):
        log, tokens = [], 0
        while tokens < TOKENS:
            if not order:  # more logs than fit the pool share requests
                order = generator.permutation(len(items)).tolist()
            item = items[order.pop()]
            log.append(Scored(traces[item.trace], "race", item.mode, None, item.counts, None))
            tokens += item.tokens
        yield log


def run(cause, profile_path):
    import torch

    torch.set_num_threads(1)
    from auditor.diagnosis import diagnose
    from auditor.evidence import Calibration, margin_log_e
    from auditor.noise_model import log_likelihoods
    from auditor.profile import read_profile
    from auditor.reference.demo.prompts import TARGET
    from auditor.replay import Reference

    profile, reference = read_profile(profile_path), replace(Reference.load(TARGET), draft=None)
    calibration = Calibration.of(profile.honest)
    named, convicted = [], 0
    for log in logs(cause, TEMPLATE_LOGS if cause == "prompt/template" else LOGS):
        grid = log_likelihoods(s.counts for s in log).sum(axis=0)
        convicted += bool(margin_log_e(calibration, grid) >= np.log(1_000))
        ranked = diagnose(log, profile, reference)
        named.append(ranked[0] if ranked else ("none", 0.0))
    return {"cause": cause, "logs": len(named), "convicted": convicted, "named": named}


def run_recorded(name):
    import torch

    torch.set_num_threads(1)
    from auditor.profiles import shipped_profiles
    from auditor.reference.demo.prompts import TARGET
    from auditor.replay import Reference
    from auditor.trace_files import read_traces
    from auditor.verification import verify

    path = Path("tests/traces") / f"{name}.jsonl.gz"
    reference = replace(Reference.load(TARGET), draft=None)
    result = verify(lambda: read_traces(path), reference, find_profile=shipped_profiles().get, alpha=0.001)
    ranked = [list(pair) for verdict in result.verdicts for pair in verdict.diagnosis]
    return {"trace": name, "cause": RECORDED[name], "outcome": result.outcome, "named": ranked[:3]}


def study(jobs, out="out/study"):
    """Every deviation, then the recorded engines."""
    from auditor.reference.deviations import DEVIATIONS

    path = prepare(out)
    causes = sorted(DEVIATIONS, key=lambda cause: cause != "prompt/template")
    with get_context("spawn").Pool(jobs) as workers:
        rows = workers.map(partial(run, profile_path=path), causes, chunksize=1)
        recorded = workers.map(run_recorded, RECORDED, chunksize=1)
    each = [np.mean([name == row["cause"] for name, _ in row["named"]]) for row in rows]
    called_weights = sum(
        name.startswith("weights/")
        for row in rows
        if row["cause"] == "prompt/template"
        for name, _ in row["named"]
    )
    return {
        "tokens": TOKENS,
        "accuracy": float(np.mean(each)),
        "template_called_weights": int(called_weights),
        "rows": rows,
        "recorded": recorded,
    }


def markdown(found):
    """The tables of docs/study.md."""
    lines = [
        "| really | logs | convicted at 0.001 | named right | named otherwise |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        names = [name for name, _ in row["named"]]
        wrong = sorted({n for n in names if n != row["cause"]}, key=names.count, reverse=True)
        others = ", ".join(f"{n} {names.count(n)}" for n in wrong)
        lines.append(
            f"| {row['cause']} | {row['logs']} | {row['convicted']} | {names.count(row['cause'])} | {others} |"
        )
    lines += ["", "| recorded engine | really | verdict | named |", "|---|---|---|---|"]
    for row in found["recorded"]:
        named = ", ".join(f"{cause} {weight:.2f}" for cause, weight in row["named"])
        lines.append(f"| {row['trace']} | {row['cause']} | {row['outcome']} | {named} |")
    return "\n".join(lines)
