"""Merkle tree beside pymerkle 7, in one run: `python tests/bench/merkle_tree.py [--leaves N] [--format json]`.

Times are processor time of this process (other programs on the machine do not count), best of `--repeat` runs for the
build, mean over 2,000 random leaves for proofs. pymerkle hashes entries while ours is given leaf hashes, as the service
log gives them; the row `build from entries` is the comparison like for like.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from pymerkle import InmemoryTree
from pymerkle import verify_inclusion as peer_verify

from auditor.merkle.hashing import leaf_hash
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.merkle.policy import Policy
from auditor.merkle.proofs import verify_inclusion
from auditor.merkle.tree import Tree
from auditor.transparency_log import TransparencyLog, verify_log

PROOFS = 2_000


def seconds(work):
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def our_tree(entries, hashes, repeat):
    build, tree = min((seconds(lambda: Tree(hashes)) for _ in range(repeat)), key=lambda pair: pair[0])
    whole = min(seconds(lambda: Tree.of_entries(entries))[0] for _ in range(repeat))
    chosen = random.Random(1).choices(range(tree.size), k=PROOFS)
    made, proofs = seconds(lambda: [tree.inclusion_proof(i) for i in chosen])
    root, size = tree.root(), tree.size
    leaves = [leaf_hash(entries[i]) for i in chosen]
    checked, _ = seconds(
        lambda: [
            verify_inclusion(h, i, size, p, root) for h, i, p in zip(leaves, chosen, proofs, strict=True)
        ]
    )
    return {
        "build from leaf hashes, leaves/s": size / build,
        "build from entries, leaves/s": size / whole,
        "inclusion proof, us": made / PROOFS * 1e6,
        "verification, us": checked / PROOFS * 1e6,
        "memory, MB per million leaves": tree.stored_bytes / size,
    }, root


def peer_tree(entries):
    build, tree = seconds(lambda: InmemoryTree.init_from_entries(entries, algorithm="sha256"))
    root_seconds, root = seconds(tree.get_root)
    chosen = random.Random(1).choices(range(len(entries)), k=PROOFS // 10)
    made, proofs = seconds(lambda: [tree.prove_inclusion(i + 1) for i in chosen])
    leaves = [leaf_hash(entries[i]) for i in chosen]
    checked, _ = seconds(lambda: [peer_verify(h, root, p) for h, p in zip(leaves, proofs, strict=True)])
    return {
        "build from entries, leaves/s": len(entries) / (build + root_seconds),
        "inclusion proof, us": made / len(chosen) * 1e6,
        "verification, us": checked / len(chosen) * 1e6,
    }, root


def whole_log(entries):
    """`audit log verify` on a folder of static tiles."""
    key = SeedSigner("bench.example/log", Algorithm.ED25519, bytes(32))
    with tempfile.TemporaryDirectory() as name:
        log = TransparencyLog.create(Path(name) / "log", key.name)
        appended, _ = seconds(lambda: log.append(entries))
        log.sign([key], Path(name) / "head", 0)
        verified, head = seconds(lambda: verify_log(log.folder, Policy((key.public,))))
    return {"log append, entries/s": len(entries) / appended, "log verify, s": verified}, head.root


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--format", choices=["table", "json"], default="table")
    options = parser.parse_args()
    entries = [i.to_bytes(32, "big") for i in range(options.leaves)]
    hashes = b"".join([leaf_hash(entry) for entry in entries])
    ours, root = our_tree(entries, hashes, options.repeat)
    logged, log_root = whole_log(entries)
    peer, peer_root = peer_tree(entries)
    assert root == peer_root == log_root
    rows = [
        {"measure": name, "ours": value, "pymerkle": peer.get(name)}
        for name, value in (ours | logged).items()
    ]
    if options.format == "json":
        print(json.dumps({"leaves": options.leaves, "rows": rows}))
        return
    for row in rows:
        theirs = "" if row["pymerkle"] is None else f"{row['pymerkle']:>14,.1f}"
        print(f"{row['measure']:34}{row['ours']:>14,.1f}{theirs}")


if __name__ == "__main__":
    main()
