"""Which stored nodes a root or a proof is made of; shared by every way to store a tree.

A *stored node* (level, i) is the hash of the complete subtree over leaves [i * 2**level, (i + 1) * 2**level).
Only complete ones are ever stored: they never change again. What lies at the right edge of a tree of a given
size is folded from at most log2(size) of them. A proof is therefore a function of (index, size) and of a
reader of stored nodes, be they in memory (`tree.py`) or in tile files (`tiles.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from auditor.errors import LeafIndexError, SubtreeRangeError, TreeSizeError
from auditor.merkle.hashing import EMPTY_ROOT, node_hash

NodeReader = Callable[[int, int], bytes]
"""read(level, index) -> hash of a complete subtree."""

MAX_SIZE = 1 << 63
"""Sizes from strangers are bounded, so that no loop over their bits can be made long."""


def check_size(size: int, what: str = "tree size") -> None:
    """Refuse impossible sizes.

    Raises:
        TreeSizeError: negative or not below 2**63.
    """
    if not 0 <= size < MAX_SIZE:
        raise TreeSizeError(f"{what} {size} is not between 0 and 2**63 - 1")


def check_index(index: int, size: int) -> None:
    """Refuse leaves that the tree does not have.

    Raises:
        TreeSizeError: the tree is empty or its size impossible.
        LeafIndexError: index outside [0, size).
    """
    check_size(size)
    if size == 0:
        raise TreeSizeError("a tree of size 0 has no leaf to prove")
    if not 0 <= index < size:
        raise LeafIndexError(f"leaf index {index} is not in a tree of {size} leaves")


def check_subtree(start: int, end: int) -> None:
    """Refuse ranges that are no node of any tree.

    A range [start, end) is a subtree when start is a multiple of the least power of two that is not below its
    length (draft-ietf-plants-merkle-tree-certs, section 4.1). The empty range is one by convention.

    Raises:
        SubtreeRangeError: it is none.
    """
    if not 0 <= start <= end < MAX_SIZE:
        raise SubtreeRangeError(f"leaves {start} to {end} are no range")
    if end > start and start % (1 << (end - start - 1).bit_length()):
        raise SubtreeRangeError(f"leaves {start} to {end} are no subtree: {start} is not aligned")


def range_hash(read: NodeReader, start: int, end: int) -> bytes:
    """Hash over leaves [start, end), where start is a multiple of the covering power of two.

    Reads one stored node for each bit set in the length and folds them from the right.

    Raises:
        SubtreeRangeError: the range is no subtree.
    """
    check_subtree(start, end)
    length = end - start
    if length == 0:
        return EMPTY_ROOT
    result = b""
    while length:
        low = length & -length
        length -= low
        level = low.bit_length() - 1
        node = read(level, (start + length) >> level)
        result = node_hash(node, result) if result else node
    return result


def path_above(read: NodeReader, level: int, index: int, size: int) -> list[bytes]:
    """Siblings on the way from node (level, index) to the root of a tree of `size` leaves, lowest first.

    The node's range must begin inside the tree; at the right edge it may be cut short by the tree's end.
    """
    path = []
    last = (size - 1) >> level
    while last:
        if index & 1:
            path.append(read(level, index - 1))
        elif index < last:
            start = (index + 1) << level
            whole = start + (1 << level) <= size
            path.append(read(level, index + 1) if whole else range_hash(read, start, size))
        index >>= 1
        last >>= 1
        level += 1
    return path


def inclusion_path(read: NodeReader, index: int, size: int) -> list[bytes]:
    """Inclusion proof (RFC 6962 section 2.1.1) of one leaf in a tree of `size` leaves, its sibling first.

    Raises:
        TreeSizeError: an empty tree.
        LeafIndexError: index outside the tree.
    """
    check_index(index, size)
    return path_above(read, 0, index, size)


def consistency_path(read: NodeReader, old_size: int, new_size: int) -> list[bytes]:
    """Consistency proof (RFC 6962 section 2.1.2) that a tree of `new_size` leaves extends an older one.

    Empty when the sizes are equal or the old tree is empty: there is nothing to show.

    Raises:
        TreeSizeError: the old size is beyond the new one.
    """
    check_size(new_size)
    if not 0 <= old_size <= new_size:
        raise TreeSizeError(f"a tree of {new_size} leaves cannot extend one of {old_size}")
    if old_size in {0, new_size}:
        return []
    return _subtree_path(read, 0, old_size, new_size)


def subtree_path(read: NodeReader, start: int, end: int, size: int) -> list[bytes]:
    """Proof that the subtree [start, end) is part of the tree of `size` leaves.

    draft-ietf-plants-merkle-tree-certs section 4.4; for start = 0 it is RFC 6962's consistency proof.

    Raises:
        SubtreeRangeError: no subtree.
        TreeSizeError: it ends beyond the tree.
    """
    check_subtree(start, end)
    check_size(size)
    if end > size:
        raise TreeSizeError(f"leaves {start} to {end} are beyond a tree of {size}")
    return [] if start == end or (start, end) == (0, size) else _subtree_path(read, start, end, size)


def _subtree_path(read: NodeReader, start: int, end: int, size: int) -> list[bytes]:
    # Climb from the subtree's last leaf to the largest node that ends where the subtree ends: both trees know
    # it.
    level, index, first = 0, end - 1, start
    while index != first and (index & 1 or end == size):
        level, index, first = level + 1, index >> 1, first >> 1
    path = path_above(read, level, index, size)
    # When that node is the whole subtree the verifier holds its hash already.
    return path if index == first else [read(level, index), *path]
