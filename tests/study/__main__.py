"""Run the study: `make study`. Pools first, then every part; docs/study.md and out/study/*.json are written.

python -m tests.study                      all of it, about an hour on two cores
python -m tests.study power localisation   parts, with the others' figures as they were stored
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.study import choosing, localisation, naming, pools, power, published_rates, validity

OUT = Path("out/study")
DOCUMENT = Path("docs/study.md")
PARTS = {
    "validity": validity,
    "power": power,
    "published_rates": published_rates,
    "naming": naming,
    "localisation": localisation,
    "choosing": choosing,
}
TITLES = {
    "validity": "Honest providers",
    "power": "Tokens until a deviation is caught in 99 of 100 logs, at alpha 0.01",
    "published_rates": "The paper's hardest model, at its own rates",
    "naming": "Naming the cause",
    "localisation": "Finding the span",
    "choosing": "Choosing what is scored",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "tests.study.pools", "--jobs", str(options.jobs)], check=True)
    for name in options.parts or PARTS:
        started = time.monotonic()
        found = PARTS[name].study(options.jobs)
        found["seconds"] = round(time.monotonic() - started)
        (OUT / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {found['seconds']} s", file=sys.stderr, flush=True)
    write(DOCUMENT)


def write(path: Path) -> None:
    """Make the document from what is stored; parts that never ran are said to be missing."""
    text = [
        "# The study: error rates, power, diagnosis, localisation",
        "",
        f"Made by `make study` ({pools.__doc__.splitlines()[0].lower().rstrip('.')}); the demo model, on the CPU.",
    ]
    for name, part in PARTS.items():
        stored = OUT / f"{name}.json"
        text += ["", f"## {TITLES[name]}", "", part.__doc__.strip(), ""]
        text.append(part.markdown(json.loads(stored.read_text())) if stored.exists() else "Not run.")
    path.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
