"""transformers' side of `core.py`, in a process that never sees our settings of the libraries it shares with us.

Prints one JSON object, as our own workers do.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import transformers_baseline as baseline
from resident_memory import peak_of
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument(
        "--warm-up", type=int, required=True, help="sequences scored before anything is measured"
    )
    parser.add_argument("--best", action="store_true", help="sorted by length, logits only where needed")
    parser.add_argument("--no-peak", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    sequences = [
        baseline.Sequence(prompt + output, len(prompt), seed)
        for seed, (prompt, output) in enumerate(json.loads(options.work.read_text()))
    ]

    def run() -> baseline.Scores:
        return baseline.audit(model, sequences, lean=options.best, by_length=options.best)[0]

    baseline.audit(model, sequences[: options.warm_up], lean=options.best)
    peak = None if options.no_peak else peak_of(run)
    start = time.perf_counter()
    scores = run()
    seconds = time.perf_counter() - start
    tokens, matched = len(scores.match), int(scores.match.sum())
    rate = tokens / seconds
    print(json.dumps({"tokens": tokens, "matched": matched, "tokens_per_second": rate, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
