"""A whole tree in memory: flat bytes per level, append-only, roots and proofs of every size it ever had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from auditor.errors import HashLengthError, LeafIndexError, TreeSizeError
from auditor.merkle.hashing import HASH_BYTES, check_hash, leaf_hash, parent_hashes
from auditor.merkle.nodes import (
    check_size,
    consistency_path,
    inclusion_path,
    range_hash,
    subtree_path,
)

_CHUNK: Final = 2 * HASH_BYTES * 4096
"""Bytes hashed at a time: the list of digests in between stays small beside the levels."""


class Tree:
    """Complete subtrees as one bytearray a level: 32 bytes a node, 64 MB for a million leaves.

    Invariant: level k holds the hashes of the `size >> k` complete subtrees of 2**k leaves, in order. They
    never change, so earlier sizes remain provable.
    """

    def __init__(self, leaf_hashes: bytes | bytearray | memoryview = b"") -> None:
        self._levels: list[bytearray] = [bytearray()]
        self.extend(leaf_hashes)

    @classmethod
    def of_entries(cls, entries: Iterable[bytes]) -> Tree:
        """The tree over entries, each hashed as a leaf."""
        return cls(b"".join([leaf_hash(entry) for entry in entries]))

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0]) // HASH_BYTES

    @property
    def stored_bytes(self) -> int:
        """Memory that the levels take, spare room included."""
        return sum(level.__sizeof__() for level in self._levels)

    def append(self, leaf: bytes) -> int:
        """Add one leaf hash; returns its index.

        Raises:
            HashLengthError: not 32 bytes.
        """
        check_hash(leaf, "a leaf hash")
        self.extend(leaf)
        return self.size - 1

    def extend(self, leaf_hashes: bytes | bytearray | memoryview) -> None:
        """Add leaf hashes, concatenated.

        Raises:
            HashLengthError: the length is not a multiple of 32; nothing was added.
        """
        if len(leaf_hashes) % HASH_BYTES:
            raise HashLengthError(
                f"{len(leaf_hashes)} bytes are not a whole number of {HASH_BYTES}-byte hashes"
            )
        self._levels[0] += leaf_hashes
        above = 1
        while (count := self.size >> above) > 0:
            if len(self._levels) == above:
                self._levels.append(bytearray())
            if len(self._levels[above]) == count * HASH_BYTES:
                break  # nor do the levels above change
            self._grow(above, count)
            above += 1

    def _grow(self, above: int, count: int) -> None:
        """Bring a level to `count` nodes from the one below, a chunk at a time."""
        level, below = self._levels[above], self._levels[above - 1]
        done = len(level)
        level += bytes(count * HASH_BYTES - done)
        with memoryview(below) as view:
            for start in range(2 * done, 2 * len(level), _CHUNK):
                end = min(start + _CHUNK, 2 * len(level))
                level[start // 2 : end // 2] = parent_hashes(view[start:end])

    def node(self, level: int, index: int) -> bytes:
        """Hash of the complete subtree `index` of 2**level leaves.

        Raises:
            LeafIndexError: the tree has no such complete subtree.
        """
        if not (0 <= level < len(self._levels) and 0 <= index < self.size >> level):
            raise LeafIndexError(f"no complete subtree {index} of 2**{level} leaves in a tree of {self.size}")
        return self._read(level, index)

    def nodes(self, level: int, start: int, count: int) -> bytes:
        """Hashes of `count` neighbouring complete subtrees of 2**level leaves; fewer where the tree ends."""
        if level >= len(self._levels):
            return b""
        return bytes(self._levels[level][start * HASH_BYTES : (start + count) * HASH_BYTES])

    def _read(self, level: int, index: int) -> bytes:
        return bytes(self._levels[level][index * HASH_BYTES : (index + 1) * HASH_BYTES])

    def root(self, size: int | None = None) -> bytes:
        """Root of the first `size` leaves; of all when None.

        Raises:
            TreeSizeError: more leaves than the tree has.
        """
        return range_hash(self._read, 0, self._checked(size))

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Proof that leaf `index` is in the tree of the first `size` leaves.

        Raises:
            TreeSizeError: an empty tree, or more leaves than there are.
            LeafIndexError: no such leaf in it.
        """
        return inclusion_path(self._read, index, self._checked(size))

    def consistency_proof(self, old_size: int, new_size: int | None = None) -> list[bytes]:
        """Proof that the first `new_size` leaves begin with the first `old_size` leaves.

        Raises:
            TreeSizeError: sizes in the wrong order, or beyond the tree.
        """
        return consistency_path(self._read, old_size, self._checked(new_size))

    def subtree_proof(self, start: int, end: int, size: int | None = None) -> list[bytes]:
        """Proof that the subtree over leaves [start, end) is part of the first `size` leaves.

        Raises:
            SubtreeRangeError: no subtree.
            TreeSizeError: beyond the tree.
        """
        return subtree_path(self._read, start, end, self._checked(size))

    def subtree_root(self, start: int, end: int) -> bytes:
        """Hash over leaves [start, end).

        Raises:
            SubtreeRangeError: no subtree.
            TreeSizeError: beyond the tree.
        """
        self._checked(end)
        return range_hash(self._read, start, end)

    def _checked(self, size: int | None) -> int:
        if size is None:
            return self.size
        check_size(size)
        if size > self.size:
            raise TreeSizeError(f"the tree has {self.size} leaves, not {size}")
        return size
