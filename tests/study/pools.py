"""The study's pools: what honest and dishonest providers of the demo model return, generated and scored once.

A pool is one provider (recipe, deviation) on one kind of traffic. Two files each under `out/study/pools`: the
traces, and one line for each request with what scoring left of it. Pools that are there are not made again.
Master seeds and prompts of the uses are disjoint; every figure that the study reports comes from pools whose use
is `report`, judged by profiles from `calibration`. `tests/proofs/planning.py` has two uses of its own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

POOLS = Path("out/study/pools")
SERVED = ("bfloat16", 128)
RECIPES = (SERVED, ("bfloat16-narrow", 128), ("float16", 128), ("float32", 128))
"""(dtype, batch size); `-narrow` multiplies in bfloat16, the others in float32 with one rounding."""

USES = {
    "calibration": 10_000_000,
    "development": 20_000_000,
    "report": 30_000_000,
    "planned": 40_000_000,
    "audited": 50_000_000,
}
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 60}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
}
TRAFFIC: dict[str, dict[str, Any]] = {
    "chat": {},
    "documentation": {},
    "chat-t06": {"temperature": 0.6},
    "documentation-t06": {"temperature": 0.6},
    "greedy": {"temperature": 0.0},
    "nucleus": {"top_p": 0.9},
    "penalised": {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.2},
    "json": {"grammar": SCHEMA},
}
"""Kinds of traffic: what their sampling parameters change. All have T 1 and 200 tokens at most otherwise."""


@dataclass(frozen=True)
class Pool:
    """Which provider, on which traffic, for which use, and how many requests."""

    use: str
    traffic: str = "chat"
    deviation: str = "honest"
    recipe: tuple[str, int] = SERVED
    requests: int = 300

    @property
    def name(self) -> str:
        parts = (
            self.use,
            self.traffic,
            self.deviation.replace("/", "-"),
            f"{self.recipe[0]}-b{self.recipe[1]}",
        )
        return "_".join(parts)

    @property
    def seed(self) -> int:
        """Pools of one use and traffic share prompts and seeds, so that deviations meet the same requests."""
        return USES[self.use] + 1_000 * list(TRAFFIC).index(self.traffic)


@dataclass
class Item:
    """One request of a pool, scored.

    Attributes:
        counts: `RequestCounts`. misses: (position, margin, slack). used: `TokenScores` without its misses.
        trace: line number in the pool's file of traces.
    """

    counts: Any
    misses: list[list[float]]
    tokens: int
    outside: int
    filtered: int
    findings: int
    mode: str
    trace: int


def traffic_of(deviation: str) -> str:
    """Where a deviation shows: filters and penalties must be on for their being ignored to matter."""
    return {"filter/top-p-ignored": "nucleus", "penalty/ignored": "penalised"}.get(deviation, "chat")


def every_pool() -> list[Pool]:
    """All pools, the longest first."""
    from auditor.reference.deviations import DEVIATIONS

    pools = [Pool("report", recipe=recipe, requests=480) for recipe in RECIPES]
    pools += [Pool("calibration", recipe=recipe, requests=480) for recipe in RECIPES]
    pools += [Pool("report", traffic, requests=256) for traffic in TRAFFIC if traffic != "chat"]
    pools += [Pool("calibration", traffic, requests=128) for traffic in ("nucleus", "penalised")]
    for use, requests in (("report", 320), ("development", 192)):
        pools += [Pool(use, traffic_of(name), name, requests=requests) for name in DEVIATIONS]
    return pools


def conversations(pool: Pool) -> list[Any]:
    """Prompts of a pool."""
    from auditor.reference.demo.prompts import demo_conversations

    if not pool.traffic.startswith("documentation"):
        return demo_conversations(pool.requests, pool.seed)
    found = []
    for conversation in demo_conversations(12 * pool.requests, pool.seed):
        question = conversation[-1]["content"]
        if question.startswith(("What does ", "Explain ", "Tell me about ")) and len(found) < pool.requests:
            found.append(conversation)
    return found


def sampling(pool: Pool) -> Any:
    """Declared parameters of a pool's requests."""
    from importlib.metadata import version

    from auditor.reference.grammar import grammar_digest
    from auditor.reference.sampling import SamplingSpec

    options = dict(TRAFFIC[pool.traffic])
    if schema := options.pop("grammar", None):
        grammar = {"kind": "json_schema", "schema": schema, "any_whitespace": False}
        grammar |= {"library": "xgrammar", "version": version("xgrammar")}
        options["grammar"] = {**grammar, "digest": grammar_digest(grammar)}
    return SamplingSpec(max_tokens=200, **options)


def provider_of(recipe: tuple[str, int]) -> Any:
    """An honest provider of the demo model by one of `RECIPES`."""
    from auditor.generation import Provider
    from auditor.reference.demo.prompts import TARGET
    from auditor.reference.model import Model

    dtype, _, narrow = recipe[0].partition("-")
    provider = Provider.load(TARGET, dtype=dtype, batch_size=recipe[1])
    if not narrow:
        return provider
    own = Model.load(TARGET, dtype=provider.model.dtype)
    return replace(provider, model=own, recipe=provider.recipe.replace("-wide", ""))


def make(pool: Pool) -> str:
    """Generate and score one pool; returns a line for the screen."""
    import torch

    torch.set_num_threads(1)
    from auditor.generation import generate
    from auditor.reference.demo.prompts import DRAFT, TARGET
    from auditor.reference.deviations import deviation
    from auditor.reference.model import Model
    from auditor.replay import Reference, replay
    from auditor.trace_format import trace_to_line

    provider = provider_of(pool.recipe)
    draft = Model.load(DRAFT, dtype=provider.model.dtype, wide_matmul=provider.dtype != "float32")
    cause, asked = deviation(pool.deviation), conversations(pool)
    traces = list(
        generate(provider, asked, deviation=cause, seed=pool.seed, sampling=sampling(pool), other_model=draft)
    )
    POOLS.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scored in enumerate(replay(traces, Reference.load(TARGET))):
        scores, counts = scored.scores, scored.counts
        matched = sorted(counts.matched.items())
        missed = [[d, m, n] for (d, m), n in sorted(counts.missed.items())]
        entry = {
            "counts": [counts.tokens, matched, missed],
            "misses": scores.misses,
            "tokens": scores.evidence,
        }
        entry |= {"outside": scores.outside, "filtered": scores.filtered, "findings": len(scored.findings)}
        lines.append(json.dumps({**entry, "mode": scored.mode, "trace": number}))
    with gzip.open(POOLS / f"{pool.name}.traces.jsonl.gz", "wb") as stream:
        stream.writelines(trace_to_line(trace) for trace in traces)
    (POOLS / f"{pool.name}.jsonl").write_text("\n".join(lines) + "\n")
    return f"{pool.name}: {len(lines)} requests"


def load(pool: Pool) -> list[Item]:
    """The scored requests of a pool.

    Raises:
        SystemExit: it was not made.
    """
    from auditor.noise_model import RequestCounts

    path = POOLS / f"{pool.name}.jsonl"
    if not path.exists():
        sys.exit(f"{path}: not made yet; run python -m tests.study.pools")
    items = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        tokens, matched, missed = entry.pop("counts")
        counts = RequestCounts(tokens, {int(d): n for d, n in matched}, {(d, m): n for d, m, n in missed})
        items.append(Item(counts=counts, **entry))
    return items


def traces_of(pool: Pool) -> list[Any]:
    """The traces of a pool, in the order of its items."""
    from auditor.trace_files import read_traces

    return list(read_traces(POOLS / f"{pool.name}.traces.jsonl.gz"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="substring of pool names")
    options = parser.parse_args()
    todo = [p for p in every_pool() if not (POOLS / f"{p.name}.jsonl").exists() and options.only in p.name]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for done, line in enumerate(pool.imap_unordered(make, todo, chunksize=1), 1):
            print(f"{done}/{len(todo)} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
