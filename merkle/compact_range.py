"""The root of a growing list from at most log2(n) hashes: for streams, and for the right edge of a log.

A compact range over leaves [0, n) is the list of roots of the complete subtrees that n's binary digits name,
largest first. Appending merges equal neighbours, like carrying in binary addition.
"""

from __future__ import annotations

from dataclasses import dataclass

from auditor.errors import HashLengthError
from auditor.merkle.hashing import EMPTY_ROOT, check_hash, node_hash
from auditor.merkle.nodes import check_size


@dataclass(frozen=True, slots=True)
class CompactRange:
    """Leaves [0, size) as the roots of its complete subtrees, largest first: one hash a bit set.

    A value: appending gives a new range, so that a head signed in the middle of a stream keeps its own.

    Raises:
        TreeSizeError: impossible size.
        HashLengthError: not one hash of 32 bytes for each bit set.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        check_size(self.size)
        if len(self.hashes) != self.size.bit_count():
            raise HashLengthError(f"a range of {self.size} leaves has {len(self.hashes)} hashes")
        for value in self.hashes:
            check_hash(value, "a hash of the range")

    def append(self, leaf: bytes) -> CompactRange:
        """The range with one more leaf hash; on average one node is hashed."""
        check_hash(leaf, "a leaf hash")
        kept, node, size = list(self.hashes), leaf, self.size
        while size & 1:
            node = node_hash(kept.pop(), node)
            size >>= 1
        return CompactRange(self.size + 1, (*kept, node))

    def root(self) -> bytes:
        """Root of the tree over the leaves so far."""
        if not self.hashes:
            return EMPTY_ROOT
        result = self.hashes[-1]
        for node in reversed(self.hashes[:-1]):
            result = node_hash(node, result)
        return result
