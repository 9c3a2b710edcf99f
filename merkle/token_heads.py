"""Signed heads of a token commitment, streamed while the response is made; the bill is inside the signature.

A head is a C2SP signed note of `name value` lines in a fixed order. Heads of one response form a chain:
numbered, never smaller, each an extension of the one before (RFC 9162 consistency), with the same
declarations throughout. The last one says `final yes`; only a final head states what is billed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Final

from auditor.commitment_errors import CommitmentFieldError, CommitmentHeadError, HeadChainError
from auditor.merkle.encoding import decode_base64, decode_decimal, encode_base64
from auditor.merkle.hashing import HASH_BYTES
from auditor.merkle.keys import PublicKey, Signer
from auditor.merkle.nodes import MAX_SIZE
from auditor.merkle.notes import SignedNote, open_note, parse_note, sign_note
from auditor.merkle.proofs import verify_consistency
from auditor.merkle.token_leaves import check_request_id

SCHEMA: Final = "auditor.token-head/v1"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INTEGERS: Final = ("sequence", "hidden", "visible", "block", "time")


@dataclass(frozen=True, slots=True)
class TokenHead:
    """What a provider signs about the hidden tokens of one response.

    Args:
        request: id of the response.
        sequence: number of this head, from 0.
        hidden: hidden tokens so far: the size of the tree.
        visible: visible tokens so far.
        root: root over the hidden tokens' leaves, 32 bytes.
        block: tokens that are opened together.
        model, tokenizer, embedder: `sha256:` digests; embedder may be `none`.
        time: POSIX seconds by the provider's clock.
        final: whether the response is complete.

    Raises:
        CommitmentFieldError: a field out of range.
    """

    request: str
    sequence: int
    hidden: int
    visible: int
    root: bytes
    block: int
    model: str
    tokenizer: str
    embedder: str
    time: int
    final: bool

    def __post_init__(self) -> None:
        check_request_id(self.request)
        if not all(0 <= getattr(self, name) < MAX_SIZE for name in _INTEGERS) or self.block < 1:
            raise CommitmentFieldError("a count of the head is out of range")
        if len(self.root) != HASH_BYTES:
            raise CommitmentFieldError(f"a root of {len(self.root)} bytes")
        digests = (self.model, self.tokenizer, *(() if self.embedder == "none" else (self.embedder,)))
        if not all(_DIGEST.fullmatch(digest) for digest in digests):
            raise CommitmentFieldError("a digest of the head is not sha256: and 64 hexadecimal digits")

    @property
    def blocks(self) -> int:
        """Number of blocks; the last may be short."""
        return -(-self.hidden // self.block)

    def block_range(self, block: int) -> range:
        """Indices of a block's tokens."""
        return range(block * self.block, min((block + 1) * self.block, self.hidden))

    def text(self) -> str:
        """The note's text."""
        lines = [SCHEMA]
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bytes):
                value = encode_base64(value)
            elif isinstance(value, bool):
                value = "yes" if value else "no"
            lines.append(f"{field.name} {value}")
        return "\n".join([*lines, ""])


def parse_head_text(text: str, where: str = "") -> TokenHead:
    """Read a head from a note's text.

    Raises:
        CommitmentHeadError: not exactly what `TokenHead.text` writes.
    """
    lines = text.split("\n")
    names = [field.name for field in fields(TokenHead)]
    words = [line.partition(" ") for line in lines[1:-1]]
    if lines[0] != SCHEMA or lines[-1] or [word[0] for word in words] != names:
        raise CommitmentHeadError(f"no {SCHEMA} head", where=where)
    values: dict[str, object] = {word[0]: word[2] for word in words}
    values |= {name: decode_decimal(str(values[name])) for name in _INTEGERS}
    values["root"] = decode_base64(str(values["root"]))
    values["final"] = {"yes": True, "no": False}.get(str(values["final"]))
    unread = [name for name, value in values.items() if value is None]
    if unread:
        raise CommitmentHeadError(f"its {unread[0]} cannot be read", where=where)
    try:
        return TokenHead(**values)  # type: ignore[arg-type]  # each was read as what its field holds
    except CommitmentFieldError as error:
        raise CommitmentHeadError(error.message, where=where) from None


def sign_head(head: TokenHead, signer: Signer) -> bytes:
    """A signed head.

    Raises:
        KeySyntaxError: the key is not of type 0x01.
    """
    return sign_note(SignedNote(head.text(), ()), signer).serialize()


def open_head(raw: bytes, keys: Iterable[PublicKey], where: str = "") -> TokenHead:
    """A head that one of the keys signed.

    Raises:
        NoteSyntaxError, CommitmentHeadError: no signed head.
        KeyUnknownError, SignatureInvalidError: not signed by a known key.
    """
    note = parse_note(raw, where)
    open_note(note, keys, where)
    return parse_head_text(note.text, where)


def check_chain(heads: Sequence[TokenHead], proofs: Sequence[Sequence[bytes]]) -> TokenHead:
    """Check the streamed heads of one response; returns the final one.

    Args:
        heads: opened heads in the order they came.
        proofs: consistency proof from each head to the next; empty where the earlier one has no tokens.

    Raises:
        HeadChainError: a gap, another response or declaration, a count that falls, a head after the final
            one, or none that is final.
        TreeSizeError, HashLengthError, ProofLengthError, ProofRootError: a head does not extend the one
            before.
    """
    if not heads or len(proofs) != len(heads) - 1:
        raise HeadChainError(f"{len(heads)} heads with {len(proofs)} proofs between them")
    if [head.sequence for head in heads] != list(range(len(heads))):
        raise HeadChainError("heads are missing, repeated or out of order")
    for (old, new), proof in zip(pairwise(heads), proofs, strict=True):
        check_next(old, new, proof)
    if not heads[-1].final:
        raise HeadChainError("the last head is not final: the response is not complete")
    return heads[-1]


def check_next(old: TokenHead, new: TokenHead, proof: Sequence[bytes]) -> None:
    """Check that a head continues the one before it.

    Args:
        proof: consistency proof between the two; empty where the earlier one has no tokens.

    Raises:
        HeadChainError: a gap, another response or declaration, a count that falls, or a head after the final
            one.
        TreeSizeError, HashLengthError, ProofLengthError, ProofRootError: its tree does not extend the other.
    """
    if new.sequence != old.sequence + 1:
        raise HeadChainError(f"head {new.sequence} does not follow head {old.sequence}")
    if _declared(old) != _declared(new):
        raise HeadChainError(f"head {new.sequence} is of another response, or declares something else")
    if old.final or new.hidden < old.hidden or new.visible < old.visible or new.time < old.time:
        raise HeadChainError(f"head {new.sequence} follows a final one, or counts less than the one before")
    if old.hidden:
        verify_consistency(old.hidden, new.hidden, proof, old.root, new.root)


def _declared(head: TokenHead) -> tuple[object, ...]:
    return (head.request, head.block, head.model, head.tokenizer, head.embedder)
