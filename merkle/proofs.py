"""Verification of inclusion and consistency proofs (RFC 9162 sections 2.1.3.2 and 2.1.4.2).

Invariants:

1. the shape of a proof follows from index and sizes alone; nothing in the proof can change it;
2. too few and too many hashes are refused, even where the root would fit;
3. a root is compared, never trusted: it must come from a signed head or checkpoint, and so must the size. A
   bare proof does not bind the size everywhere (the path of leaf 0 looks the same in trees of 5 to 8 leaves),
   so sizes are always taken from what was signed together with the root.

Every function returns None or raises; there is no False to be forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest

from auditor.errors import HashLengthError, ProofLengthError, ProofRootError, TreeSizeError
from auditor.merkle.hashing import EMPTY_ROOT, HASH_BYTES
from auditor.merkle.nodes import check_index, check_size, check_subtree


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash is at `index` in the tree of `size` leaves with this root.

    Args:
        leaf: leaf hash, 32 bytes (`hashing.leaf_hash` of the entry).
        index: position of the leaf, from 0.
        size: leaves of the tree, from the same signed head as the root.
        path: hashes from the leaf's sibling up.
        root: the tree's root.

    Raises:
        TreeSizeError: size 0 or impossible.
        LeafIndexError: index not below size.
        HashLengthError: a hash that is not 32 bytes long.
        ProofLengthError: hashes missing or left over.
        ProofRootError: another root.
    """
    check_index(index, size)
    _check_lengths(leaf, path)
    _compare(_climb(leaf, index, size - 1, path), root)


def verify_subtree_inclusion(
    leaf: bytes, index: int, start: int, end: int, path: Sequence[bytes], root: bytes
) -> None:
    """Check that the leaf hash is at `index` of the log, inside the subtree over leaves [start, end).

    Raises:
        SubtreeRangeError: the range is no subtree.
        TreeSizeError, LeafIndexError, HashLengthError, ProofLengthError, ProofRootError: as
        `verify_inclusion`.
    """
    check_subtree(start, end)
    verify_inclusion(leaf, index - start, end - start, path, root)


def verify_consistency(
    old_size: int, new_size: int, path: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Check that the tree of `new_size` leaves begins with the tree of `old_size` leaves.

    Nothing can be shown from an empty old tree, so old size 0 with a larger new one is refused.

    Raises:
        TreeSizeError: impossible sizes, or the old one beyond the new one, or 0.
        HashLengthError: a hash that is not 32 bytes long.
        ProofLengthError: hashes missing or left over.
        ProofRootError: another root.
    """
    check_size(old_size, "old size")
    if old_size == 0 and new_size != 0:
        raise TreeSizeError(
            "consistency with an empty tree shows nothing", fix="start from a signed size above 0"
        )
    if old_size == 0:
        _compare(EMPTY_ROOT, new_root)
    verify_subtree_consistency(0, old_size, new_size, path, old_root, new_root)


def verify_subtree_consistency(
    start: int, end: int, size: int, path: Sequence[bytes], subtree_root: bytes, root: bytes
) -> None:
    """Check that the subtree over leaves [start, end) is part of the tree of `size` leaves.

    The empty subtree is part of every tree: only its own hash is looked at.
    draft-ietf-plants-merkle-tree-certs section 4.4.3.

    Raises:
        SubtreeRangeError: the range is no subtree.
        TreeSizeError: it ends beyond the tree.
        HashLengthError, ProofLengthError, ProofRootError: as `verify_consistency`.
    """
    check_subtree(start, end)
    check_size(size)
    if end > size:
        raise TreeSizeError(f"leaves {start} to {end} are beyond a tree of {size}")
    if start == end or (start, end) == (0, size):
        if path:
            raise ProofLengthError(f"{len(path)} hashes where nothing is to be proved")
        _compare(EMPTY_ROOT if start == end else root, subtree_root)
        return
    index, first, last = end - 1, start, size - 1
    while index != first and (index & 1 or end == size):
        index, first, last = index >> 1, first >> 1, last >> 1
    hashes = list(path)
    if index != first:
        if not hashes:
            raise ProofLengthError("the proof is empty")
        seed = hashes.pop(0)
    else:
        seed = subtree_root
    _check_lengths(seed, hashes)
    old = seed if index == first else _fold_left(seed, index, first, last, hashes)
    _compare(old, subtree_root)
    _compare(_climb(seed, index, last, hashes), root)


def _fold_left(seed: bytes, index: int, first: int, last: int, hashes: Sequence[bytes]) -> bytes:
    """Root of the smaller tree: the same climb as the larger one's, but only left siblings belong to it."""
    node = seed
    for sibling in hashes:
        while index != first and not index & 1 and index == last:
            index, first, last = index >> 1, first >> 1, last >> 1
        if index == first:
            break
        if index & 1:
            node = sha256(b"\x01" + sibling + node).digest()
        index, first, last = index >> 1, first >> 1, last >> 1
    return node


def _climb(node: bytes, index: int, last: int, path: Sequence[bytes]) -> bytes:
    """Root above a node, given siblings; `last` is the rightmost index of the node's row."""
    for sibling in path:
        if last == 0:
            raise ProofLengthError(f"the proof has {len(path)} hashes, more than the sizes call for")
        while not index & 1 and index == last:  # no sibling at the right edge
            index >>= 1
            last >>= 1
        node = sha256(b"\x01" + sibling + node if index & 1 else b"\x01" + node + sibling).digest()
        index >>= 1
        last >>= 1
    if last != 0:
        raise ProofLengthError(f"the proof has {len(path)} hashes, fewer than the sizes call for")
    return node


def _check_lengths(first: bytes, path: Sequence[bytes]) -> None:
    for value in (first, *path):
        if len(value) != HASH_BYTES:
            raise HashLengthError(f"a hash of the proof is {len(value)} bytes long, not {HASH_BYTES}")


def _compare(computed: bytes, claimed: bytes) -> None:
    if not compare_digest(computed, claimed):
        raise ProofRootError(f"the proof leads to {computed.hex()}, not to {claimed.hex()}")
