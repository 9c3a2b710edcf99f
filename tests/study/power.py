"""Tokens until a deviation is caught: the fused e-value beside the published statistic, same requests, same alpha.

Published: the mean margin clipped at 0.5, or at the honest 99.9th percentile. It comes without a threshold; here
it gets the best one can do, the 1 - alpha quantile of honest logs of the same size drawn by request from the
calibration pool, as if that pool were all honest traffic. The e-value calibrates on the same requests, pays for
their finite number, and may be looked at after every request; `stopped` counts such looks, `fixed` only the last.
`floor` is the size at which 99 of 100 logs hold a token at all whose margin exceeds the honest 99.9th percentile: a
test that rests on such tokens needs at least that.
"""

from __future__ import annotations

import math
from multiprocessing import get_context

import numpy as np

from tests.study.audits import Requests, fused_on_the_way
from tests.study.pools import SERVED, Pool, load, traffic_of

ALPHA, WANTED = 0.01, 0.99
SIZES = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 90, 128, 180, 256)
AUDITS = 400
HONEST_DRAWS = 4_000
SEED = 7_002


def published(calibration, pool, sizes, clip, generator):
    """Share of logs of each size whose mean exceeds the honest quantile, [sizes]."""
    honest, cheating = calibration.clipped_sums(clip), pool.clipped_sums(clip)
    shares = []
    for size in sizes:
        draw = generator.integers(len(calibration), size=(HONEST_DRAWS, size))
        null = honest[draw].sum(axis=1) / calibration.tokens[draw].sum(axis=1)
        draw = generator.integers(len(pool), size=(AUDITS, size))
        seen = cheating[draw].sum(axis=1) / pool.tokens[draw].sum(axis=1)
        shares.append(float((seen > np.quantile(null, 1 - ALPHA)).mean()))
    return shares


def fused(calibration, pool, sizes, generator):
    """(fixed, stopped): share of logs convicted at each size, and at it or before."""
    highest, everyone = max(sizes), np.arange(len(calibration))
    curves = []
    for _ in range(AUDITS):
        audited = generator.integers(len(pool), size=highest)
        curves.append(fused_on_the_way(pool, audited, calibration, everyone))
    convicts = np.array(curves) >= -math.log(ALPHA)
    stopped = np.maximum.accumulate(convicts, axis=1)
    at = np.array(sizes) - 1
    return convicts[:, at].mean(axis=0).tolist(), stopped[:, at].mean(axis=0).tolist()


def any_large_miss(pool, sizes, clip, generator):
    """Share of logs of each size with a token whose margin exceeds `clip`, [sizes]."""
    large = np.array([float((margins > clip).any()) for margins in pool.margins])
    draws = (generator.integers(len(pool), size=(AUDITS, size)) for size in sizes)
    return [float(large[draw].any(axis=1).mean()) for draw in draws]


def tokens_needed(shares, sizes, length):
    """Tokens of the smallest size from which on the share stays at WANTED or above; None if there is none."""
    short = [n for n, share in enumerate(shares) if share < WANTED]
    first = short[-1] + 1 if short else 0
    return None if first == len(sizes) else round(sizes[first] * length)


def run(cause):
    traffic = traffic_of(cause)
    kept = {"chat": 480}.get(traffic, 128)
    calibration = Requests.of(load(Pool("calibration", traffic, requests=kept)))
    pool = Requests.of(load(Pool("report", traffic, cause, requests=320)))
    generator = np.random.default_rng(SEED)
    margins = np.concatenate(
        [
            np.pad(m, (0, int(t) - len(m)))
            for m, t in zip(calibration.margins, calibration.tokens, strict=True)
        ]
    )
    clip = max(float(np.quantile(margins, 0.999)), 1e-3)
    length = float(pool.tokens.mean())
    fixed, stopped = fused(calibration, pool, SIZES, generator)
    shares = {"fixed": fixed, "stopped": stopped}
    shares["clip 0.5"] = published(calibration, pool, SIZES, 0.5, generator)
    shares["clip p99.9"] = published(calibration, pool, SIZES, clip, generator)
    shares["floor"] = any_large_miss(pool, SIZES, clip, generator)
    needed = {name: tokens_needed(s, SIZES, length) for name, s in shares.items()}
    return {"cause": cause, "request_tokens": length, "p99.9": clip, "shares": shares, "needed": needed}


def study(jobs):
    """Every deviation."""
    from auditor.reference.deviations import DEVIATIONS

    with get_context("spawn").Pool(jobs) as workers:
        rows = workers.map(run, list(DEVIATIONS), chunksize=1)
    return {
        "alpha": ALPHA,
        "wanted": WANTED,
        "audits": AUDITS,
        "sizes": SIZES,
        "served": list(SERVED),
        "rows": rows,
    }


def markdown(found):
    """The table of docs/study.md."""
    lines = [
        "| deviation | fused, looked at as it grows | fused, one look | mean clipped at 0.5 | at p99.9 | floor |",
        "|---|---|---|---|---|---|",
    ]
    most = max(found["sizes"])
    for row in found["rows"]:
        over = f"> {round(most * row['request_tokens']):,}"
        cells = [
            over if n is None else f"{n:,}"
            for n in (row["needed"][k] for k in ("stopped", "fixed", "clip 0.5", "clip p99.9", "floor"))
        ]
        lines.append(f"| {row['cause']} | {' | '.join(cells)} |")
    return "\n".join(lines)
