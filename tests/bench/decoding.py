"""Plain decoding held against what bounds it, and against vLLM on the same processor: parts of `speculation.py`.

Bandwidth: a random model of Qwen2-0.5B's shape at batch 1, whose guesses nobody would take. Every matrix is read once a
token, so memory is the limit: bytes of all matrices over seconds of a step, beside the quickest sum over a gigabyte, both
the least processor time of a round, on one thread. Weights are float32 in the reference; single rows read them in
bfloat16 where, as here, that is what the checkpoint holds, so both shares are shown.

vLLM: the demo model at batch 1 in float32, temperature 1, in turns with ours, round by round; its own settings, compiled.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from core import write_qwen

from auditor.reference.batch import extend
from auditor.reference.model import Model
from auditor.reference.slots import Sequence
from tests.engines.serve_speed import SPECULATION, Server, absent, built

Rows = list[dict[str, object]]
CONTEXT, STEPS = 120, 8
SLOW_REQUESTS = 2


def least(work, repetitions: int) -> float:
    """Processor seconds of the quickest run."""
    found = []
    for _ in range(repetitions):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def bandwidth_part(rounds: int) -> Rows:
    """Gigabytes a second of decoding, and of reading."""
    with tempfile.TemporaryDirectory() as folder:
        write_qwen(Path(folder))
        model = Model.load(folder)
    cache, sequence = model.new_cache(), Sequence()
    tokens = torch.arange(CONTEXT) % model.config.vocab_size
    cache.reserve(sequence, CONTEXT + 1)
    model.forward([extend(cache, sequence, tokens)], cache)
    sequence.length = CONTEXT
    read, matrices = torch.ones(1 << 28), [t for t in model.parameters.values() if t.dim() == 2]

    def step() -> None:
        span = extend(cache, sequence, tokens[:1])
        model.logits(model.forward([span], cache, exact=False), exact=False)

    step()
    half = 0.5 if all(torch.equal(matrix.bfloat16().float(), matrix) for matrix in matrices) else 1.0
    rows = []
    for number in range(rounds):
        limit = read.nbytes / least(read.sum, STEPS)
        seconds = least(step, STEPS)
        held = sum(matrix.nbytes for matrix in matrices) / seconds / limit
        rows.append({"round": number, "limit": limit, "seconds": seconds, "share": held, "read": held * half})
    return rows


def vllm_part(folder: Path, asks, ours, rounds: int, *, build: bool) -> Rows:
    """Tokens a processor second of vLLM and of ours.

    Args:
        folder: of the model. asks: of one temperature.
        ours: tokens a processor second by name.
        build: make vLLM's environment if it is not there.
    """
    refused = built() if build else absent()
    if refused:
        return [{"who": "vLLM", "refused": refused}]
    rows: Rows = []
    job = {
        "model": str(folder),
        "prompts": [list(ask.prompt) for ask in asks],
        "temperature": asks[0].spec.temperature,
        "max_tokens": asks[0].max_tokens,
        "ends": sorted(asks[0].stop_ids),
        "batch": 1,
    }
    servers = {}
    for kind in SPECULATION:
        try:
            servers[kind] = Server(job, kind)
        except RuntimeError as error:
            rows.append({"who": f"vLLM, {kind}", "refused": str(error)})
    for number in range(-1, rounds):  # the first is not counted
        for kind, server in servers.items():
            if kind != "plain" and number != 0:
                continue
            # Drafts are judged by an interpreted Triton kernel on a CPU: half a minute for these few.
            count, seconds, clock = server.serve(len(asks) if kind == "plain" else SLOW_REQUESTS)
            found = {"rate": count / seconds, "clock": count / clock, "tokens": count}
            rows.append({"who": f"vLLM, {kind}", "round": number} | found)
            print(rows[-1], file=sys.stderr, flush=True)
        rows += [{"who": f"ours, {name}", "round": number, "rate": rate} for name, rate in ours().items()]
    for server in servers.values():
        server.close()
    return [row for row in rows if row.get("round", 0) >= 0]


def bandwidth_table(rows: Rows) -> list[str]:
    shares = sorted(row["share"] for row in rows)
    median = sorted(rows, key=lambda row: row["share"])[len(rows) // 2]
    text = (
        f"{1 / median['seconds']:.1f} tokens/s where memory is read at {median['limit'] / 1e9:.1f} GB/s: "
        f"{statistics.median(shares):.0%} of the limit for float32 weights ({shares[0]:.0%} to {shares[-1]:.0%} in "
        f"{len(rows)} rounds), {statistics.median(row['read'] for row in rows):.0%} of the limit for the bytes that are read."
    )
    return [text]


def vllm_table(rows: Rows) -> list[str]:
    lines = ["| who | tokens a processor second | to vLLM plain (range) |", "|---|---|---|"]
    like = {row["round"]: row["rate"] for row in rows if row["who"] == "vLLM, plain"}
    for who in dict.fromkeys(row["who"] for row in rows):
        own = [row for row in rows if row["who"] == who]
        if "refused" in own[0]:
            lines.append(f"| {who} | not run: {own[0]['refused']} |  |")
            continue
        ratios = [row["rate"] / like[row["round"]] for row in own if row["round"] in like]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        lines.append(f"| {who} | {statistics.median(row['rate'] for row in own):,.0f} | {shown} |")
    return lines
