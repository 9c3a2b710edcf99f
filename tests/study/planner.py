"""Does the planner keep its word? It plans on one pool of dishonest requests, and other ones are then audited.

`audit plan` simulates audits from what a profile's dishonest providers left behind. Here it plans on the
development pools, for sizes at which its test should convict half of the time, or eight or nine times of ten;
logs of those sizes are then drawn (whole requests, with replacement) from the report pools, whose prompts and
seeds it never saw. A few hundred requests are a small sample: which requests they happen to be moves the realised
power, and the interval, from a bootstrap over them, says by how much.
"""

from __future__ import annotations

import math

import numpy as np

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
    return {"alpha": ALPHA, "largest_gap": gaps, "rows": rows}


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
    return "\n".join(lines)
