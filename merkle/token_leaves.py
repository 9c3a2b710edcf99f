"""Leaves of a token commitment: what one hidden token is bound to, and why its hash gives nothing away.

A leaf's bytes are a versioned label and length-prefixed, type-tagged fields, so that no two leaves share an
encoding:

    b"auditor.token-leaf/v1" then for each field: tag (1 byte), length (4 bytes, big-endian), content
    0x01 request id   0x02 index   0x03 token id (both 8 bytes)   0x04 embedding fingerprint (int8)   0x05
    salt

The salt is derived for each index from a key of the session (HKDF, RFC 5869). Without it a leaf would be a
function of one token id, and a dictionary of the vocabulary would open every leaf and every sibling hash in a
proof.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from auditor.commitment_errors import CommitmentFieldError
from auditor.merkle.hashing import leaf_hash

LABEL: Final = b"auditor.token-leaf/v1"
SALT_BYTES: Final = 16
MIN_KEY_BYTES: Final = 32
MAX_REQUEST_ID_BYTES: Final = 256
MAX_FINGERPRINT_BYTES: Final = 4096


def _field(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + len(content).to_bytes(4, "big") + content


@dataclass(frozen=True, slots=True)
class TokenLeaf:
    """One hidden token as committed.

    Args:
        request_id: the response it belongs to.
        index: position among the hidden tokens, from 0.
        token_id: id in the declared tokenizer.
        salt: 16 bytes from `Salts`.
        fingerprint: int8 embedding, or empty when the head declares no embedder.

    Raises:
        CommitmentFieldError: a field out of range.
    """

    request_id: str
    index: int
    token_id: int
    salt: bytes
    fingerprint: bytes = b""

    def __post_init__(self) -> None:
        check_request_id(self.request_id)
        if not (0 <= self.index < 1 << 63 and 0 <= self.token_id < 1 << 63):
            raise CommitmentFieldError(f"token {self.token_id} at {self.index} is out of range")
        if len(self.salt) != SALT_BYTES or len(self.fingerprint) > MAX_FINGERPRINT_BYTES:
            raise CommitmentFieldError(f"token {self.index} has a salt or fingerprint of the wrong length")

    def encode(self) -> bytes:
        """The leaf's bytes."""
        return b"".join(
            (
                LABEL,
                _field(1, self.request_id.encode()),
                _field(2, self.index.to_bytes(8, "big")),
                _field(3, self.token_id.to_bytes(8, "big")),
                _field(4, self.fingerprint),
                _field(5, self.salt),
            )
        )

    def hash(self) -> bytes:
        """The leaf's hash in the response's tree."""
        return leaf_hash(self.encode())


def check_request_id(request_id: str) -> None:
    """Refuse ids that a head could not carry on one line.

    Raises:
        CommitmentFieldError: empty, too long, or with control characters or spaces.
    """
    if (
        not request_id.isprintable()
        or not 0 < len(request_id.encode()) <= MAX_REQUEST_ID_BYTES
        or " " in request_id
    ):
        raise CommitmentFieldError(f"{request_id[:60]!r} is no request id")


class Salts:
    """Salt of every leaf of one response, from a key that the provider keeps for the session.

    Args:
        session_key: at least 32 random bytes; opening some salts says nothing about the others.
        request_id: the response.

    Raises:
        CommitmentFieldError: a key too short.
    """

    def __init__(self, session_key: bytes, request_id: str) -> None:
        if len(session_key) < MIN_KEY_BYTES:
            raise CommitmentFieldError(
                f"a session key of {len(session_key)} bytes; use at least {MIN_KEY_BYTES}"
            )
        # HKDF-Extract with the request as salt, then HKDF-Expand with the index as info: one block suffices.
        self._key = hmac.digest(sha256(request_id.encode()).digest(), session_key, "sha256")

    def salt(self, index: int) -> bytes:
        """16 bytes for one leaf."""
        info = b"auditor.token-salt/v1" + index.to_bytes(8, "big")
        return hmac.digest(self._key, info + b"\x01", "sha256")[:SALT_BYTES]
