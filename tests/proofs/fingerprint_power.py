"""How many tokens and serialised bytes of a fingerprint tell a deviation from honest rounding, beside TOPLOC.

By request: each score is the mean over the first T output tokens of one request. The threshold is the largest
score of the calibration requests (120: expected false-alarm rate 1/121), the check of it 60 other honest
requests, the power the share of 60 requests, of seeds used for nothing else, that exceed it. Honest providers
decode in bfloat16, batched; the reference prefills in float32. Deviations are teacher-forced on honest text,
as calibration does it. TOPLOC's score is its mean error over points, an exponent mismatch counted as 128 steps
of the mantissa.

    python tests/proofs/fingerprint_power.py --out out/fingerprint_power.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from auditor.fingerprints.activation_difr import FingerprintKind, fingerprint, residuals
from auditor.fingerprints.toploc import chunks, make_proofs, verify_proofs
from auditor.fingerprints.wire import row_bytes
from auditor.generation import DTYPES, Provider, derived_projection_seed, derived_seed
from auditor.reference.batch import Span
from auditor.reference.decode import Ask, generate
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import DEVIATIONS, Prompt
from auditor.reference.loading import load_model
from auditor.reference.noise import noise_scheme
from auditor.reference.sampling import SamplingSpec

CAUSES = (
    *("weights/int4", "weights/fp8", "weights/int8", "kv/fp8", "kv/int4"),
    *("depth/skip-layer", "prompt/system"),
)
TOKENS = (1, 2, 4, 8, 16, 32)
KINDS = [
    *(FingerprintKind("int8", 16), FingerprintKind("int8", 4), FingerprintKind("int4", 16)),
    *(FingerprintKind("int4", 4), FingerprintKind("int4", 16, 32)),
]
TOPLOC = [(1, 8), (32, 128)]  # tokens in a proof, points


class Traffic:
    """Requests of one master seed: prompts, outputs, the provider's decode states, the reference's states."""

    def __init__(self, provider, reference, requests, seed, temperature=1.0):
        self.seed = seed
        conversations = demo_conversations(requests, seed)
        self.prompts = [
            Prompt(tuple(provider.tokenizer.encode_chat(c)), tuple(c), provider.tokenizer)
            for c in conversations
        ]
        spec = SamplingSpec(max_tokens=max(TOKENS), ignore_eos=True, temperature=temperature)
        asks = [
            Ask(
                p.token_ids,
                len(p.token_ids),
                spec,
                derived_seed(seed, i),
                noise_scheme("gumbel-pos-v1"),
                max(TOKENS),
                frozenset(),
            )
            for i, p in enumerate(self.prompts)
        ]
        self.states = []
        self.outputs = list(generate(provider.model, asks, batch_size=32, on_hidden=self.states.append))
        self.truth = self.forced(reference, [p.token_ids for p in self.prompts])

    def forced(self, model, prompts):
        spans = [
            Span(torch.tensor([*p, *o[:-1]]), wanted=len(p) - 1)
            for p, o in zip(prompts, self.outputs, strict=True)
        ]
        hidden = [h for start in range(0, len(spans), 20) for h in model.forward(spans[start : start + 20])]
        return list(torch.stack(hidden).view(len(spans), max(TOKENS), -1))


def ours(kind, traffic, states):
    """Mean relative distance of the first T tokens, [requests, T's]; a window is one score at its end."""
    rows = []
    for i, (own, truth) in enumerate(zip(states, traffic.truth, strict=True)):
        seed = derived_projection_seed(traffic.seed, i)
        given = fingerprint(own, kind, projection_seed=seed, binding=bytes(8))
        plain = residuals(given, truth).plain
        rows.append([plain[: max(1, t // kind.window)].mean() for t in TOKENS if t % kind.window == 0])
    return np.array(rows)


def toploc(window, points, traffic, states):
    rows = []
    for own, truth in zip(states, traffic.truth, strict=True):
        proofs = make_proofs(list(chunks(own, 0, window)), points)
        results = verify_proofs(list(chunks(truth.bfloat16(), 0, window)), proofs)
        errors = [
            (128 * r.exponent_mismatches + (points - r.exponent_mismatches) * min(r.mantissa_error_mean, 128))
            / points
            for r in results
        ]
        rows.append([np.mean(errors[: t // window]) for t in TOKENS if t % window == 0])
    return np.array(rows)


def schemes():
    for kind in KINDS:
        yield kind.name, kind.window, row_bytes(kind), (lambda t, s, k=kind: ours(k, t, s))
    for window, points in TOPLOC:
        name = f"toploc k{points} per {window}"
        yield name, window, 2 + 2 * points, (lambda t, s, w=window, p=points: toploc(w, p, t, s))


def auc(honest, other):
    greater = (other[:, None] > honest[None, :]).mean() + 0.5 * (other[:, None] == honest[None, :]).mean()
    return float(greater)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/fingerprint_power.json"))
    parser.add_argument("--calibration", type=int, default=120)
    parser.add_argument("--requests", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    provider = Provider.load(TARGET, batch_size=32)
    reference = load_model(TARGET)
    calibration = Traffic(provider, reference, options.calibration, 101)
    honest = Traffic(provider, reference, options.requests, 202)
    other_seed = Traffic(provider, reference, options.requests, 303)
    hot = Traffic(provider, reference, options.requests, 404, temperature=1.1)
    half = replace(provider, model=load_model(TARGET, dtype=DTYPES["float16"], wide_matmul=True)).model
    deviant = {}
    for cause in CAUSES:
        change = DEVIATIONS[cause]
        prompts = [tuple(change.prompt(p)) for p in other_seed.prompts]
        deviant[cause] = other_seed.forced(change.model(provider.model, None), prompts)
    own = [p.token_ids for p in honest.prompts]
    found = {}
    for name, window, size, score in schemes():
        base, checked = score(calibration, calibration.states), score(honest, honest.states)
        bar = base.max(axis=0)
        counts = [t for t in TOKENS if t % window == 0]
        row = {
            "bytes_a_row": size,
            "false_alarms": (checked > bar).sum(axis=0).tolist(),
            "false_alarms_prefill": int(
                (score(honest, honest.forced(provider.model, own))[:, -1] > bar[-1]).sum()
            ),
            "false_alarms_float16": int((score(honest, honest.forced(half, own))[:, -1] > bar[-1]).sum()),
            "auc_other_seed": auc(checked[:, -1], score(other_seed, other_seed.states)[:, -1]),
            "auc_temperature": auc(checked[:, -1], score(hot, hot.states)[:, -1]),
            "power": {},
            "needed": {},
        }
        for cause, states in deviant.items():
            power = (score(other_seed, states) > bar).mean(axis=0)
            row["power"][cause] = power.tolist()
            enough = [t for t, p in zip(counts, power, strict=True) if p >= 0.99]
            row["needed"][cause] = [enough[0], enough[0] // window * size] if enough else None
        found[name] = row
        print(name, json.dumps(row), file=sys.stderr, flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps(
            {
                "requests": options.requests,
                "calibration": options.calibration,
                "tokens": TOKENS,
                "schemes": found,
            },
            indent=1,
        )
    )
    print(f"| scheme | {' | '.join(CAUSES)} |")
    for name, row in found.items():
        cells = [f"{v[0]} / {v[1]}" if v else "-" for v in row["needed"].values()]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"{time.process_time() - started:.0f} s of processor time", file=sys.stderr)


if __name__ == "__main__":
    main()
