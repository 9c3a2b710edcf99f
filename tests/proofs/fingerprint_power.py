"""Tokens and bytes until a fingerprint tells a deviation, and how often it accuses the honest, beside TOPLOC.

By request: a score is the mean over the first T output tokens of one request; the bar of each T is 1.6 times the
largest score of 400 calibration requests, the factor that verdicts forgive; without it an exchangeable honest request
passes once in 401, and traffic that is not exchangeable more often. Every scheme's bar is set alike. Calibration,
checks and dishonest requests have different prompts and seeds, none of which chose a scheme or a factor. Needed is the
first T from which on 99 of 100 requests pass.
Pools that are there (out/fingerprints) are not made again, so it goes on where it was stopped.

    python -m tests.proofs.fingerprint_power            makes docs/fingerprints.md and out/fingerprints/table.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.stats import beta, rankdata

from auditor.fingerprints.wire import HEADER_BYTES
from auditor.rank_evidence import TOLERANCE, rank_log_e
from tests.proofs.fingerprint_document import document
from tests.proofs.fingerprint_pools import CAUSES, COUNTS, OUT, POOLS, scores_of
from tests.proofs.fingerprint_schemes import SCHEMES

HONEST = [pool.name for pool in POOLS if pool.forced not in CAUSES and pool.name != "calibration"]
ENOUGH = 0.99
AUDITS, CALIBRATED, AUDITED, ALPHA = 300, 48, 8, 0.01
JUDGED = (1, 2, 4, 8, 32)
"""T's at which whole audits are simulated."""


def upper(hits, total):
    """One-sided 95 % Clopper-Pearson bound of a rate."""
    return 1.0 if hits >= total else float(beta.ppf(0.95, hits + 1, total - hits))


def alarms(scores, bar):
    """At each T: requests above the bar, of how many, and the bound of their rate; None where T is not reached."""
    rows = []
    for place in range(len(COUNTS)):
        known = scores[:, place][~np.isnan(scores[:, place])]
        hits = int((known > bar[place]).sum())
        rows.append([hits, len(known), upper(hits, len(known))] if len(known) else None)
    return rows


def area(honest, other, generator):
    """AUC of `other` above `honest`, with the interval of 400 bootstraps by request."""

    def auc(a, b):
        ranks = rankdata(np.concatenate([a, b]))
        return (ranks[len(a) :].sum() - len(b) * (len(b) + 1) / 2) / (len(a) * len(b))

    draws = [
        auc(generator.choice(honest, len(honest)), generator.choice(other, len(other))) for _ in range(400)
    ]
    return [float(auc(honest, other)), *map(float, np.quantile(draws, [0.025, 0.975]))]


def needed(power, row_bytes, window):
    """First T from which on the power is enough, and its bytes without and with a header; None if never."""
    last = [place for place, p in enumerate(power) if np.isnan(p) or p < ENOUGH]
    first = last[-1] + 1 if last else 0
    if first >= len(COUNTS):
        return None
    return [COUNTS[first], COUNTS[first] // window * row_bytes]


def verdicts(base, other, generator):
    """Of so many audits at each T of `JUDGED`, how many reach 1/alpha; None where T is not reached."""
    rows = []
    for place in map(COUNTS.index, JUDGED):
        if np.isnan(base[:, place]).any() or np.isnan(other[:, place]).any():
            rows.append(None)
            continue
        found = 0
        for _ in range(AUDITS):
            calibration = generator.choice(base[:, place], CALIBRATED, replace=False)
            audited = generator.choice(other[:, place], AUDITED, replace=False)
            found += int(rank_log_e(calibration, audited) >= -np.log(ALPHA))
        rows.append(found)
    return rows


def judged(scheme, pools):
    """Everything that is said of one scheme."""
    generator = np.random.default_rng(1)
    base = pools["calibration"][scheme.name]
    bar = base.max(axis=0)  # NaN where no window is complete
    power, tolerant = _power(scheme, pools, bar), _power(scheme, pools, TOLERANCE * bar)
    honest = {name: pools[name][scheme.name] for name in HONEST if scheme.name in pools[name]}
    checked = honest["checked"][:, -1]
    return {
        "row_bytes": scheme.row_bytes,
        "window": scheme.window,
        "false_alarms_plain": {name: alarms(scores, bar) for name, scores in honest.items()},
        "auc": {
            "another seed": area(base[:, -1], checked, generator),
            "temperature 1.1": area(base[:, -1], honest["temperature 1.1"][:, -1], generator),
        },
        "power": {cause: row.tolist() for cause, row in tolerant.items()},
        "needed_plain": {c: needed(row, scheme.row_bytes, scheme.window) for c, row in power.items()},
        "needed": {c: needed(row, scheme.row_bytes, scheme.window) for c, row in tolerant.items()},
        "false_alarms": {name: alarms(scores, TOLERANCE * bar) for name, scores in honest.items()},
    }


def _power(scheme, pools, bar):
    power = {cause: (pools[cause][scheme.name] > bar).mean(axis=0) for cause in CAUSES}
    return {cause: np.where(np.isnan(bar), np.nan, row) for cause, row in power.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--document", type=Path, default=Path("docs/fingerprints.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, pools = time.process_time(), {}
    columns = (TextColumn("{task.description:28}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=sum(pool.requests for pool in POOLS))
        for pool in POOLS:
            progress.update(task, description=pool.name)
            before = progress.tasks[task].completed
            pools[pool.name] = scores_of(pool, lambda: progress.advance(task))
            progress.update(task, completed=before + pool.requests)
    found = {scheme.name: judged(scheme, pools) for scheme in SCHEMES}
    generator = np.random.default_rng(2)
    for name in ("int8 k16 w1 final", "int4 k16 w1 final"):
        base = pools["calibration"][name]
        found[name]["convicted"] = {
            pool: verdicts(base, pools[pool][name], generator) for pool in (*HONEST, *CAUSES)
        }
    seconds = _seconds(time.process_time() - started)
    table = {
        "tokens": COUNTS,
        "requests": {pool.name: pool.requests for pool in POOLS},
        "header_bytes": HEADER_BYTES,
        "processor_seconds": seconds,
        "schemes": found,
        "audits": AUDITS,
        "calibrated": CALIBRATED,
        "audited": AUDITED,
        "alpha": ALPHA,
        "judged": JUDGED,
        "tolerance": TOLERANCE,
        "adapter": json.loads((OUT / "adapter" / "trained.json").read_text()),
    }
    (OUT / "table.json").write_text(json.dumps(table, indent=1, default=float) + "\n")
    options.document.write_text(document(table))


def _seconds(this_run):
    """Processor seconds of all runs that made what lies there."""
    path = OUT / "seconds.json"
    total = this_run + (json.loads(path.read_text()) if path.exists() else 0.0)
    path.write_text(json.dumps(total))
    return round(total)


if __name__ == "__main__":
    main()
