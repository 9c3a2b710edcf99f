"""One proof for many leaves: every hash that the leaves themselves do not give, once.

The tree is walked from the root as RFC 6962 splits it. A subtree without a wanted leaf contributes its hash,
a wanted leaf contributes nothing, and the order is left to right. As with single proofs the shape follows
from the indices and the size alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from auditor.errors import LeafIndexError, ProofLengthError, ProofRootError
from auditor.merkle.hashing import check_hash, node_hash
from auditor.merkle.nodes import NodeReader, check_index, range_hash


def _split(start: int, end: int) -> int:
    """Where RFC 6962 splits a subtree of at least two leaves."""
    return start + (1 << ((end - start - 1).bit_length() - 1))


def _check_indices(indices: Sequence[int], size: int) -> None:
    if not indices:
        raise LeafIndexError("a proof of no leaf proves nothing")
    check_index(indices[0], size)
    check_index(indices[-1], size)
    if any(a >= b for a, b in pairwise(indices)):
        raise LeafIndexError("the leaf indices are not sorted and distinct")


def prove_many(read: NodeReader, indices: Sequence[int], size: int) -> list[bytes]:
    """Proof for the leaves at these indices in the tree of `size` leaves.

    Args:
        read: stored nodes of the tree (`Tree.node`, a tile reader).
        indices: sorted and distinct.
        size: leaves of the tree.

    Raises:
        TreeSizeError: an empty tree.
        LeafIndexError: no index, one outside the tree, or not sorted and distinct.
    """
    _check_indices(indices, size)
    proof: list[bytes] = []

    def walk(start: int, end: int) -> None:
        first = bisect_left(indices, start)
        if first == len(indices) or indices[first] >= end:
            proof.append(range_hash(read, start, end))
        elif end - start > 1:
            middle = _split(start, end)
            walk(start, middle)
            walk(middle, end)

    walk(0, size)
    return proof


def verify_many(leaves: Mapping[int, bytes], size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that every leaf hash is at its index in the tree of `size` leaves with this root.

    Args:
        leaves: leaf hash of each index.
        size: leaves of the tree, from the same signed head as the root.
        proof: what `prove_many` gave.
        root: the tree's root.

    Raises:
        TreeSizeError, LeafIndexError: impossible size or indices.
        HashLengthError: a hash that is not 32 bytes long.
        ProofLengthError: hashes missing or left over.
        ProofRootError: another root.
    """
    indices = sorted(leaves)
    _check_indices(indices, size)
    for value in (*leaves.values(), *proof):
        check_hash(value, "a hash of the proof")
    given = iter(proof)
    computed = _fold(leaves, indices, given, 0, size)
    if next(given, None) is not None:
        raise ProofLengthError(f"the proof has {len(proof)} hashes, more than the leaves call for")
    if computed != root:
        raise ProofRootError(f"the proof leads to {computed.hex()}, not to {root.hex()}")


def _fold(
    leaves: Mapping[int, bytes], indices: Sequence[int], given: Iterator[bytes], start: int, end: int
) -> bytes:
    first = bisect_left(indices, start)
    if first == len(indices) or indices[first] >= end:
        value = next(given, None)
        if value is None:
            raise ProofLengthError("the proof has fewer hashes than the leaves call for")
        return value
    if end - start == 1:
        return leaves[start]
    middle = _split(start, end)
    left = _fold(leaves, indices, given, start, middle)
    return node_hash(left, _fold(leaves, indices, given, middle, end))
