"""Signed notes (C2SP signed-note): text, a blank line, signature lines.

Invariants:

1. what is parsed is written back byte for byte;
2. signatures of unknown keys are ignored; one of a known key that does not verify condemns the whole note;
3. a note without a valid signature of a known key has no text: `open_note` is the only way to a trusted one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from auditor.errors import KeySyntaxError, KeyUnknownError, NoteSyntaxError, SignatureInvalidError
from auditor.merkle.encoding import decode_base64, encode_base64
from auditor.merkle.keys import Algorithm, PublicKey, Signer, check_name

MAX_NOTE_BYTES = 1_000_000
MAX_SIGNATURES = 100
_LINE = re.compile(r"— (\S+) (\S+)")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIGNED = "\n\n— "


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: key name, key id, signature bytes (for cosignatures with timestamp)."""

    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        """As written in a note, with line end."""
        return f"— {self.name} {encode_base64(self.key_id + self.signature)}\n"

    def is_of(self, key: PublicKey) -> bool:
        """Whether it claims to be this key's."""
        return self.name == key.name and self.key_id == key.key_id


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A text, which ends in a line end, and who says to have signed it. Nothing is verified.

    Raises:
        NoteSyntaxError: a text that could not be read back.
    """

    text: str
    signatures: tuple[NoteSignature, ...]

    def __post_init__(self) -> None:
        if not self.text.endswith("\n") or _CONTROL.search(self.text):
            raise NoteSyntaxError("a note's text ends in a line end and has no other control characters")

    def serialize(self) -> bytes:
        """The note's bytes."""
        return (self.text + "\n" + "".join(s.line() for s in self.signatures)).encode()

    def with_signatures(self, more: Iterable[NoteSignature]) -> SignedNote:
        """The same text with more lines; those it has already are not repeated."""
        fresh = [s for s in dict.fromkeys(more) if s not in self.signatures]
        return SignedNote(self.text, (*self.signatures, *fresh))


def parse_signature_lines(text: str, where: str = "") -> tuple[NoteSignature, ...]:
    """Read signature lines.

    Raises:
        NoteSyntaxError: another line among them, too many, or a signature that cannot be read.
    """
    if text and not text.endswith("\n"):
        raise NoteSyntaxError("the last signature line is cut off", where=where)
    lines = text.split("\n")[:-1]
    if len(lines) > MAX_SIGNATURES:
        raise NoteSyntaxError(f"more than {MAX_SIGNATURES} signatures", where=where)
    found = []
    for line in lines:
        match = _LINE.fullmatch(line)
        body = decode_base64(match[2]) if match else None
        if match is None or body is None or len(body) < 5:
            raise NoteSyntaxError(f"{line[:40]!r} is no signature line", where=where)
        try:
            check_name(match[1])
        except KeySyntaxError as error:
            raise NoteSyntaxError(error.message, where=where) from None
        found.append(NoteSignature(match[1], body[:4], body[4:]))
    return tuple(found)


def parse_note(raw: bytes, where: str = "") -> SignedNote:
    """Read a signed note without trusting it.

    Raises:
        NoteSyntaxError: too long, not UTF-8, no text, no signature, or a line that is none.
    """
    if len(raw) > MAX_NOTE_BYTES:
        raise NoteSyntaxError(f"longer than {MAX_NOTE_BYTES} bytes", where=where)
    try:
        whole = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NoteSyntaxError(f"byte {error.start + 1} is not UTF-8", where=where) from None
    if _CONTROL.search(whole):
        raise NoteSyntaxError("control characters other than line ends", where=where)
    # The last empty line separates; a text may hold others.
    split = whole.rfind(_SIGNED)
    if split < 0 or "\n\n" in whole[split + 2 :]:
        raise NoteSyntaxError("no text, blank line and signature lines", where=where)
    return SignedNote(whole[: split + 1], parse_signature_lines(whole[split + 2 :], where))


def sign_note(note: SignedNote, signer: Signer) -> SignedNote:
    """Add an Ed25519 signature over the text (type 0x01).

    Raises:
        KeySyntaxError: a key that signs tree heads only.
    """
    key = signer.public
    if key.algorithm is not Algorithm.ED25519:
        raise KeySyntaxError(f"{key.name} signs checkpoints only", fix="use a key of type 0x01")
    return note.with_signatures([NoteSignature(key.name, key.key_id, signer.sign(note.text.encode()))])


def open_note(note: SignedNote, keys: Iterable[PublicKey], where: str = "") -> tuple[PublicKey, ...]:
    """Check a note's plain signatures (type 0x01); returns the known keys that signed it.

    Raises:
        SignatureInvalidError: a line of a known key does not verify.
        KeyUnknownError: no known key signed.
    """
    signed = []
    for key in keys:
        for signature in note.signatures:
            if signature.is_of(key):
                if len(signature.signature) != key.algorithm.signature_bytes:
                    raise SignatureInvalidError(
                        f"a signature of {key.name} has the wrong length", where=where
                    )
                key.verify(note.text.encode(), signature.signature)
                signed.append(key)
                break
    if not signed:
        raise no_known_key(note, where)
    return tuple(signed)


def no_known_key(note: SignedNote, where: str = "") -> KeyUnknownError:
    """The error that names who did sign."""
    names = ", ".join(f"{s.name}+{s.key_id.hex()}" for s in note.signatures[:4])
    return KeyUnknownError(f"no trusted key signed it; it has signatures of {names or 'nobody'}", where=where)
