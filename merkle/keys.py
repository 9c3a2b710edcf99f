"""Named keys and what they sign: C2SP signed-note's key ids and vkeys over Ed25519 and ML-DSA-44.

One algorithm byte decides what a signature covers:

    0x01  Ed25519 over a note's text                                     (signed-note)
    0x04  Ed25519 over a timestamp and a checkpoint's text, by a witness   (tlog-cosignature)
    0x06  ML-DSA-44 over the cosigner's name, a timestamp and a tree head   (tlog-cosignature)

The only file of this room that needs more than hashlib: `cryptography` does the arithmetic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from auditor.errors import KeySyntaxError, SignatureInvalidError
from auditor.merkle.encoding import decode_base64, encode_base64


class Algorithm(IntEnum):
    """Signature type bytes of signed-note that we sign and verify."""

    ED25519 = 0x01
    ED25519_COSIGNATURE = 0x04
    ML_DSA_44 = 0x06

    @property
    def public_bytes(self) -> int:
        """Length of a public key."""
        return 1312 if self is Algorithm.ML_DSA_44 else 32

    @property
    def signature_bytes(self) -> int:
        """Length of a bare signature, without timestamp."""
        return 2420 if self is Algorithm.ML_DSA_44 else 64

    @property
    def timestamped(self) -> bool:
        """Whether signatures begin with the time they were made (a cosignature)."""
        return self is not Algorithm.ED25519


SEED_BYTES = 32
"""Both algorithms' private keys are a seed of this length."""

_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")


def check_name(name: str) -> None:
    """Refuse names that could not stand in a signature line.

    Raises:
        KeySyntaxError: empty, longer than 255 bytes, or with a space, control character or plus sign.
    """
    if not _NAME.fullmatch(name) or len(name.encode()) > 255:
        raise KeySyntaxError(
            f"{name[:60]!r} is no key name", fix="use a URL without scheme, such as example.com/log"
        )


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A named key that can verify.

    Args:
        name: who signs; for a log its origin.
        algorithm: what its signatures cover.
        material: raw public key, 32 bytes (Ed25519) or 1,312 bytes (ML-DSA-44).

    Raises:
        KeySyntaxError: bad name, length or point.
    """

    name: str
    algorithm: Algorithm
    material: bytes
    key_id: bytes = field(init=False)
    _key: Ed25519PublicKey | MLDSA44PublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.material) != self.algorithm.public_bytes:
            raise KeySyntaxError(f"the public key of {self.name} is {len(self.material)} bytes long")
        head = self.name.encode() + b"\n" + bytes([self.algorithm])
        object.__setattr__(self, "key_id", sha256(head + self.material).digest()[:4])
        public: type[Ed25519PublicKey | MLDSA44PublicKey]
        public = MLDSA44PublicKey if self.algorithm is Algorithm.ML_DSA_44 else Ed25519PublicKey
        try:
            object.__setattr__(self, "_key", public.from_public_bytes(self.material))
        except ValueError as error:
            raise KeySyntaxError(f"the public key of {self.name} is none: {error}") from None

    @property
    def vkey(self) -> str:
        """The key as one word: name, key id in hex, base64 of type byte and key."""
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(bytes([self.algorithm]) + self.material)}"

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a bare signature.

        Raises:
            SignatureInvalidError: it is not this key's over this message.
        """
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            raise SignatureInvalidError(
                f"the signature of {self.name}+{self.key_id.hex()} is invalid"
            ) from None


def parse_vkey(text: str) -> PublicKey:
    """Read a vkey.

    Raises:
        KeySyntaxError: not of that form, an algorithm we do not know, or a key id that does not fit.
    """
    # Base64 may contain a plus sign; names and key ids may not.
    parts = text.split("+", 2)
    body = decode_base64(parts[2]) if len(parts) == 3 else None
    if not body:
        raise KeySyntaxError(f"{text[:60]!r} is no key", fix="a vkey reads NAME+KEYID+BASE64")
    try:
        algorithm = Algorithm(body[0])
    except ValueError:
        raise KeySyntaxError(f"{parts[0]} has a key of type {body[0]:#04x}, which is not supported") from None
    key = PublicKey(parts[0], algorithm, body[1:])
    if key.key_id.hex() != parts[1]:
        raise KeySyntaxError(
            f"{key.name} has the key id {parts[1][:20]}, but the key gives {key.key_id.hex()}"
        )
    return key


class Signer(Protocol):
    """Whatever can sign: a key in memory, a key file, a hardware module."""

    @property
    def public(self) -> PublicKey:
        """The key that verifies."""
        ...

    def sign(self, message: bytes) -> bytes:
        """A bare signature over the message."""
        ...


@dataclass(frozen=True, slots=True)
class SeedSigner:
    """A private key in memory: 32 bytes of seed, for either algorithm.

    Raises:
        KeySyntaxError: bad name or length.
    """

    name: str
    algorithm: Algorithm
    seed: bytes = field(repr=False)
    public: PublicKey = field(init=False)
    _key: Ed25519PrivateKey | MLDSA44PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise KeySyntaxError(f"the private key of {self.name} is {len(self.seed)} bytes long")
        key: Ed25519PrivateKey | MLDSA44PrivateKey
        if self.algorithm is Algorithm.ML_DSA_44:
            key = MLDSA44PrivateKey.from_seed_bytes(self.seed)
        else:
            key = Ed25519PrivateKey.from_private_bytes(self.seed)
        object.__setattr__(self, "_key", key)
        material = key.public_key().public_bytes_raw()
        object.__setattr__(self, "public", PublicKey(self.name, self.algorithm, material))

    def sign(self, message: bytes) -> bytes:
        """A bare signature: 64 bytes (Ed25519) or 2,420 (ML-DSA-44)."""
        return self._key.sign(message)
