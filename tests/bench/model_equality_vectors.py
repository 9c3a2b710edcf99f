"""Golden numbers of the model equality test, and its speed, by the published package.

Run it in an environment of its own, which holds model-equality-testing 0.0.2, torch and this project:

    python tests/bench/model_equality_vectors.py --write      # tests/vectors/model-equality.json
    python tests/bench/model_equality_vectors.py              # time both sides at n = 250, 100 permutations
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
VECTORS = ROOT / "tests" / "vectors" / "model-equality.json"


def completions(generator, prompts, each, length, vocabulary, agreement):
    """Ragged rows that agree with their prompt's own base row at about a share `agreement` of places."""
    names = np.repeat(np.arange(prompts), each)
    base = np.random.default_rng(99).integers(0, vocabulary, (prompts, length))
    rows = base[names]
    other = generator.random(rows.shape) > agreement
    rows[other] = generator.integers(0, vocabulary, int(other.sum()))
    ends = generator.integers(length // 2, length + 1, len(rows))
    rows[np.arange(length) >= ends[:, None]] = -1
    return names, rows


def write():
    from model_equality_testing.distribution import CompletionSample
    from model_equality_testing.tests import mmd_hamming

    cases = []
    shapes = ((1, 6, 6), (3, 4, 4), (4, 3, 5), (2, 8, 2), (5, 2, 2))
    for number, (prompts, own, other) in enumerate(shapes):
        generator = np.random.default_rng(number)
        first = completions(generator, prompts, own, 12, 7, 0.6)
        second = completions(generator, prompts, other, 12, 7, 0.4)
        samples = [CompletionSample(p, rows, prompts) for p, rows in (first, second)]
        cases.append(
            {
                "provider": {"prompts": first[0].tolist(), "sequences": first[1].tolist()},
                "reference": {"prompts": second[0].tolist(), "sequences": second[1].tolist()},
                "mmd_hamming": float(mmd_hamming(*samples)),
            }
        )
    source = "model-equality-testing 0.0.2, tests.mmd_hamming"
    lines = ",\n".join(json.dumps(case) for case in cases)
    VECTORS.write_text(f'{{"source": "{source}", "cases": [\n{lines}\n]}}\n')


def bench():
    from model_equality_testing.algorithm import run_two_sample_test
    from model_equality_testing.distribution import CompletionSample

    from auditor.model_equality import Completions, model_equality

    for prompts in (25, 1):
        generator = np.random.default_rng(0)
        sides = [completions(generator, prompts, 250 // prompts, 200, 4096, 0.5) for _ in range(2)]
        ours = [Completions(p, rows.astype(np.int32)) for p, rows in sides]
        theirs = [CompletionSample(p, rows, prompts) for p, rows in sides]
        model_equality(*ours, permutations=2, generator=generator)  # compile
        seconds = []
        for _ in range(5):
            started = time.process_time()
            mine = model_equality(*ours, permutations=100, generator=generator)
            seconds.append(time.process_time() - started)
        started = time.process_time()
        with contextlib.redirect_stderr(io.StringIO()):
            _, statistic = run_two_sample_test(*theirs, b=100, stat_type="mmd_hamming")
        peer = time.process_time() - started
        print(
            f"{prompts} prompts, 250 completions of 200 tokens a side, 100 permutations, CPU seconds: "
            f"package {peer:.2f}, ours {min(seconds):.4f}, {peer / min(seconds):,.0f} times as fast; "
            f"statistics differ by {abs(statistic - mine.statistic):.1e}"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    sys.path.insert(0, str(ROOT))
    (write if parser.parse_args().write else bench)()


if __name__ == "__main__":
    main()
