"""Signed tree heads (C2SP tlog-checkpoint) and the signatures on them (tlog-cosignature).

A checkpoint's signature binds origin, size and root together; sizes and roots used anywhere else come from
here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from auditor.errors import CheckpointSyntaxError, SignatureInvalidError
from auditor.merkle.encoding import decode_base64, decode_decimal, encode_base64
from auditor.merkle.hashing import HASH_BYTES
from auditor.merkle.keys import Algorithm, PublicKey, Signer
from auditor.merkle.nodes import MAX_SIZE
from auditor.merkle.notes import NoteSignature, SignedNote, no_known_key, parse_note


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's tree head.

    Args:
        origin: which log; equals the name of its key.
        size: number of leaves.
        root: RFC 6962 root of that many leaves, 32 bytes.
        extensions: further lines, opaque; ours have none.

    Raises:
        CheckpointSyntaxError: a value that could not be read back.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lines = (self.origin, *self.extensions)
        if any(not line or any(c < " " for c in line) for line in lines) or len(self.origin.encode()) > 255:
            raise CheckpointSyntaxError("the origin or an extension is empty, too long, or not one line")
        if not 0 <= self.size < MAX_SIZE or len(self.root) != HASH_BYTES:
            raise CheckpointSyntaxError(f"a head of {self.size} leaves with a root of {len(self.root)} bytes")

    def text(self) -> str:
        """The note text."""
        return "\n".join((self.origin, str(self.size), encode_base64(self.root), *self.extensions, ""))


def parse_checkpoint_text(text: str, where: str = "") -> Checkpoint:
    """Read a checkpoint from a note's text.

    Raises:
        CheckpointSyntaxError: fewer than three lines, or a size or root that cannot be read.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1]:
        raise CheckpointSyntaxError("a checkpoint has an origin, a size and a root, a line each", where=where)
    size, root = decode_decimal(lines[1]), decode_base64(lines[2])
    if size is None:
        raise CheckpointSyntaxError(f"{lines[1][:30]!r} is no tree size", where=where)
    if root is None or len(root) != HASH_BYTES:
        raise CheckpointSyntaxError(f"{lines[2][:50]!r} is no root hash", where=where)
    try:
        return Checkpoint(lines[0], size, root, tuple(lines[3:-1]))
    except CheckpointSyntaxError as error:
        raise CheckpointSyntaxError(error.message, where=where) from None


def parse_checkpoint(raw: bytes, where: str = "") -> tuple[SignedNote, Checkpoint]:
    """Read a signed checkpoint without trusting it.

    Raises:
        NoteSyntaxError: no signed note.
        CheckpointSyntaxError: its text is no checkpoint.
    """
    note = parse_note(raw, where)
    return note, parse_checkpoint_text(note.text, where)


def signed_message(key: PublicKey, checkpoint: Checkpoint, timestamp: int) -> bytes:
    """What a key of this kind signs for a checkpoint.

    Args:
        key: the signing key; ML-DSA-44 covers its name too.
        checkpoint: the head.
        timestamp: POSIX seconds; unused by type 0x01.
    """
    text = checkpoint.text()
    if key.algorithm is Algorithm.ED25519:
        return text.encode()
    if key.algorithm is Algorithm.ED25519_COSIGNATURE:
        return f"cosignature/v1\ntime {timestamp}\n{text}".encode()
    name, origin = key.name.encode(), checkpoint.origin.encode()
    return b"".join(
        (
            b"subtree/v1\n\x00",
            bytes([len(name)]) + name,
            struct.pack(">Q", timestamp),
            bytes([len(origin)]) + origin,
            struct.pack(">QQ", 0, checkpoint.size),
            checkpoint.root,
        )
    )


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer, timestamp: int) -> NoteSignature:
    """One signature line for a checkpoint, by a log or a witness.

    Args:
        checkpoint: the head.
        signer: the key.
        timestamp: POSIX seconds, from the caller's clock.
    """
    key = signer.public
    signature = signer.sign(signed_message(key, checkpoint, timestamp))
    stamp = struct.pack(">Q", timestamp) if key.algorithm.timestamped else b""
    return NoteSignature(key.name, key.key_id, stamp + signature)


@dataclass(frozen=True, slots=True)
class Endorsement:
    """A verified signature: whose, and when made (POSIX seconds; None for type 0x01)."""

    key: PublicKey
    timestamp: int | None


def verify_checkpoint(
    note: SignedNote, checkpoint: Checkpoint, keys: Iterable[PublicKey], where: str = ""
) -> tuple[Endorsement, ...]:
    """Check every line of a known key; returns who endorsed the checkpoint, in the keys' order.

    Raises:
        SignatureInvalidError: a line of a known key does not verify.
        KeyUnknownError: none of the known keys signed.
    """
    found = []
    for key in keys:
        mine = [s for s in note.signatures if s.is_of(key)]
        # A key may have cosigned at several times; each line must hold, the latest counts.
        checked = [Endorsement(key, _verify(s.signature, key, checkpoint, where)) for s in mine]
        if checked:
            found.append(max(checked, key=lambda e: e.timestamp or 0))
    if not found:
        raise no_known_key(note, where)
    return tuple(found)


def _verify(signature: bytes, key: PublicKey, checkpoint: Checkpoint, where: str) -> int | None:
    stamp = 8 if key.algorithm.timestamped else 0
    if len(signature) != stamp + key.algorithm.signature_bytes:
        raise SignatureInvalidError(f"a signature of {key.name} has {len(signature)} bytes", where=where)
    timestamp = int.from_bytes(signature[:stamp], "big")
    if timestamp >= MAX_SIZE:
        raise SignatureInvalidError(f"a signature of {key.name} has an impossible time", where=where)
    try:
        key.verify(signed_message(key, checkpoint, timestamp), signature[stamp:])
    except SignatureInvalidError as error:
        raise SignatureInvalidError(error.message, where=where) from None
    return timestamp if stamp else None
