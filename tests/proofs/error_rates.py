"""Measure the verdict's two error rates with real generations: `make proof`, or

    python -m tests.proofs.error_rates --out out/error_rates.jsonl --jobs 2

Each unit calibrates anew on honest traffic, audits fresh honest traffic of the same recipe, and audits every
required deviation once (units 0 to 99). Nothing is shared between units: prompts and seeds are disjoint by
construction, and none of them was used to choose the statistic. Units already in the file are not run
again. The summary gives counts with 95 % Clopper-Pearson intervals, and how many tokens a conviction took.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

RECIPES = (("bfloat16", 128), ("float16", 128), ("bfloat16-narrow", 128))
UNITS_TOGETHER = 5
ALPHA = 0.01
AUDIT_TOKENS = 2000
CALIBRATION_TOKENS = 4000
DISHONEST_UNITS = 100


def _traffic(provider, deviation, other, *, seed, tokens):
    """Fresh traces for each unit of a batch of units, cut to a token count at a request's end."""
    from auditor.generation import generate
    from auditor.reference.demo.prompts import demo_conversations

    each = tokens // 90 + 1
    conversations = demo_conversations(each * UNITS_TOGETHER, seed)
    traces = list(generate(provider, conversations, deviation=deviation, seed=seed, other_model=other))
    for start in range(0, len(traces), each):
        total, kept = 0, []
        for trace in traces[start : start + each]:
            total += len(trace.output_token_ids)
            if total <= tokens:
                kept.append(trace)
        yield kept


def run_batch(number):
    """Units number * UNITS_TOGETHER onwards: generated together (a quicker decode), judged each by itself."""
    from auditor.calibration import calibrate
    from auditor.must_detect import MUST_DETECT
    from auditor.reference.demo.prompts import DRAFT, TARGET
    from auditor.reference.deviations import HONEST, deviation
    from auditor.reference.model import Model
    from auditor.replay import Reference
    from tests.study.pools import provider_of

    provider = provider_of(RECIPES[number % len(RECIPES)])
    reference = Reference.load(TARGET)
    draft = Model.load(DRAFT, dtype=provider.model.dtype, wide_matmul=provider.dtype != "float32")
    first = number * UNITS_TOGETHER
    base = 1_000_000 + 1_000 * number
    calibration = _traffic(provider, HONEST, None, seed=base, tokens=CALIBRATION_TOKENS)
    profiles = [calibrate(traces, reference, shadow_tokens=0) for traces in calibration]
    rows = [
        {"unit": first + i, "recipe": provider.recipe, "scale": p.noise_scale[0], "audits": {}}
        for i, p in enumerate(profiles)
    ]
    causes = ["honest", *(MUST_DETECT if first < DISHONEST_UNITS else ())]
    for offset, cause in enumerate(causes, 1):
        logs = _traffic(provider, deviation(cause), draft, seed=base + offset, tokens=AUDIT_TOKENS)
        for row, profile, traces in zip(rows, profiles, logs, strict=True):
            row["audits"][cause] = _audit(traces, profile, reference)
    return rows


def _audit(traces, profile, reference):
    import numpy as np

    from auditor.gathering import evidence_curve
    from auditor.replay import replay
    from auditor.verdict import judge

    scored = list(replay(traces, reference))
    verdict = judge(scored, profile, alpha=ALPHA)
    tokens = np.cumsum([s.counts.tokens for s in scored]).tolist()
    curve = evidence_curve(scored, profile).tolist()
    needed = next((n for n, log_e in zip(tokens, curve, strict=True) if log_e >= -math.log(ALPHA)), None)
    return {
        "tokens": tokens[-1],
        "log_e": verdict.log_e,
        "highest_log_e": max(curve),
        "inconsistent": verdict.outcome == "inconsistent",
        "needed": needed,
        "match": sum(s.scores.matched for s in scored) / tokens[-1],
    }


def _interval(hits, total):
    from scipy.stats import binomtest

    low, high = binomtest(hits, total).proportion_ci(0.95)
    return f"{hits}/{total} = {hits / total:.3f} (95 % {low:.3f} to {high:.3f})"


def summarise(rows):
    import numpy as np

    print(
        f"{len(rows)} units; alpha {ALPHA}; calibration {CALIBRATION_TOKENS}, audit {AUDIT_TOKENS} tokens each"
    )
    for recipe in sorted({r["recipe"] for r in rows}):
        own = [r["audits"]["honest"] for r in rows if r["recipe"] == recipe]
        largest = max(a["log_e"] for a in own)
        convicted = _interval(sum(a["inconsistent"] for a in own), len(own))
        peeked = sum(a["highest_log_e"] >= -math.log(ALPHA) for a in own)
        print(
            f"honest {recipe}: inconsistent {convicted}; largest log e {largest:.2f}; "
            f"convicted at any request on the way: {peeked}"
        )
    for cause in rows[0]["audits"]:
        own = [r["audits"][cause] for r in rows if cause in r["audits"]]
        needed = sorted(a["needed"] if a["needed"] is not None else math.inf for a in own)
        at = {q: needed[min(len(needed) - 1, math.ceil(q * len(needed)) - 1)] for q in (0.5, 0.95)}
        match = float(np.mean([a["match"] for a in own]))
        convicted = _interval(sum(a["inconsistent"] for a in own), len(own))
        late = sum(n > AUDIT_TOKENS for n in needed)
        print(
            f"{cause:20} match {match:.4f}; inconsistent {convicted}; tokens to convict: median {at[0.5]:g}, "
            f"95th percentile {at[0.95]:g}; not within {AUDIT_TOKENS}: {late}"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/error_rates.jsonl"))
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {r["unit"] for r in rows}
    todo = [n for n in range(options.units // UNITS_TOGETHER) if n * UNITS_TOGETHER not in done]
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.jobs) as pool, options.out.open("a") as stream:
        for batch in pool.imap_unordered(run_batch, todo):
            rows += batch
            stream.writelines(json.dumps(row) + "\n" for row in batch)
            stream.flush()
            print(f"{len(rows)}/{options.units}", file=sys.stderr)
    rows.sort(key=lambda r: r["unit"])
    summarise(rows)
    honest = [r["audits"]["honest"]["inconsistent"] for r in rows]
    causes = [c for c in rows[0]["audits"] if c != "honest"]
    caught = {c: [r["audits"][c]["inconsistent"] for r in rows if c in r["audits"]] for c in causes}
    ok = sum(honest) <= 0.03 * len(honest) and all(sum(hits) >= 0.95 * len(hits) for hits in caught.values())
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
