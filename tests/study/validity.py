"""How often is an honest provider convicted, with a look after every request? On the same traffic and on other.

Each simulated audit calibrates anew: whole requests are drawn without replacement, the calibration from one pool
and the audit from another (other prompts, other seeds). What varies between audits is which requests were drawn;
the pools themselves are one sample, so the bounds speak of the procedure on these pools.

Beside it the released procedure, as one would deploy it: the mean margin clipped at 0.5, its threshold the
1 - alpha quantile of means over tokens drawn one by one (that is, shuffled across requests) from the same
calibration requests; looked at once, at the end.
"""

from __future__ import annotations

import math
from functools import partial
from multiprocessing import get_context

import numpy as np

from tests.study.audits import Requests, fused_on_the_way, mean_log_e, upper_bound
from tests.study.pools import RECIPES, SERVED, TRAFFIC, Pool, load

CALIBRATED, AUDITED = 44, 24  # about 4,000 and 2,000 tokens
AUDITS = {0.05: 2_000, 0.01: 2_000, 0.001: 20_000}
SHIFTED_AUDITS = 4_000
RELEASED_CLIP = 0.5
RELEASED_DRAWS = 400
SEED = 7_001


def cells():
    """(label, calibration pool, audited pool, audits)."""
    for recipe in RECIPES:
        name = f"{recipe[0]}, batch {recipe[1]}"
        yield (
            name,
            Pool("calibration", recipe=recipe, requests=480),
            Pool("report", recipe=recipe, requests=480),
            max(AUDITS.values()),
        )
    other = ("float16", 128)
    yield (
        "calibrated on bfloat16, audited float16",
        Pool("calibration", requests=480),
        Pool("report", recipe=other, requests=480),
        SHIFTED_AUDITS,
    )
    for traffic in TRAFFIC:
        if traffic != "chat":
            yield (
                f"calibrated on chat, audited {traffic}",
                Pool("calibration", requests=480),
                Pool("report", traffic, requests=256),
                SHIFTED_AUDITS,
            )


def released_convicts(calibration, chosen, pool, audited, alphas, generator):
    """Whether the released statistic exceeds its threshold at each alpha."""
    sums = pool.clipped_sums(RELEASED_CLIP)
    tokens = int(pool.tokens[audited].sum())
    statistic = sums[audited].sum() / tokens
    values = np.concatenate([np.minimum(calibration.margins[i], RELEASED_CLIP) for i in chosen])
    share = len(values) / calibration.tokens[chosen].sum()
    misses = generator.binomial(tokens, share, size=RELEASED_DRAWS)
    means = np.array([generator.choice(values, n).sum() if len(values) else 0.0 for n in misses]) / tokens
    return [statistic > np.quantile(means, 1 - alpha) for alpha in alphas]


def run_cell(cell, audits=None):
    label, calibration_pool, audited_pool, wanted = cell
    calibration, pool = Requests.of(load(calibration_pool)), Requests.of(load(audited_pool))
    generator = np.random.default_rng(SEED)
    highest, last, released = [], [], np.zeros(2, int)
    checked = min(audits or wanted, 2_000)
    for number in range(audits or wanted):
        chosen = generator.choice(len(calibration), CALIBRATED, replace=False)
        audited = generator.choice(len(pool), AUDITED, replace=False)
        curve = fused_on_the_way(pool, audited, calibration, chosen)
        highest.append(float(curve.max()))
        last.append(float(curve[-1]))
        if number < checked:
            released += released_convicts(calibration, chosen, pool, audited, (0.05, 0.01), generator)
    rows = []
    for alpha, count in AUDITS.items():
        done = len(highest) if wanted == SHIFTED_AUDITS else min(count, len(highest))
        hits = int((np.array(highest[:done]) >= -math.log(alpha)).sum())
        rows.append({"alpha": alpha, "audits": done, "convicted": hits, "upper": upper_bound(hits, done)})
    return {
        "cell": label,
        "tokens": [int(calibration.tokens.mean() * CALIBRATED), int(pool.tokens.mean() * AUDITED)],
        "pool_requests": [len(calibration), len(pool)],
        "rates": rows,
        "mean_e_at_the_end": math.exp(mean_log_e(last)),
        "largest_e": math.exp(min(700.0, max(highest))),
        "released": {"audits": checked, "at_0.05": int(released[0]), "at_0.01": int(released[1])},
    }


def study(jobs, audits=None):
    """All cells; fails where the bound cannot be kept: more convictions than alpha by over a standard error."""
    with get_context("spawn").Pool(jobs) as workers:
        found = workers.map(partial(run_cell, audits=audits), list(cells()), chunksize=1)
    for cell in found:
        for row in cell["rates"]:
            allowed = row["alpha"] + math.sqrt(row["alpha"] * (1 - row["alpha"]) / row["audits"])
            row["kept"] = row["convicted"] / row["audits"] <= allowed
    return {"calibration": CALIBRATED, "audit": AUDITED, "served": list(SERVED), "cells": found}


def markdown(found):
    """The tables of docs/study.md."""
    lines = [
        "| honest provider | alpha 0.05 | alpha 0.01 | alpha 0.001 | mean e | largest e | released at 0.05 | at 0.01 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in found["cells"]:
        rates = [f"{r['convicted']} of {r['audits']:,} (<= {r['upper']:.2g})" for r in cell["rates"]]
        ours = f"{cell['mean_e_at_the_end']:.2g} | {cell['largest_e']:.2g}"
        n = cell["released"]["audits"]
        theirs = " | ".join(f"{cell['released'][k] / n:.3f}" for k in ("at_0.05", "at_0.01"))
        lines.append(f"| {cell['cell']} | {' | '.join(rates)} | {ours} | {theirs} |")
    return "\n".join(lines)
