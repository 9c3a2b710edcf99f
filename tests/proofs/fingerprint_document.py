"""`docs/fingerprints.md` from what `fingerprint_power` measured."""

from __future__ import annotations

INTRODUCTION = """# Activation fingerprints measured

Made by `make fingerprints` (`tests/proofs/fingerprint_power.py`) on the demo model: {minutes:.0f} minutes of processor
time. One unit is one request; its score after T tokens is the mean over its first T. The bar at each T is the largest
score of {calibration} calibration requests: an exchangeable honest request passes it once in {fair}. Providers compute
in bfloat16 (products in float32, rounded once), decoded in batches of 32; the reference prefills in float32.
Calibration, checks and dishonest requests have different prompts and seeds. Verdicts do not use such bars, but ranks of
whole requests (last table).
"""


def _row(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(head, rows):
    return "\n".join([_row(head), _row("---" for _ in head), *map(_row, rows)])


def _needed(cell, most):
    return f"> {most}" if cell is None else f"{cell[0]} / {cell[1]}"


def _power(found):
    causes = list(next(iter(found["schemes"].values()))["needed"])
    most = found["tokens"][-1]
    rows = [
        [name, *(_needed(scheme["needed"][cause], most) for cause in causes)]
        for name, scheme in found["schemes"].items()
    ]
    return _table(["tokens / bytes", *causes], rows)


def _fewest(found, cause, wanted):
    cells = [s["needed"][cause] for name, s in found["schemes"].items() if name.startswith(wanted)]
    return min((cell[1] for cell in cells if cell is not None), default=None)


def _tolerant(found):
    rows = []
    for name, scheme in found["schemes"].items():
        if name.startswith(("int8", "int4")):
            cells = [c for pool in scheme["false_alarms_tolerant"].values() for c in pool if c]
            hits = f"{sum(c[0] for c in cells)} of {sum(c[1] for c in cells):,}"
            rows.append(
                [name, *(_needed(c, found["tokens"][-1]) for c in scheme["needed_tolerant"].values()), hits]
            )
    causes = next(iter(found["schemes"].values()))["needed"]
    return _table(["tokens / bytes", *causes, "false alarms"], rows)


def _beside(found):
    rows = []
    for cause in next(iter(found["schemes"].values()))["needed"]:
        ours = _fewest(found, cause, ("int8", "int4"))
        theirs = _fewest(found, cause, "TOPLOC")
        released = _fewest(found, cause, "released")
        ratio = "-" if ours is None or theirs is None else f"{ours / theirs:.2f}"
        with_header = "-" if ours is None else ours + found["header_bytes"]
        rows.append(
            [cause, *("none" if x is None else x for x in (ours, with_header, theirs, released)), ratio]
        )
    head = ["", "ours", "with header", "TOPLOC", "released Gaussian", "ours / TOPLOC"]
    return _table(head, rows)


def _alarms(found):
    names = ["int8 k16 w1 final", "int8 k4 w1 final", "int4 k16 w1 final", "int8 k16 w1 layer2"]
    names += ["released Gaussian k16", "TOPLOC k8 per 1"]
    rows = []
    for pool in found["schemes"][names[0]]["false_alarms"]:
        row = [pool]
        for name in names:
            cells = found["schemes"][name]["false_alarms"][pool]
            at = [cells[found["tokens"].index(t)] for t in (1, 2, 4, 32)]
            total = next(cell[1] for cell in at if cell)
            row.append(" ".join("-" if cell is None else str(cell[0]) for cell in at) + f" of {total:,}")
        rows.append(row)
    return _table(["at 1, 2, 4, 32 tokens", *names], rows)


def _bounds(found):
    rows = []
    for name, scheme in found["schemes"].items():
        cells = [
            scheme["false_alarms"].get("first tokens", [None] * len(found["tokens"]))[i] for i in (0, 1, 3)
        ]
        if all(cells):
            rows.append([name, *(f"{h} of {n:,}: {h / n:.4f} (<= {b:.4f})" for h, n, b in cells)])
    return _table(["", "1 token", "2 tokens", "4 tokens"], rows)


def _chance(found):
    rows = []
    for name, scheme in found["schemes"].items():
        rows.append(
            [name, *(f"{a:.3f} ({low:.3f} to {high:.3f})" for a, low, high in scheme["auc"].values())]
        )
    return _table(["AUC at 32 tokens", "another seed", "temperature 1.1"], rows)


def _verdicts(found):
    rows = []
    for name, scheme in found["schemes"].items():
        for pool, cells in scheme.get("convicted", {}).items():
            rates = ("-" if cell is None else f"{cell / found['audits']:.3f}" for cell in cells)
            rows.append([name, pool, *rates])
    return _table(["", "provider", *(f"{t} tokens" for t in found["judged"])], rows)


def document(found):
    """The whole text."""
    calibration = found["requests"]["calibration"]
    adapter = found["adapter"]
    parts = [
        INTRODUCTION.format(
            minutes=found["processor_seconds"] / 60, calibration=calibration, fair=calibration + 1
        ),
        "## Output tokens and serialised bytes of one request for power 0.99",
        (
            "The first T from which on at least 297 of 300 dishonest requests pass the bar; at most 32 tokens were tried. "
            "Bytes are those of the rows; a request's header costs ours 22 more, in the next table. The adapter is a LoRA "
            f"of rank 4 on query and value projections, trained for 40 steps, {adapter['relative_size']:.3f} of those "
            "weights' size."
        ),
        _power(found),
        "Fewest bytes of any scheme of each kind:",
        _beside(found),
        "## False alarms",
        "First tokens of 2,000 other honest requests (same recipe), with one-sided 95 % bounds:",
        _bounds(found),
        "Requests of other traffic, batch shapes and recipes above the bar of the calibrated one:",
        _alarms(found),
        (
            "A bar that is the largest of its calibration is itself drawn at random, and knows only the traffic it was "
            f"drawn from. The verdict forgives a factor of {found['tolerance']}, set before these figures were seen. "
            "With bars that much higher (false alarms are counted over all pools and T's above):"
        ),
        _tolerant(found),
        "## Sampling does not show",
        _chance(found),
        "## What the verdict makes of it",
        (
            f"Share of {found['audits']:,} audits that convict at alpha {found['alpha']}: the e-value of ranks of "
            f"{found['audited']} requests beside {found['calibrated']} calibrated ones, both drawn from their pools."
        ),
        _verdicts(found),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"
