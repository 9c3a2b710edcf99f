"""Drafters measured: accepted tokens a step without the model, tokens a second with it. Writes docs/speculation.md.

    make bench-speculation      or      PYTHONPATH=. .venv/bin/python tests/bench/speculation.py [PART ...]

Replay: the demo model's own float32 generations, three workloads at three temperatures; each drafter reads each
workload in order, as at batch 1, with at most 16 guesses a step. Gains are of noise-aware ranking over counts;
intervals are 95 %, from 2,000 resamples of whole requests.

Serving: CPU seconds of one process on one thread, so that other work on the machine counts little; contestants
take turns, round by round, and a ratio is of one round. A batch of 8 holds no more requests than there are.
What bounds plain decoding, and vLLM beside it: `tests/bench/decoding.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from compare import machine
from decoding import bandwidth_part, bandwidth_table, vllm_part, vllm_table

from auditor.reference.batch import Span
from auditor.reference.decode import generate
from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
from auditor.reference.drafters import (
    CostCurve,
    ModelDrafter,
    NgramDrafter,
    RecyclingDrafter,
    SuffixDrafter,
    TraceDrafter,
)
from auditor.reference.drafters.replay import Logged, replay
from auditor.reference.engine import Engine
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.running import Ask
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer

OUT = Path("out/speculation")
DOCUMENT = Path("docs/speculation.md")
SCHEME = noise_scheme("gumbel-pos-v1")
TEMPERATURES = (0.0, 0.7, 1.0)
TOKENS = 100


def conversations(workload: str, count: int) -> list[tuple[dict[str, str], ...]]:
    """Chats with reasoning; an agent that asks a few questions again and again; questions about documentation."""
    if workload == "agent":
        few = conversations("chat", max(count // 8, 1))
        return [few[n % len(few)] for n in range(count)]
    found = demo_conversations(8 * count, 41)
    documentation = [
        c for c in found if c[-1]["content"].startswith(("What does", "Explain", "Tell me about"))
    ]
    chosen = documentation if workload == "documentation" else [c for c in found if c not in documentation]
    return chosen[:count]


WORKLOADS = ("chat", "agent", "documentation")


def drafters(noise_aware: bool, model: Model | None) -> dict[str, object]:
    found = {
        "n-gram": NgramDrafter(noise_aware=noise_aware),
        "Token Recycling": RecyclingDrafter(noise_aware=noise_aware),
        "SuffixDecoding": SuffixDrafter(noise_aware=noise_aware),
        "SuffixDecoding over Recycling": SuffixDrafter(recycling=True, noise_aware=noise_aware),
    }
    if model is not None:
        found["draft model, width 1"] = ModelDrafter(model, noise_aware=noise_aware)
        found["draft model, width 3"] = ModelDrafter(model, width=3, noise_aware=noise_aware)
    return found


def logs_of(model: Model, asks: list[Ask]) -> list[Logged]:
    outputs = list(generate(model, asks, batch_size=32))
    logs = []
    for ask, output in zip(asks, outputs, strict=True):
        text = torch.tensor([*ask.prompt, *output[:-1]])
        top = torch.topk(model.logits(model.forward([Span(text, wanted=len(ask.prompt) - 1)])), 32)
        logs.append(Logged(ask, output, top.indices.numpy(), top.values.numpy()))
    return logs


def asks_of(tokenizer: Tokenizer, workload: str, temperature: float, count: int) -> list[Ask]:
    prompts = [tuple(tokenizer.encode_chat(c)) for c in conversations(workload, count)]
    spec = SamplingSpec(temperature=temperature)
    ends = frozenset(tokenizer.eos_ids)
    return [Ask(p, len(p), spec, 1000 + n, SCHEME, TOKENS, ends) for n, p in enumerate(prompts)]


def replay_part(options: argparse.Namespace) -> list[dict[str, object]]:
    model, tokenizer = Model.load(TARGET), Tokenizer.load(TARGET)
    draft = None if options.no_models else Model.load(DRAFT)
    rows = []
    for workload in WORKLOADS:
        for temperature in TEMPERATURES:
            logs = logs_of(model, asks_of(tokenizer, workload, temperature, options.requests))
            for aware in (False, True):
                for name, drafter in drafters(aware, draft).items():
                    some = logs[: options.requests // 4] if name.startswith("draft") else logs
                    started = time.process_time()
                    tallies = replay(drafter, some, model.config.vocab_size)
                    rows.append(
                        {
                            "workload": workload,
                            "temperature": temperature,
                            "drafter": name,
                            "noise_aware": aware,
                            "steps": [t.steps for t in tallies],
                            "tokens": [t.tokens for t in tallies],
                            "nodes": sum(t.nodes for t in tallies),
                            "seconds": time.process_time() - started,
                        }
                    )
                    rate = sum(rows[-1]["tokens"]) / sum(rows[-1]["steps"])
                    print(workload, temperature, name, aware, f"{rate:.2f}", file=sys.stderr, flush=True)
    return rows


def gain(aware: dict[str, object], counted: dict[str, object]) -> tuple[float, float, float]:
    """Tokens a step, noise-aware to counted, with a 95 % interval over requests."""
    generator = np.random.default_rng(1)
    a, c = (np.array([row["tokens"], row["steps"]], float) for row in (aware, counted))
    picks = generator.integers(0, a.shape[1], (2000, a.shape[1]))

    def ratio(which: np.ndarray) -> np.ndarray:
        return (a[0][which].sum(-1) / a[1][which].sum(-1)) / (c[0][which].sum(-1) / c[1][which].sum(-1))

    low, high = np.quantile(ratio(picks), [0.025, 0.975])
    return float(ratio(np.arange(a.shape[1]))), float(low), float(high)


# Serving.


def ours(
    model: Model, asks: list[Ask], batch: int, drafter: object, cost: CostCurve | None
) -> dict[str, object]:
    """Outputs and seconds; `decoding`: of these, the seconds of steps in which no request got its first token."""
    nodes = {"nodes": TOKENS} if isinstance(drafter, TraceDrafter) else {}
    engine = Engine(model, drafter=drafter, cost=cost, batch_size=batch, **nodes)
    running = [engine.add(ask) for ask in asks]
    started, decoding = time.process_time(), 0.0
    while not all(request.finished for request in running):
        begun, before = sum(bool(request.output) for request in running), time.process_time()
        engine.step()
        if sum(bool(request.output) for request in running) == begun:
            decoding += time.process_time() - before
    seconds = time.process_time() - started
    outputs = [tuple(request.output) for request in running]
    return {
        "seconds": seconds,
        "decoding": decoding,
        "outputs": outputs,
        "steps": engine.steps,
        "rows": engine.rows,
    }


def theirs(model: object, asks: list[Ask], batch: int, **more: object) -> dict[str, object]:
    """transformers' `generate`, padded on the left; its own sampling."""
    torch.manual_seed(1)
    tokens, started = 0, time.process_time()
    ends = sorted(asks[0].stop_ids)
    greedy = asks[0].spec.greedy
    sampling = (
        {"do_sample": False}
        if greedy
        else {"do_sample": True, "top_k": 0, "temperature": asks[0].spec.temperature}
    )
    for start in range(0, len(asks), batch):
        part = asks[start : start + batch]
        longest = max(len(ask.prompt) for ask in part)
        ids = torch.tensor([[0] * (longest - len(ask.prompt)) + list(ask.prompt) for ask in part])
        mask = torch.tensor([[0] * (longest - len(ask.prompt)) + [1] * len(ask.prompt) for ask in part])
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=TOKENS,
            max_length=None,
            eos_token_id=ends,
            pad_token_id=0,
            **sampling,
            **more,
        )
        for row in out[:, longest:].tolist():
            end = next((n for n, token in enumerate(row) if token in ends), len(row) - 1)
            tokens += end + 1
    return {"seconds": time.process_time() - started, "tokens": tokens}


def serving_part(options: argparse.Namespace) -> list[dict[str, object]]:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model, draft, tokenizer = Model.load(TARGET), Model.load(DRAFT), Tokenizer.load(TARGET)
    hf = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
    assistant = AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float32).eval()
    costs = {batch: CostCurve.profiled(model, batch, clock=time.process_time) for batch in (1, 8)}
    rows = []
    for temperature in options.temperatures:
        asks = asks_of(tokenizer, "chat", temperature, options.served)
        plain = ours(model, asks, 8, None, None)["outputs"]
        logged = {(ask.prompt, ask.seed): output for ask, output in zip(asks, plain, strict=True)}
        for number in range(options.rounds):
            for batch in (1, 8):
                contestants = {
                    "plain": lambda: None,
                    "n-gram": NgramDrafter,
                    "Token Recycling": RecyclingDrafter,
                    "SuffixDecoding": SuffixDrafter,
                    "SuffixDecoding over Recycling": lambda: SuffixDrafter(recycling=True),
                    "draft model, width 1": lambda: ModelDrafter(draft, clock=time.process_time),
                    "layers 3 and 4 skipped": lambda: ModelDrafter(
                        model.replace(skip_layers=frozenset({2, 3})), clock=time.process_time
                    ),
                    "trace": lambda: TraceDrafter(logged),  # noqa: B023  at once
                }
                for name, make in contestants.items():
                    got = ours(model, asks, batch, make(), costs[batch])
                    tokens = sum(map(len, got["outputs"]))
                    rows.append(
                        {"who": f"ours, {name}", "batch": batch, "temperature": temperature, "round": number}
                        | {
                            "tokens_per_second": tokens / got["seconds"],
                            "decoded_per_second": (tokens - len(asks)) / got["decoding"],
                            "steps": got["steps"],
                            "rows": got["rows"],
                        }
                        | {"tokens": tokens, "same": got["outputs"] == plain}
                    )
                other = {"plain": {}}
                if batch == 1:
                    other |= {
                        "prompt lookup": {"prompt_lookup_num_tokens": 4},
                        "assisted": {"assistant_model": assistant},
                    }
                for name, more in other.items():
                    got = theirs(hf, asks, batch, **more)
                    rows.append(
                        {
                            "who": f"transformers, {name}",
                            "batch": batch,
                            "temperature": temperature,
                            "round": number,
                        }
                        | {"tokens_per_second": got["tokens"] / got["seconds"], "tokens": got["tokens"]}
                    )
        print(json.dumps(rows[-22:]), file=sys.stderr, flush=True)
    return [{"costs": {b: [c.rows, c.seconds] for b, c in costs.items()}}, *rows]


def beside_vllm(options: argparse.Namespace) -> list[dict[str, object]]:
    model, draft, tokenizer = Model.load(TARGET), Model.load(DRAFT), Tokenizer.load(TARGET)
    asks = asks_of(tokenizer, "chat", 1.0, options.served)
    cost = CostCurve.profiled(model, 1, clock=time.process_time)
    makers = {
        "plain": lambda: None,
        "n-gram": NgramDrafter,
        "SuffixDecoding": SuffixDrafter,
        "draft model, width 1": lambda: ModelDrafter(draft, clock=time.process_time),
    }

    def rates() -> dict[str, float]:
        got = {name: ours(model, asks, 1, make(), cost) for name, make in makers.items()}
        return {name: sum(map(len, one["outputs"])) / one["seconds"] for name, one in got.items()}

    return vllm_part(TARGET, asks, rates, options.rounds, build=options.vllm)


# The document.


def replay_table(rows: list[dict[str, object]]) -> list[str]:
    lines = ["| workload | T | drafter | by count | noise-aware | gain (95 %) |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["noise_aware"]:
            continue
        key = ("workload", "temperature", "drafter")
        aware = next(r for r in rows if r["noise_aware"] and all(r[k] == row[k] for k in key))
        rates = [sum(r["tokens"]) / sum(r["steps"]) for r in (row, aware)]
        found = "" if row["temperature"] == 0 else "{:.3f} ({:.3f} to {:.3f})".format(*gain(aware, row))
        lines.append(
            f"| {row['workload']} | {row['temperature']} | {row['drafter']} | {rates[0]:.2f} | {rates[1]:.2f} | {found} |"
        )
    return lines


def serving_table(rows: list[dict[str, object]]) -> list[str]:
    lines = [
        "| T | batch | who | tokens/s | to our plain (range) | to transformers plain (range) | tokens a step | rows a step |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def rates(who: str, like: dict[str, object]) -> list[float]:
        same = ("batch", "temperature")
        return [
            r["tokens_per_second"] for r in rows if r["who"] == who and all(r[k] == like[k] for k in same)
        ]

    def ratio(row: dict[str, object], other: str) -> str:
        found = [a / b for a, b in zip(rates(row["who"], row), rates(other, row), strict=True)]
        return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"

    for row in rows:
        if row["round"]:
            continue
        cells = f"{row['temperature']} | {row['batch']} | {row['who']} | {statistics.median(rates(row['who'], row)):,.0f}"
        ratios = f"{ratio(row, 'ours, plain')} | {ratio(row, 'transformers, plain')}"
        steps = (
            f"{row['tokens'] / row['steps']:.2f} | {row['rows'] / row['steps']:.1f}"
            if "steps" in row
            else " | "
        )
        lines.append(f"| {cells} | {ratios} | {steps} |")
    return lines


def trace_table(rows: list[dict[str, object]]) -> list[str]:
    """A log as its own guess beside plain decoding: whole requests, and without the steps that read prompts."""
    lines = [
        "| T | plain, tokens/s | trace, tokens/s | ratio (range) | the same with prompts read (range) |",
        "|---|---|---|---|---|",
    ]
    alone = [row for row in rows if row["batch"] == 1]
    for temperature in dict.fromkeys(row["temperature"] for row in alone):
        plain, trace = (
            [r for r in alone if r["who"] == f"ours, {who}" and r["temperature"] == temperature]
            for who in ("plain", "trace")
        )
        cells = [
            f"{statistics.median(r['decoded_per_second'] for r in some):,.0f}" for some in (plain, trace)
        ]
        for rate in ("decoded_per_second", "tokens_per_second"):
            found = [own[rate] / other[rate] for own, other in zip(trace, plain, strict=True)]
            cells.append(f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        lines.append(f"| {temperature} | {' | '.join(cells)} |")
    return lines


PARTS = {
    "replay": "Replay",
    "serving": "Serving",
    "bandwidth": "Plain decoding and the memory's bandwidth",
    "vllm": "Beside vLLM on a CPU",
}


def write() -> None:
    text = ["# Speculative decoding", "", *__doc__.strip().splitlines()[4:], ""]
    for name, title in PARTS.items():
        path = OUT / f"{name}.json"
        text += ["", f"## {title}", ""]
        if not path.exists():
            text.append("Not run.")
            continue
        found = json.loads(path.read_text())
        text.append(
            f"{found['machine']}; torch {found['torch']}; load {found['load'][0]:.1f}; {found['requests']} requests a cell."
        )
        if found["load"][0] > 2:
            text.append("Other work shared the processor's caches, which costs whoever is quicker the more.")
        rows = found["rows"]
        if name == "bandwidth":
            text += ["", *bandwidth_table(rows)]
        elif name == "vllm":
            text += ["", *vllm_table(rows)]
        elif name == "replay":
            text += [
                "",
                "Tokens a verify step; plain decoding is 1. Draft models read a quarter of the requests.",
                "",
                *replay_table(rows),
            ]
        else:
            same = all(row["same"] for row in rows[1:] if "same" in row)
            text += [
                "",
                f"All of our outputs were the same tokens: {'yes' if same else 'NO'}.",
                "",
                *serving_table(rows[1:]),
                "",
                "Replay of a log that guesses itself, one request at a time, decoding alone (what both read first, the",
                "prompts, left out), and with the prompts:",
                "",
                *trace_table(rows[1:]),
            ]
    DOCUMENT.write_text("\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none")
    parser.add_argument("--requests", type=int, default=48, help="a workload and temperature, replay")
    parser.add_argument("--no-models", action="store_true", help="leave draft models out of the replay")
    parser.add_argument("--served", type=int, default=24)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.0], help="serving")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", action="store_true", help="build vLLM if it is not there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    parts = {
        "replay": replay_part,
        "serving": serving_part,
        "bandwidth": lambda _: bandwidth_part(options.rounds),
        "vllm": beside_vllm,
    }
    for name, part in parts.items():
        if not options.parts or name in options.parts:
            start = machine()
            requests = options.requests if name == "replay" else options.served
            found = {**start, "requests": requests, "rows": part(options)}
            (OUT / f"{name}.json").write_text(json.dumps(found))
    write()


if __name__ == "__main__":
    main()
