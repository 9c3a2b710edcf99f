"""Our scorer beside what one would use otherwise, in one run on one machine: a table, and JSON on request.

    make bench      or      .venv/bin/python tests/bench/compare.py --peer .venv-peer/bin/python --json bench.json

End to end: `replay()`, which `audit verify` runs, beside `transformers_baseline.py`, by wall time; traces
are read and models loaded beforehand. Scoring alone: noise and scores of given logits beside token-difr's
released functions (`peer_token_difr.py`), by processor time of one thread; the head product is timed apart,
and so is whatever else the peer does. Rows of logits are Gaussian with a standard deviation of 3.

Every figure comes from a fresh process. Contestants take turns, round by round; a ratio is of one round, and
the table has its median and its range. Peak memory is what a pass adds at its worst to the resident memory
(with the model, or the head matrix, loaded): ours includes its tile of logits, token-difr's does not include
the logits that it is given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resident_memory import peak_of
from rich.console import Console
from rich.table import Table

from auditor.errors import AuditError
from auditor.reference import runner
from auditor.reference.head import score_rows
from auditor.reference.layers.linear import MKL_SETTINGS
from auditor.reference.noise import GumbelPosition
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, replay
from auditor.trace_files import read_traces

HERE = Path(__file__).resolve().parent
TRACES = HERE.parent / "traces"
DEMO = HERE.parents[1] / "reference/demo/target"
LOGS = ("vllm-cpu-fp32-plain.jsonl.gz", "vllm-cpu-bf16-t07-topk50-topp95.jsonl.gz")
SHAPES = ((128_256, 64), (4_096, 1_024))  # vocabulary, rows
WIDTH, SEED, PROMPT, TILE_BYTES = 64, 42, 100, 8 << 20
END_TO_END_TARGET, SCORING_TARGET = 2.0, 50.0

Answer = dict[str, Any]


# Ours, in a process of its own.


def ours_end_to_end(log: Path) -> Answer:
    """One pass for the peak, one against the clock."""
    reference = Reference.load(DEMO)
    traces = [t for t in read_traces(log) if not isinstance(t, AuditError)]
    tile = 0

    def watched(logits: torch.Tensor, *rest: Any) -> Any:
        nonlocal tile
        tile = max(tile, logits.nbytes)
        return score_rows(logits, *rest)

    runner.score_rows = watched
    list(replay(traces[:2], reference))  # loads what is loaded lazily
    peak = peak_of(lambda: list(replay(traces, reference)))
    wall, cpu = time.perf_counter(), time.process_time()
    scored = list(replay(traces, reference))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if not traces or any(s.scores is None for s in scored):
        raise SystemExit(f"{log}: not every trace could be scored")
    tokens = sum(s.scores.tokens for s in scored)
    answer = {"tokens": tokens, "tokens_per_second": tokens / wall, "cpu_seconds": cpu}
    return {**answer, "peak_bytes": peak, "tile_bytes": tile}


@dataclass(frozen=True)
class Scoring:
    """Rows to score; `claimed` None claims token 0 throughout."""

    hidden: torch.Tensor
    head: torch.Tensor
    spec: SamplingSpec
    claimed: np.ndarray | None = None

    def once(self) -> Answer:
        """Score every row, tile by tile."""
        scheme, vocabulary, n = GumbelPosition(), len(self.head), len(self.hidden)
        rows = max(1, TILE_BYTES // (4 * vocabulary))
        claimed = np.zeros(n, np.int64) if self.claimed is None else self.claimed
        head_cpu = score_cpu = 0.0
        winners, largest = [], 0
        for start in range(0, n, rows):
            begin = time.process_time()
            logits = self.hidden[start : start + rows] @ self.head.T
            middle = time.process_time()
            own = claimed[start : start + rows]
            keys = scheme.row_keys(SEED, PROMPT, start, start + len(logits))
            winners.append(score_rows(logits, own, self.spec, scheme, keys).winner)
            score_cpu += time.process_time() - middle
            head_cpu += middle - begin
            largest = max(largest, logits.nbytes)
        cpu = {"head_cpu": head_cpu, "score_cpu": score_cpu}
        return {**cpu, "winners": np.concatenate(winners), "tile_bytes": largest}


def ours_scoring(work: Path, repeats: int) -> Answer:
    with np.load(work) as archive:
        arrays = dict(archive)
    spec = SamplingSpec(top_k=int(arrays["top_k"]), top_p=float(arrays["top_p"]))
    hidden, head = torch.from_numpy(arrays["hidden"]), torch.from_numpy(arrays["head"])
    scoring = Scoring(hidden, head, spec, arrays["claimed"])
    scoring.once()
    peak = peak_of(scoring.once)
    passes = [scoring.once() for _ in range(repeats)]
    if not all((p["winners"] == scoring.claimed).all() for p in passes):
        raise SystemExit("honest claims did not match")
    score_cpu, head_cpu = (statistics.median(p[name] for p in passes) for name in ("score_cpu", "head_cpu"))
    rate, tile = len(hidden) / score_cpu, passes[0]["tile_bytes"]
    answer = {"tokens": len(hidden), "tokens_per_second_per_core": rate, "head_seconds": head_cpu}
    return {**answer, "peak_bytes": peak, "tile_bytes": tile}


# The comparison.


@dataclass
class Figure:
    """One row of the table: what both reached in each round."""

    name: str
    tokens: int = 0
    target: float | None = None
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    ours_peak: int = 0
    peer_peak: int = 0
    tile: int = 0
    head_microseconds: float = 0.0  # ours, for each token; 0 where the forward pass is timed as a whole

    def add(self, ours: Answer, peer: Answer, rate: Callable[[Answer], float]) -> None:
        self.tokens = ours["tokens"]
        if peer["tokens"] != self.tokens:
            raise SystemExit(f"{self.name}: {self.tokens} tokens here, {peer['tokens']} there")
        self.ours.append(rate(ours))
        self.peer.append(rate(peer))
        self.ours_peak = max(self.ours_peak, ours["peak_bytes"] or 0)
        self.peer_peak = max(self.peer_peak, peer["peak_bytes"] or 0)
        self.tile = max(self.tile, ours["tile_bytes"])
        self.head_microseconds = 1e6 * ours.get("head_seconds", 0.0) / self.tokens

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.peer, strict=True)]

    @property
    def met(self) -> bool | None:
        return None if self.target is None else statistics.median(self.ratios) >= self.target

    def cells(self) -> list[str]:
        ratios, peaks = self.ratios, f"{self.ours_peak / 1e6:,.0f} / {self.peer_peak / 1e6:,.0f}"
        rates = [f"{statistics.median(side):,.0f}" for side in (self.ours, self.peer)]
        ratio = f"{statistics.median(ratios):.1f}x ({min(ratios):.1f}-{max(ratios):.1f})"
        goal = "-" if self.target is None else f">= {self.target:g}x: {'met' if self.met else 'NOT MET'}"
        return [self.name, f"{self.tokens:,}", *rates, ratio, goal, peaks]


def ask(command: list[str | Path], threads: int) -> Answer:
    """Run one contestant; its last line is its answer. What we ask of MKL we ask for ourselves only."""
    environment = {name: value for name, value in os.environ.items() if name not in MKL_SETTINGS}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def end_to_end(log: str, rounds: int, threads: int) -> list[Figure]:
    name = log.removeprefix("vllm-cpu-").removesuffix(".jsonl.gz")
    where = [TRACES / log, "--threads", str(threads)]
    wall = Figure(f"end to end, {name}, wall", target=END_TO_END_TARGET)
    cpu = Figure(f"end to end, {name}, CPU")
    for _ in range(rounds):
        ours = ask([sys.executable, __file__, "--ours-end-to-end", *where], threads)
        peer = ask([sys.executable, HERE / "transformers_baseline.py", *where, "--repeats", "1"], threads)
        wall.add(ours, peer, lambda answer: answer["tokens_per_second"])
        cpu.add(ours, peer, lambda answer: answer["tokens"] / answer["cpu_seconds"])
    return [wall, cpu]


def write_work(path: Path, vocabulary: int, rows: int, spec: SamplingSpec) -> None:
    """A work file for both sides whose claims are the tokens that our noise picks."""
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, WIDTH, generator=rng)
    head = torch.randn(vocabulary, WIDTH, generator=rng) * (3 / WIDTH**0.5)
    claimed = Scoring(hidden, head, spec).once()["winners"]
    arrays = {"hidden": hidden.numpy(), "head": head.numpy(), "claimed": claimed}
    np.savez(path, **arrays, seed=SEED, temperature=1.0, top_k=spec.top_k, top_p=spec.top_p, threads=1)


def scoring(vocabulary: int, rows: int, rounds: int, repeats: int, peer: Path) -> list[Figure]:
    names = ("no filter", "no filter, peer's best use", "top-k 50, top-p 0.95")
    plain, kind, cut = (Figure(f"scoring, V={vocabulary:,}, {n}", target=SCORING_TARGET) for n in names)
    count = ["--repeats", str(repeats)]
    with tempfile.TemporaryDirectory() as folder:
        open_work, cut_work = Path(folder, "open.npz"), Path(folder, "cut.npz")
        write_work(open_work, vocabulary, rows, SamplingSpec())
        write_work(cut_work, vocabulary, rows, SamplingSpec(top_k=50, top_p=0.95))
        theirs = [peer, HERE / "peer_token_difr.py"]
        for _ in range(rounds):
            for work, versus in ((open_work, [(plain, []), (kind, ["--kind"])]), (cut_work, [(cut, [])])):
                ours = ask([sys.executable, __file__, "--ours-scoring", work, *count], 1)
                for row, options in versus:
                    answer = ask([*theirs, work, *count, *options], 1)
                    row.add(ours, answer, lambda answer: answer["tokens_per_second_per_core"])
    return [plain, kind, cut]


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text() if info.exists() else "")
    brand, vectors = found[1] if found else platform.processor(), torch.backends.cpu.get_cpu_capability()
    name = f"{brand} ({vectors}), {os.cpu_count()} cores, {platform.system()}"
    versions = {package: version(package) for package in ("torch", "numpy", "numba", "transformers")}
    return {"machine": name, "load": list(os.getloadavg()), **versions}


def report(figures: list[Figure], start: dict[str, Any], options: argparse.Namespace) -> None:
    table = Table("measurement", title="tokens a second, ours beside the alternative")
    for column in ("tokens", "ours", "peer", "ratio (range)", "target", "peak MB, ours / peer"):
        table.add_column(column, justify="right")
    for figure in figures:
        table.add_row(*figure.cells())
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    end = os.getloadavg()
    tile = max(figure.tile for figure in figures)
    load = f"load {start['load'][0]:.1f} before, {end[0]:.1f} after"
    console.print(f"{start['machine']}; torch {start['torch']}; {load}")
    console.print(f"{options.rounds} rounds; end to end with {options.threads} thread(s), scoring per core")
    heads = {f.name.split(", ")[1]: f"{f.head_microseconds:.0f}" for f in figures if f.head_microseconds}
    console.print(f"head product, not in the figures, CPU microseconds a token: {heads}")
    console.print(f"largest tile of logits ours held: {tile:,} bytes")
    if options.json:
        rows = [{**asdict(f), "ratios": f.ratios, "met": f.met} for f in figures]
        answer = {**start, "load_after": list(end), "rounds": options.rounds, "threads": options.threads}
        options.json.write_text(json.dumps({**answer, "largest_tile_bytes": tile, "figures": rows}, indent=1))


def main() -> None:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    parser.add_argument("--peer", type=Path, help="Python that has token-difr")
    parser.add_argument("--json", type=Path, help="store the numbers there")
    parser.add_argument("--threads", type=int, default=1, help="of both, end to end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="passes in a round; scoring's median counts")
    for worker in ("--ours-end-to-end", "--ours-scoring"):
        parser.add_argument(worker, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours_end_to_end or options.ours_scoring:
        torch.set_num_threads(options.threads)
        log, work = options.ours_end_to_end, options.ours_scoring
        print(json.dumps(ours_end_to_end(log) if log else ours_scoring(work, options.repeats)))
        return
    if options.peer is None:
        parser.error("--peer is needed: `make bench` installs one")
    torch.set_num_threads(1)
    start = machine()
    figures = [f for log in LOGS for f in end_to_end(log, options.rounds, options.threads)]
    for vocabulary, rows in SHAPES:
        figures += scoring(vocabulary, rows, options.rounds, options.repeats, options.peer)
    report(figures, start, options)


if __name__ == "__main__":
    main()
