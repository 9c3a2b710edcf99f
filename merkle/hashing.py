"""SHA-256 tree hashing of RFC 6962 section 2.1 (the same in RFC 9162).

    MTH({})     = SHA-256()
    leaf hash   = SHA-256(0x00 || entry)
    node hash   = SHA-256(0x01 || left || right)

Invariants:

1. leaves and nodes are hashed with different prefixes, so that no node can be presented as a leaf;
2. a tree of n leaves is split at the largest power of two below n; nothing is padded and nothing doubled,
   so that two lists of leaves never share a root, whatever their lengths.
"""

from __future__ import annotations

from hashlib import sha256
from struct import iter_unpack

from auditor.errors import HashLengthError

HASH_BYTES = 32
EMPTY_ROOT = sha256().digest()
"""Root of the tree without leaves."""


def leaf_hash(entry: bytes) -> bytes:
    """Hash of one leaf: 32 bytes."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of the node above two hashes of 32 bytes each."""
    return sha256(b"\x01" + left + right).digest()


def parent_hashes(children: bytes | bytearray | memoryview) -> bytes:
    """Hashes of the nodes above a row of hashes, two and two.

    This is the hot loop of every tree: a list over struct's pair iterator is the fastest form found in plain
    Python (tests/bench/merkle_tree.py), because no slice object is made.

    Args:
        children: concatenated hashes, an even number of them.

    Returns:
        Half as many hashes, concatenated.
    """
    return b"".join([sha256(b"\x01" + pair).digest() for (pair,) in iter_unpack("64s", children)])


def check_hash(value: bytes, what: str) -> None:
    """Refuse what is not 32 bytes long.

    Raises:
        HashLengthError: another length.
    """
    if len(value) != HASH_BYTES:
        raise HashLengthError(f"{what} is {len(value)} bytes long, not {HASH_BYTES}")
