"""Does the planner keep its word? It plans on one pool of dishonest requests, and other ones are then audited.

`audit plan` simulates audits from what a profile's dishonest providers left behind. Here it plans on the
development pools, for sizes at which its test should convict half of the time, or eight or nine times of ten;
logs of those sizes are then drawn (whole requests, with replacement) from the report pools, whose prompts and
seeds it never saw. A few hundred requests are a small sample: which requests they happen to be moves the realised
power, and the interval, from a bootstrap over them, says by how much.

The second table tries what could close the gap, realised on the later half of the report pool: a larger pool to
plan on (the development pool and the earlier half of the report pool), and requests drawn with weights that give their
tokens the worth that others have (`choosing.py`; worth follows from slack, so from prefix and seed): that of the
calibration's honest requests, or that of the very requests that are audited.
"""

from __future__ import annotations

import math

import numpy as np

from tests.study.choosing import slacks, worth_by_bin
from tests.study.pools import Pool, load, traffic_of

CAUSES = (
    "weights/int4",
    "weights/fp8",
    "temperature/+0.1",
    "prompt/system",
    "prompt/template",
    "kv/int4",
    "kv/fp8",
)
ALPHA = 0.001
POWERS = (0.5, 0.8, 0.9)
DRAWS = 400
BOOTSTRAPS = 30


def realised(grids, count, calibration, generator):
    """Share of logs of `count` requests that convict, and its 95 % interval over the pool."""
    from auditor.evidence import margin_log_e

    shares = []
    for resampling in range(1 + BOOTSTRAPS):  # the pool itself first, then bootstrap pools
        own = np.arange(len(grids)) if resampling == 0 else generator.integers(len(grids), size=len(grids))
        draws = DRAWS if resampling == 0 else DRAWS // 5
        drawn = generator.multinomial(count, np.full(len(own), 1 / len(own)), size=draws).astype(float)
        logs = np.tensordot(drawn, grids[own], axes=1)
        shares.append(float((margin_log_e(calibration, logs) >= -math.log(ALPHA)).mean()))
    spread = float(np.std(shares[1:]))
    return shares[0], max(0.0, shares[0] - 1.96 * spread), min(1.0, shares[0] + 1.96 * spread)


def run(cause, honest, calibration):
    from auditor.noise_model import log_likelihoods
    from auditor.planning import power_curve

    planned = [i.counts for i in load(Pool("development", traffic_of(cause), cause, requests=192))]
    grids = log_likelihoods(i.counts for i in load(Pool("report", traffic_of(cause), cause, requests=320)))
    generator = np.random.default_rng(7_005)
    curve = power_curve(planned, honest, calibration, -math.log(ALPHA), 1.0, generator, draws=DRAWS)
    rows = []
    for power in POWERS:
        if curve.power[0] > power:
            continue  # one request already has more
        length = float(curve.tokens[0] / curve.requests[0])
        count = max(1, round(curve.tokens_for(power) / length))
        share, low, high = realised(grids, count, calibration, generator)
        predicted = curve.power_at(count * length)
        rows.append({"requests": count, "predicted": predicted, "realised": share, "interval": [low, high]})
    return {"cause": cause, "rows": rows}


def tilted(counts, target):
    """Weights of requests, exponential in their worth, under which its mean is `target`; they sum to 1."""
    worth = np.array([slacks(c) @ worth_by_bin() for c in counts])
    score = (worth - worth.mean()) / worth.std()
    low, high = -2.0, 2.0
    for _ in range(50):
        middle = (low + high) / 2
        weights = np.exp(middle * score)
        weights /= weights.sum()
        low, high = (middle, high) if weights @ worth < target else (low, middle)
    return weights


def mean_worth(counts):
    return float(np.mean([slacks(c) @ worth_by_bin() for c in counts]))


def gaps_of(planned, weights, audited, honest, calibration):
    """Realised less predicted power at the sizes of POWERS, points."""
    from auditor.planning import power_curve

    generator = np.random.default_rng(7_007)
    if weights is not None:
        picks = generator.choice(len(planned), size=2_000, p=weights)
        planned = [planned[i] for i in picks]
    curve = power_curve(planned, honest, calibration, -math.log(ALPHA), 1.0, generator, draws=DRAWS)
    length, gaps = float(curve.tokens[0] / curve.requests[0]), []
    for power in POWERS:
        if curve.power[0] <= power and math.isfinite(curve.tokens_for(power)):
            count = max(1, round(curve.tokens_for(power) / length))
            share, _, _ = realised(audited, count, calibration, generator)
            gaps.append(100 * (share - curve.power_at(count * length)))
    return gaps


def ways(cause, honest, calibration):
    from auditor.noise_model import log_likelihoods

    traffic = traffic_of(cause)
    small = [i.counts for i in load(Pool("development", traffic, cause, requests=192))]
    report = [i.counts for i in load(Pool("report", traffic, cause, requests=320))]
    half, rest = report[: len(report) // 2], report[len(report) // 2 :]
    audited = log_likelihoods(rest)
    tried = {
        "as it is": (small, None),
        "larger pool": (small + half, None),
        "worth of the calibration": (small, tilted(small, mean_worth(honest))),
        "worth of the audited": (small, tilted(small, mean_worth(rest))),
        "larger pool, worth of the audited": (small + half, tilted(small + half, mean_worth(rest))),
    }
    return {name: gaps_of(*planned, audited, honest, calibration) for name, planned in tried.items()}


def study(jobs=1):
    """Every cause."""
    del jobs
    from auditor.evidence import Calibration

    honest = [i.counts for i in load(Pool("calibration", requests=480))]
    calibration = Calibration.of(honest)
    rows = [run(cause, honest, calibration) for cause in CAUSES]
    gaps = {
        r["cause"]: max((abs(x["predicted"] - x["realised"]) for x in r["rows"]), default=None) for r in rows
    }
    tried = {cause: ways(cause, honest, calibration) for cause in CAUSES}
    return {"alpha": ALPHA, "largest_gap": gaps, "rows": rows, "ways": tried}


def markdown(found):
    """The table of docs/study.md."""
    lines = ["| deviation | requests | predicted | realised (95 %) | gap, points |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        for r in row["rows"]:
            low, high = r["interval"]
            gap = 100 * (r["realised"] - r["predicted"])
            realised_ = f"{r['realised']:.3f} ({low:.3f} to {high:.3f})"
            lines.append(
                f"| {row['cause']} | {r['requests']} | {r['predicted']:.3f} | {realised_} | {gap:+.1f} |"
            )
    lines += ["", "| way | mean gap, points | within 5 points | largest |", "|---|---|---|---|"]
    for way in next(iter(found["ways"].values())):
        sizes = [abs(gap) for tried in found["ways"].values() for gap in tried[way]]
        within = sum(size <= 5 for size in sizes)
        lines.append(f"| {way} | {np.mean(sizes):.1f} | {within} of {len(sizes)} | {max(sizes):.1f} |")
    return "\n".join(lines)
