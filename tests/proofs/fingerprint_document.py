"""`docs/fingerprints.md` from what `fingerprint_power` measured."""

from __future__ import annotations

SECOND_PASS = ", second pass"
"""How schemes that are tries, and that no verdict uses, end their names."""

INTRODUCTION = """# Activation fingerprints measured

Made by `make fingerprints` (`tests/proofs/fingerprint_power.py`) on the demo model: {minutes:.0f} minutes of processor
time. One unit is one request; its score after T tokens is the mean over its first T. The bar at each T is {tolerance}
times the largest score of {calibration} calibration requests, for every scheme alike: {tolerance} is the factor that
verdicts forgive, set before any of this was measured. Providers compute in bfloat16 (products in float32, rounded
once), decoded in batches of 32; the reference prefills in float32. Calibration, checks and dishonest requests have
different prompts and seeds. Verdicts do not use such bars, but ranks of whole requests (last table).

Rows that end in *second pass* are a try that verdicts do not use: the same bytes, read with a second pass of the
reference, in half precision (see *Why the factor*).
"""

WHY = """An exchangeable honest request passes the largest of {calibration} once in {fair}; but such a bar is itself
drawn at random, and knows only the traffic that it was drawn from. The same counts without the factor:
"""

CAUSE = """The cause is that what half precision does to a state depends on the text: documentation (names copied from
the prompt) is rounded worse than chat, by a few per cent in the middle and by a third in the tail. Distances to a cell
exaggerate that, since small noise mostly stays within the cell. Two tries, tuned on other seeds (400 calibration, 200
documentation requests, bars at the second largest, int8 k16 at 4 tokens, where 9.5 % of documentation stood above):

* *Dividing by what honest noise of one size leaves outside a cell of that width*: 4.5 %. The size is not one.
* *A second pass of the reference in bfloat16*, whose own distance says how badly this text is rounded: 0.5 %. It doubles
  what an audit computes, and helps no int4 code, whose own rounding is larger than the noise that is divided by.
  Verdicts keep one pass and forgive the factor; the rows *second pass* are this try on the seeds of this document.
"""

SHOWN = ("int8 k16 w1 final", "int8 k4 w1 final", "int4 k16 w1 final", "int8 k16 w1 layer2")
OTHERS = ("int8 k16 w1 final, second pass", "released Gaussian k16", "TOPLOC k8 per 1")


def _row(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(head, rows):
    return "\n".join([_row(head), _row("---" for _ in head), *map(_row, rows)])


def _needed(cell, most):
    return f"> {most}" if cell is None else f"{cell[0]} / {cell[1]}"


def _total(pools):
    """False alarms over all pools and T's, and the highest rate of a pool at a T."""
    cells = [cell for pool in pools.values() for cell in pool if cell]
    worst = max(cells, key=lambda cell: cell[0] / cell[1])
    return f"{sum(c[0] for c in cells)} of {sum(c[1] for c in cells):,}; {worst[0]} of {worst[1]:,}"


def _power(found, bars=""):
    causes = list(next(iter(found["schemes"].values()))["needed"])
    most = found["tokens"][-1]
    rows = [
        [
            name,
            *(_needed(scheme["needed" + bars][cause], most) for cause in causes),
            _total(scheme["false_alarms" + bars]),
        ]
        for name, scheme in found["schemes"].items()
    ]
    return _table(["tokens / bytes", *causes, "false alarms; worst"], rows)


def _fewest(found, cause, wanted, bars):
    cells = [
        scheme["needed" + bars][cause]
        for name, scheme in found["schemes"].items()
        if name.startswith(wanted) and not name.endswith(SECOND_PASS)
    ]
    return min((cell[1] for cell in cells if cell is not None), default=None)


def _beside(found, bars=""):
    rows = []
    for cause in next(iter(found["schemes"].values()))["needed"]:
        ours = _fewest(found, cause, ("int8", "int4"), bars)
        theirs = _fewest(found, cause, "TOPLOC", bars)
        released = _fewest(found, cause, "released", bars)
        ratio = "-" if ours is None or theirs is None else f"{ours / theirs:.2f}"
        with_header = None if ours is None else ours + found["header_bytes"]
        cells = (ours, with_header, theirs, released)
        rows.append([cause, *("none" if x is None else x for x in cells), ratio])
    head = ["", "ours", "with header", "TOPLOC", "released Gaussian", "ours / TOPLOC"]
    return _table(head, rows)


def _alarms(found, bars=""):
    names = [*SHOWN, *OTHERS]
    rows = []
    for pool in found["schemes"][names[0]]["false_alarms"]:
        row = [pool]
        for name in names:
            cells = found["schemes"][name]["false_alarms" + bars][pool]
            at = [cells[found["tokens"].index(t)] for t in (1, 2, 4, 32)]
            total = next(cell[1] for cell in at if cell)
            row.append(" ".join("-" if cell is None else str(cell[0]) for cell in at) + f" of {total:,}")
        rows.append(row)
    return _table(["at 1, 2, 4, 32 tokens", *names], rows)


def _bounds(found):
    """First tokens of the many requests of the calibrated recipe, with and without the factor."""
    rows = []
    for name, scheme in found["schemes"].items():
        at = [found["tokens"].index(t) for t in (1, 2, 4)]
        cells = (
            [scheme["false_alarms" + bars]["first tokens"][i] for bars in ("", "_plain") for i in at]
            if ("first tokens" in scheme["false_alarms"])
            else []
        )
        if cells and all(cells):
            rows.append([name, *(f"{hits} (<= {bound:.4f})" for hits, _, bound in cells)])
    head = ["of 2,000", *(f"{t} tokens{bars}" for bars in ("", ", no factor") for t in (1, 2, 4))]
    return _table(head, rows)


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


def _headline(found):
    adapter = found["adapter"]
    return [
        "## Output tokens and serialised bytes of one request for power 0.99",
        (
            "The first T from which on at least 297 of 300 dishonest requests pass the bar; at most 32 tokens were tried. "
            "Bytes are those of the rows; a request's header costs ours 22 more, in the next table. The adapter is a LoRA "
            f"of rank 4 on query and value projections, trained for 40 steps, {adapter['relative_size']:.3f} of those "
            "weights' size. The last column counts honest requests above the bar over all pools and T's below, and gives "
            "the worst pool at its worst T."
        ),
        _power(found),
        "Fewest bytes of any scheme of each kind (without the tries):",
        _beside(found),
    ]


def document(found):
    """The whole text."""
    calibration = found["requests"]["calibration"]
    numbers = {"calibration": calibration, "fair": calibration + 1, "tolerance": found["tolerance"]}
    parts = [
        INTRODUCTION.format(minutes=found["processor_seconds"] / 60, **numbers),
        *_headline(found),
        "## False alarms",
        "Honest requests of other traffic, batch shapes and recipes above the bar:",
        _alarms(found),
        "First tokens of 2,000 honest requests of the calibrated recipe, with one-sided 95 % bounds:",
        _bounds(found),
        "## Why the factor",
        WHY.format(**numbers),
        _alarms(found, "_plain"),
        "Tokens, bytes and false alarms at bars without the factor, at which the rate is not what it is said to be:",
        _power(found, "_plain"),
        _beside(found, "_plain"),
        CAUSE,
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
