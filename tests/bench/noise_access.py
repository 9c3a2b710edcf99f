"""How much faster a trace is scored than whole rows of its noise are made again, at a vocabulary of 128,256.

    python tests/bench/noise_access.py

One thread, CPU seconds, the median of `REPEATS` runs over `ROWS` rows, a tile as the runner holds it. Whole rows are the noise alone, of every
token: `numpy` vectorised, as a verifier without random access makes it, `compiled` by the function that the
races use. Against them stand `scored`, all that ours does with a row of 128,256 logits (most of it one pass to
find the support and the normaliser), and under filters `race`, its noise and race once the support is known:
the cost that random access takes away. Peaked rows fall like a language model's (rank**-1.6, a nucleus of
about a hundred), flat ones are the worst case: every token may win, so a race without filters hashes them all.
"""

from __future__ import annotations

import statistics
import sys
import time

import numba
import numpy as np
import torch

from auditor.kernels.filtered_race import filtered_race
from auditor.kernels.keyed_noise import key_words, keyed_noise, noise_of
from auditor.reference.head import score_rows
from auditor.reference.noise import SCHEMES, Draws
from auditor.reference.sampling import SamplingSpec
from auditor.reference.support import cut_rows

VOCABULARY, ROWS, REPEATS = 128_256, 64, 3
KEYED = ("vllm-gpu-v2/philox32", "vllm-gpu-v1/exponential", "vllm-gpu-v2/murmur32")
SPECS = {
    "top-k 50": SamplingSpec(top_k=50),
    "top-p 0.95": SamplingSpec(top_p=0.95),
    "top-k 50, top-p 0.95": SamplingSpec(top_k=50, top_p=0.95),
    "no filter": SamplingSpec(),
}
PHILOX = KEYED[:2]
LEAST_RATIO = 50


@numba.njit
def whole_rows(kind, keys, out):
    for r in range(len(out)):
        key = (keys[r, 0], keys[r, 1], keys[r, 2])
        for v in range(out.shape[1]):
            out[r, v] = noise_of(kind, key, v)


def seconds_per_row(run, rows=ROWS):
    run()
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        run()
        found.append((time.process_time() - start) / rows)
    return statistics.median(found)


def logits_of(kind):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(ROWS, VOCABULARY, generator=generator)
    if kind == "flat":
        return z * 1e-3
    places = torch.stack([torch.randperm(VOCABULARY, generator=generator) for _ in range(ROWS)])
    return z * 0.3 - 1.6 * torch.log(places + 1.0)


def main() -> int:
    """Print a line for each scheme, filter and kind of row; status 1 if a filtered ratio falls short.

    Asked of the race alone against compiled rows, and of Philox schemes' whole scoring against NumPy's rows.
    """
    torch.set_num_threads(1)
    rows = {kind: logits_of(kind) for kind in ("peaked", "flat")}
    short = 0
    print(f"{VOCABULARY:,} tokens, {ROWS} rows, ms of CPU a row")
    print(
        f"{'scheme':26}{'rows':8}{'filters':22}{'scored':>8}{'race':>8}{'compiled':>10}{'numpy':>8}", end=""
    )
    print(f"{'compiled/scored':>17}{'numpy/scored':>14}{'compiled/race':>15}")
    for name in KEYED:
        scheme = SCHEMES[name]
        keys = Draws(scheme, 7, 20, VOCABULARY).take(ROWS)
        out = np.empty((4, VOCABULARY))
        words, kind = key_words(keys), int(scheme.noise)
        compiled = seconds_per_row(lambda w=words, k=kind, o=out: whole_rows(k, w, o), 4)
        everyone = np.arange(VOCABULARY)[None]
        plain = seconds_per_row(lambda s=scheme, k=keys, e=everyone: keyed_noise(s.noise, k[:1], e), 1)
        for shape, z in rows.items():
            for label, spec in SPECS.items():
                if shape == "flat" and spec.filtered and spec.top_k == 0:
                    continue  # a nucleus of 121,843 tokens bounds nothing
                zero = np.zeros(ROWS, np.int64)
                claimed = score_rows(z, zero, spec, scheme, keys).winner
                scored = seconds_per_row(
                    lambda z=z, c=claimed, p=spec, s=scheme, k=keys: score_rows(z, c, p, s, k)
                )
                race = float("nan")
                if spec.filtered:
                    rows_cut = cut_rows(z, claimed, spec, scheme.filters).rows
                    race = seconds_per_row(
                        lambda c=rows_cut, k=keys, s=scheme: filtered_race(c, 1.0, k, noise=s.noise)
                    )
                    short += compiled / race < LEAST_RATIO
                    short += name in PHILOX and plain / scored < LEAST_RATIO
                print(
                    f"{name:26}{shape:8}{label:22}{scored * 1e3:8.3f}{race * 1e3:8.4f}{compiled * 1e3:10.2f}"
                    f"{plain * 1e3:8.2f}{compiled / scored:17.0f}{plain / scored:14.0f}{compiled / race:15.0f}"
                )
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
