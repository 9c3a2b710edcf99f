"""Does `audit plan` keep its word? It plans on simulated requests, and other ones are then audited.

Four deviations of the demo model. For each, one pool of requests is what a profile's simulated provider left, and
another, with other prompts and seeds, stands for the audited traffic. `audit plan` names the sizes at which its
test should convict in 50, 80 and 90 of 100 audits; logs of those sizes (whole requests, with replacement) are then
drawn from the audited pool and judged.

A profile that holds few requests can only plan roughly: which requests it happens to hold moves its plan, and no
planner mends that. So the same is asked of profiles of growing size, and of the interval that `audit plan` prints
beside the power: it should hold the realised power in 95 of 100 plans.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from tests.study.pools import POOLS, Pool, load, make, traffic_of

OUT = Path("out/planning.json")
DOCUMENT = Path("docs/planning.md")
CAUSES = ("weights/int4", "kv/fp8", "temperature/+0.1", "filter/top-p-ignored")
REQUESTS = 3_000
PROFILES = (64, 250, 1_000, 3_000)
"""Requests that a profile holds of a simulated provider."""
REPEATS = 40
"""Profiles of each size but the largest, each drawn from the planning pool."""
ALPHA, POWERS = 0.001, (0.5, 0.8, 0.9)
DRAWS = 4_000
SEED = 7_005


def pools() -> list[Pool]:
    """Planning and audited requests of each cause, and the honest ones that calibrate."""
    wanted = [
        Pool(use, traffic_of(cause), cause, requests=REQUESTS)
        for cause in CAUSES
        for use in ("planned", "audited")
    ]
    return [*wanted, *(Pool("calibration", traffic, requests=480) for traffic in ("chat", "nucleus"))]


def sizes(
    planned: Any, calibration: Any, generator: np.random.Generator, draws: int
) -> list[tuple[int, float]]:
    """(requests, predicted power) at the sizes that `audit plan` names for `POWERS`."""
    from auditor.power_curves import power_curve

    curve = power_curve(planned, calibration, -math.log(ALPHA), generator, draws=draws)
    length = float(curve.tokens[0] / curve.requests[0])
    found = {}
    for power in POWERS:
        tokens = curve.tokens_for(power)
        if math.isfinite(tokens):
            count = max(1, round(tokens / length))
            predicted = curve.power_at(max(count * length, float(curve.tokens[0])))
            found[count] = 1.0 if predicted is None else predicted
    return sorted(found.items())


def plans(cause: str) -> dict[str, Any]:
    """Plans of one cause on profiles of every size, and what the audited requests made of them."""
    from auditor.evidence import Calibration
    from auditor.power_curves import DRAWS as PLAN_DRAWS
    from auditor.power_curves import Simulated, power_interval

    traffic, bar = traffic_of(cause), -math.log(ALPHA)
    honest = [i.counts for i in load(Pool("calibration", traffic, requests=480))]
    calibration = Calibration.of(honest)
    planned = [i.counts for i in load(Pool("planned", traffic, cause, requests=REQUESTS))]
    audited = Simulated.of(
        [i.counts for i in load(Pool("audited", traffic, cause, requests=REQUESTS))], honest, 1.0
    )
    generator = np.random.default_rng([SEED, CAUSES.index(cause)])
    known: dict[int, float] = {}

    def realised(count: int) -> float:
        if count not in known:
            known[count] = audited.power(calibration, bar, count, generator, draws=DRAWS)
        return known[count]

    rows = []
    for held in PROFILES:
        for _ in range(REPEATS if held < REQUESTS else 1):
            picked = generator.choice(REQUESTS, size=held, replace=False)
            profile = Simulated.of([planned[i] for i in picked], honest, 1.0)
            draws = DRAWS if held == REQUESTS else PLAN_DRAWS
            for count, predicted in sizes(profile, calibration, generator, draws):
                row = {"held": held, "requests": count, "predicted": predicted, "realised": realised(count)}
                between = power_interval(profile, calibration, bar, count, generator)
                rows.append(row | {"between": between})
    return {"cause": cause, "rows": rows}


def markdown(found: dict[str, Any]) -> str:
    """docs/planning.md."""
    lines = ["# Does the planner keep its word?", "", __doc__.split("\n", 1)[1].strip(), ""]
    lines += [
        f"Made by `make planning` (an hour and a quarter of processor time): alpha {ALPHA}, {REQUESTS:,} requests in each",
        f"pool, {DRAWS:,} audits of each size, so that a power's own standard error is at most",
        f"{0.5 / math.sqrt(DRAWS):.3f}; {REPEATS} profiles of each size but the largest. Seeds: 40,000,000 and on plan,",
        "50,000,000 and on are audited, 10,000,000 and on calibrate. The interval speaks of the profile's requests only, and",
        "the audited pool is a sample, too: where the profile is as large as that, the interval is too short for both.",
        "",
        f"## A profile of {REQUESTS:,} requests",
        "",
        "| deviation | requests | predicted | realised | gap, points |",
        "|---|---|---|---|---|",
    ]
    for plan in found["plans"]:
        for row in plan["rows"]:
            if row["held"] == REQUESTS:
                gap = 100 * (row["realised"] - row["predicted"])
                figures = f"{row['predicted']:.3f} | {row['realised']:.3f} | {gap:+.1f}"
                lines.append(f"| {plan['cause']} | {row['requests']} | {figures} |")
    lines += [
        "",
        "## Profiles of other sizes",
        "",
        "| deviation | requests in the profile | plans | mean gap, points | within 5 points | interval holds it |",
        "|---|---|---|---|---|---|",
    ]
    for plan in found["plans"]:
        for held in PROFILES:
            rows = [row for row in plan["rows"] if row["held"] == held]
            gaps = np.array([100 * (row["realised"] - row["predicted"]) for row in rows])
            held_by = np.mean([row["between"][0] <= row["realised"] <= row["between"][1] for row in rows])
            figures = f"{np.abs(gaps).mean():.1f} | {np.mean(np.abs(gaps) <= 5):.2f} | {held_by:.2f}"
            lines.append(f"| {plan['cause']} | {held:,} | {len(rows)} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the pools that are missing, plan, and write the document."""
    parser = argparse.ArgumentParser(description="docs/planning.md again; pools that are there are kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    todo = [pool for pool in pools() if not (POOLS / f"{pool.name}.jsonl").exists()]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as workers:
        for done, line in enumerate(workers.imap_unordered(make, todo, chunksize=1), 1):
            print(f"{done}/{len(todo)} {line}", file=sys.stderr, flush=True)
        found: dict[str, Any] = {"plans": workers.map(plans, CAUSES, chunksize=1)}
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    DOCUMENT.write_text(markdown(found))


if __name__ == "__main__":
    main()
