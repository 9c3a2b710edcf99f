"""Tables of `inflation.py`: attacks down, methods side by side, one table an inflation rate."""

from __future__ import annotations

import numpy as np

from auditor.reference.deviations.accounting import INFLATIONS

RATES = (0.1, 0.5, 1.0, 2.0)
ALPHA = 0.001
STRUCTURAL = ("accounting/naive-count", "accounting/forged-embeddings", "accounting/late-commit")
CONTENT = tuple(name for name in INFLATIONS if name not in STRUCTURAL)


def print_tables(rows, checks, n_test):
    """One table an inflation rate: attacks down, methods side by side; then the averages."""
    names = list(dict.fromkeys(key.split("|")[0] for key in rows))
    head = "| attack | " + " | ".join(names) + " |\n|---|" + "---|" * len(names)
    for rate in RATES:
        print(f"\n### Inflation {rate:g}\n\n{head}")
        for name in CONTENT:
            cells = [cell(rows[f"{method}|{name}|{rate}"]) for method in names]
            print(f"| {name.removeprefix('accounting/')} | " + " | ".join(cells) + " |")
        for name, result in checks.items():
            cells = ["" if m.startswith("CoIn") else sure(result["refused"][f"{rate}"]) for m in names]
            print(f"| {name.removeprefix('accounting/')} | " + " | ".join(cells) + " |")
    print(f"\n### No inflation\n\n{head}")
    honest = [cell(rows[key]) if (key := f"{m}|honest|0") in rows else "" for m in names]
    print("| content | " + " | ".join(honest) + " |")
    refused = next(iter(checks.values()))["honest_refused"]
    print(
        "| commitment | "
        + " | ".join("" if m.startswith("CoIn") else sure([refused, n_test]) for m in names)
        + " |"
    )
    print_averages(rows, checks, names)


def print_averages(rows, checks, names):
    """Detection per response at inflation 0.5, a mean over attacks; its interval resamples responses."""
    rng = np.random.default_rng(9)
    print(
        "\n### Averages at inflation 0.5\n\n| method | 7 contents, 1 % | 5 % | all ten, 1 % | 5 % |\n|---|---|---|---|---|"
    )
    for method in names:
        line = []
        for attacks in (CONTENT, (*CONTENT, *checks)):
            for rate in ("hits_1", "hits_5"):
                hits = [
                    rows[f"{method}|{a}|0.5"][rate] if a in CONTENT else caught(checks[a]["refused"]["0.5"])
                    for a in attacks
                ]
                line.append("" if method.startswith("CoIn") and attacks != CONTENT else mean_of(hits, rng))
        print(f"| {method} | " + " | ".join(line) + " |")


def caught(counted):
    refused, n = counted
    return [1] * refused + [0] * (n - refused)


def mean_of(hits, rng):
    """Mean over attacks; all attacks were made of the same responses, so these are drawn together."""
    n = min(map(len, hits))
    table = np.array([h[:n] for h in hits], float)
    drawn = [table[:, rng.integers(n, size=n)].mean() for _ in range(2_000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{table.mean():.3f} ({low:.3f} to {high:.3f})"


def share(hits, n):
    low, high = wilson(hits, n)
    return f"{hits / n:.2f} ({low:.2f} to {high:.2f})"


def sure(counted):
    return f"{share(*counted)}, 1" if counted[0] else share(*counted)


def cell(r):
    needed = "over 400" if r["needed"] is None else r["needed"]
    return f"{share(sum(r['hits_1']), r['n'])} / {share(sum(r['hits_5']), r['n'])}, {needed}"


def wilson(hits, n, z=1.96):
    p, d = hits / n, 1 + z * z / n
    centre, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return max(0.0, (centre - half) / d), min(1.0, (centre + half) / d)
