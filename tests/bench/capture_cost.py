"""What recording costs our own core and transformers that serve the demo model; part of `make capture-cost`.

A round serves the same requests in each way, in another order every time, after one round that is not counted; a
ratio is of one round and of processor time. The core decodes 32 requests at once, transformers 8 one after another.

    python -m tests.bench.capture_cost [--rounds 12]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from auditor.capture import recorded_generate
from auditor.fingerprints.activation_difr import FingerprintKind
from auditor.generation import Provider, generate
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import HONEST
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer

TOKENS = 64
SEED = 2026


def interval(values):
    """Median with the 95 % interval of 2,000 bootstraps by round."""
    generator = np.random.default_rng(0)
    draws = np.median(generator.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{np.median(values):+.1%} ({low:+.1%} to {high:+.1%})"


def paired(ways, rounds):
    """Processor seconds of each way in each round: name -> [rounds]."""
    found = {name: [] for name in ways}
    for number in range(rounds + 1):
        turn = number % len(ways)
        for name in (*list(ways)[turn:], *list(ways)[:turn]):
            started = time.process_time()
            ways[name]()
            found[name].append(time.process_time() - started)
    return {name: np.array(seconds[1:]) for name, seconds in found.items()}


def core_ways():
    """Our own engine: without fingerprints, and with."""
    provider = Provider.load(TARGET, batch_size=32)
    conversations = demo_conversations(32, SEED)
    spec = SamplingSpec(max_tokens=TOKENS, ignore_eos=True)

    def serve(kind):
        return list(
            generate(provider, conversations, deviation=HONEST, seed=SEED, sampling=spec, fingerprints=kind)
        )

    return {"off": lambda: serve(None), "fingerprints": lambda: serve(FingerprintKind("int8", 16))}


def transformers_ways(scratch):
    """transformers: `generate`, recorded, and recorded with fingerprints."""
    model = transformers.AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.bfloat16)
    tokenizer = Tokenizer.load(TARGET)
    prompts = [torch.tensor([tokenizer.encode_chat(c)]) for c in demo_conversations(8, SEED)]
    options = {"do_sample": True, "top_k": 0, "min_new_tokens": TOKENS, "max_new_tokens": TOKENS}

    def plain():
        for number, prompt in enumerate(prompts):
            torch.manual_seed(number)
            model.generate(prompt, **options)

    def recorded(kind):
        log = scratch / f"{kind}.jsonl"
        for number, prompt in enumerate(prompts):
            recorded_generate(model, prompt, seed=number, log=log, fingerprints=kind, **options)

    return {
        "off": plain,
        "tokens": lambda: recorded(None),
        "tokens, fingerprints": lambda: recorded("int8:16"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        for engine, ways in (("core", core_ways()), ("transformers", transformers_ways(Path(scratch)))):
            found = paired(ways, options.rounds)
            print(json.dumps({engine: {name: row.round(3).tolist() for name, row in found.items()}}))
            for name in list(ways)[1:]:
                print(
                    f"{engine}, {name}: {interval(found[name] / found['off'] - 1.0)}, {options.rounds} rounds"
                )


if __name__ == "__main__":
    main()
