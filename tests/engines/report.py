"""docs/engines.md from the rows of every environment."""

from __future__ import annotations

import platform
from pathlib import Path

HEAD = """# Engines: what was run and what matched

Written by `make engines` (`tests/engines/`); do not edit. Each engine runs the demo model in an environment of its own,
with seeds and prompts that no recorded trace uses. vLLM is recorded by its plug-in and transformers by
`recorded_generate`; the others have no recorder, their traces are what was asked and what the engine returned. The log
is then audited at alpha {alpha} with the shipped profile of the recipe, or one calibrated on the run's own
`calibration` case where none is shipped.

*match*: share of output tokens that the replay in float32 would also have drawn, of those with a choice. *worst*: the
lowest share in one request. *outside*: tokens that the reference's own filters exclude (an honest one lies a rounding
error outside). *as returned*: traces whose ids are those the engine's API returned.

Machine: {machine}, instruction sets {flags}. The shipped profiles of vLLM, transformers and llama.cpp were calibrated
on another one (AVX-512 with bfloat16).
"""

TABLE = """
## {name}

| run | case | verdict | requests / tokens | match | worst | outside | as returned | why |
|---|---|---|---|---|---|---|---|---|
"""


def machine():
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), "not known"
    fields = dict(
        (part.strip() for part in line.split(":", 1))
        for line in text.split("\n\n")[0].splitlines()
        if ":" in line
    )
    flags = [
        f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in fields.get("flags", "").split()
    ]
    return fields.get("model name", platform.machine()), ", ".join(flags) or "none of AVX2 and AVX-512"


def line(row):
    tokens = f"{row['requests']} / {row['tokens']:,}" if row["requests"] else ""
    scored = row["replayed"] > 0
    return [
        row["run"],
        row["case"],
        f"**{row['outcome']}**"
        if row["outcome"] in ("inconsistent", "failed", "not built")
        else row["outcome"],
        tokens,
        f"{row['matched'] / row['replayed']:.4f}" if scored else "",
        "" if row["worst"] is None else f"{row['worst']:.2f}",
        str(row["outside"]) if scored else "",
        "" if row["as_returned"] is None else f"{row['as_returned']} of {row['requests']}",
        row["note"].replace("|", "\\|").replace("\n", " "),
    ]


def write_report(path, found, names, alpha=0.001):
    """Every environment has its section; one that never ran says so."""
    name, flags = machine()
    text = HEAD.format(alpha=alpha, machine=name, flags=flags)
    for environment in names:
        text += TABLE.format(name=environment)
        rows = found.get(environment)
        if rows is None:
            text += "| - | - | **not run** | | | | | | `make engines` was not run for it on this machine |\n"
            continue
        text += "".join(f"| {' | '.join(line(row))} |\n" for row in rows)
    path.write_text(text)
