"""The paper's hardest model, from its own rates: tokens outside the filters as evidence (difr.md section 9.4).

Qwen3-30B-A3B: honest providers return a token outside top-k 50 and top-p 0.95 at a rate of 0.0011 on other
hardware than the reference's (0.0001 on the same), temperature 1.1 at 0.0040, 4-bit weights at 0.0114, an fp8
cache at 0.0040. Token-DiFR's published AUC at less than 1 % false alarms is 0.4975 for temperature 1.1 at 10,000
tokens, which is chance. Here tokens are drawn independently at those rates, as the paper's buckets are; the test
is `evidence.outside_log_e` with a calibration of 400,000 honest tokens, as many as the paper has, drawn anew for each audit.
"""

from __future__ import annotations

import math

import numpy as np

from auditor.evidence import outside_log_e
from tests.study.audits import interval

ALPHA = 0.01
CALIBRATED = 400_000
TOKENS = (1_000, 3_000, 10_000)
HONEST = {"same hardware": 0.0001, "other hardware": 0.0011}
DISHONEST = {
    "temperature 1.1": 0.0040,
    "4-bit weights": 0.0114,
    "fp8 KV cache": 0.0040,
    "fp8 weights": 0.0027,
}
AUDITS = 2_000
SEED = 7_004


def study(jobs=1):
    """Share of audits that convict, for each null, provider and size."""
    del jobs
    generator = np.random.default_rng(SEED)
    rows = []
    for hardware, honest in HONEST.items():
        for provider, rate in {"honest": honest, **DISHONEST}.items():
            for tokens in TOKENS:
                known = generator.binomial(CALIBRATED, honest, size=AUDITS)
                seen = generator.binomial(tokens, rate, size=AUDITS)
                log_e = [
                    outside_log_e(int(k), CALIBRATED, int(n), tokens)
                    for k, n in zip(known, seen, strict=True)
                ]
                hits = sum(e >= -math.log(ALPHA) for e in log_e)
                row = {"null": hardware, "provider": provider, "tokens": tokens, "convicted": hits}
                rows.append({**row, "interval": interval(hits, AUDITS)})
    return {"alpha": ALPHA, "audits": AUDITS, "calibration": CALIBRATED, "rows": rows}


def markdown(found):
    """The table of docs/study.md."""
    sizes = sorted({row["tokens"] for row in found["rows"]})
    lines = [
        f"| null | provider | {' | '.join(f'{n:,} tokens' for n in sizes)} |",
        "|---" * (2 + len(sizes)) + "|",
    ]
    for key in dict.fromkeys((row["null"], row["provider"]) for row in found["rows"]):
        own = [r for r in found["rows"] if (r["null"], r["provider"]) == key]
        shares = [f"{r['convicted'] / found['audits']:.3f}" for r in sorted(own, key=lambda r: r["tokens"])]
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(shares)} |")
    return "\n".join(lines)
