"""Microseconds a token to make a fingerprint and to verify it, beside TOPLOC, on one thread, in one run.

TOPLOC is measured three times: the package itself, where `make .toploc` has built it from its sources (its wheel
wants an older torch); our own `make_proofs` (same bytes); and `torch.topk` over the chunk alone, with which the
package's encoder begins, so less than the package can cost. Times are processor time, the least of several repeats.

    python tests/bench/fingerprints.py
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import torch

from auditor.fingerprints.activation_difr import FingerprintKind, fingerprint, residuals
from auditor.fingerprints.toploc import chunks, make_proofs, verify_proofs
from auditor.fingerprints.wire import to_payload

TOKENS = 256
KINDS = [FingerprintKind("int8", 16), FingerprintKind("int4", 16), FingerprintKind("int4", 16, 32)]
SEED, BINDING = bytes(16), bytes(8)


def microseconds(run, repeats=15):
    run()
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        run()
        best = min(best, time.process_time() - started)
    return round(best / TOKENS * 1e6, 2)


def package():
    sys.path.insert(0, str(Path(__file__).parents[2] / ".toploc"))
    try:
        return importlib.import_module("toploc")
    except (ImportError, OSError) as error:
        print(f"toploc does not import here: {str(error)[:80]}")
        return None


def main():
    torch.set_num_threads(1)
    theirs = package()
    for width in (1024, 4096, 8192):
        hidden = torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(0)).bfloat16()
        truth = hidden.float()
        row = {"width": width}
        for kind in KINDS:
            given = fingerprint(hidden, kind, projection_seed=SEED, binding=BINDING)

            row[f"{kind.name} encode"] = microseconds(
                lambda kind=kind, hidden=hidden: to_payload(
                    fingerprint(hidden, kind, projection_seed=SEED, binding=BINDING)
                )
            )
            row[f"{kind.name} verify"] = microseconds(
                lambda given=given, truth=truth: residuals(given, truth)
            )
        parts = list(chunks(hidden, 0, 32))
        proofs = make_proofs(parts)
        row["toploc k128 per 32, ours, encode"] = microseconds(lambda parts=parts: make_proofs(parts))
        row["toploc k128 per 32, ours, verify"] = microseconds(
            lambda parts=parts, proofs=proofs: verify_proofs(parts, proofs)
        )
        row["toploc: topk alone"] = microseconds(
            lambda parts=parts: [part.reshape(-1).abs().topk(128) for part in parts]
        )
        if theirs is not None:
            rows = list(hidden)
            row["toploc package encode"] = microseconds(
                lambda rows=rows: theirs.build_proofs_bytes(rows, 32, 128, skip_prefill=True)
            )
            made = theirs.build_proofs_bytes(rows, 32, 128, skip_prefill=True)
            row["toploc package verify"] = microseconds(
                lambda own=hidden, made=made: theirs.verify_proofs_bytes(
                    own, made, 32, 128, skip_prefill=True
                )
            )
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
