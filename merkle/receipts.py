"""Receipts: C2SP tlog-proof files. With the entry and a policy they verify offline, without the service.

Numbered steps of `verify_receipt`, the same in `auditor/standalone_verifier.py`:

1. the checkpoint inside is of a log of the policy, and that log's key signed it;
2. the quorum of witnesses cosigned it;
3. the leaf hash of the entry at the index, with the path, leads to the checkpoint's root at its size.

What the receipt calls `extra` is not covered by any signature, and is never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from auditor.errors import ReceiptSyntaxError
from auditor.merkle.checkpoints import Checkpoint, parse_checkpoint_text
from auditor.merkle.encoding import decode_base64, decode_decimal, encode_base64
from auditor.merkle.hashing import HASH_BYTES, leaf_hash
from auditor.merkle.notes import MAX_NOTE_BYTES, SignedNote, parse_note
from auditor.merkle.policy import Approval, Policy
from auditor.merkle.proofs import verify_inclusion

HEADER = "c2sp.org/tlog-proof@v1"
MAX_PATH = 63
MAX_RECEIPT_BYTES = 2 * MAX_NOTE_BYTES


@dataclass(frozen=True, slots=True)
class Receipt:
    """An inclusion proof with the checkpoint it leads to. Nothing is verified.

    Args:
        index: the entry's position in the log.
        path: hashes from the leaf's sibling up, 32 bytes each.
        note: the signed checkpoint.
        extra: unauthenticated bytes; empty when there are none.
    """

    index: int
    path: tuple[bytes, ...]
    note: SignedNote
    extra: bytes = b""

    def serialize(self) -> bytes:
        """The file's bytes."""
        lines = [HEADER]
        if self.extra:
            lines.append(f"extra {encode_base64(self.extra)}")
        lines += [f"index {self.index}", *map(encode_base64, self.path), "", ""]
        return "\n".join(lines).encode() + self.note.serialize()

    def checkpoint(self, where: str = "") -> Checkpoint:
        """The tree head inside, not verified.

        Raises:
            CheckpointSyntaxError: the note is none.
        """
        return parse_checkpoint_text(self.note.text, where)


def parse_receipt(raw: bytes, where: str = "") -> Receipt:
    """Read a receipt without trusting it.

    Raises:
        ReceiptSyntaxError: a line that is wrong.
        NoteSyntaxError: what follows the path is no signed note.
    """
    if len(raw) > MAX_RECEIPT_BYTES:
        raise ReceiptSyntaxError(f"longer than {MAX_RECEIPT_BYTES} bytes", where=where)
    head, blank, note = raw.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise ReceiptSyntaxError("the part above the checkpoint is not ASCII", where=where) from None
    if not blank or lines.pop(0) != HEADER:
        raise ReceiptSyntaxError(f"no receipt: it does not begin with {HEADER!r}", where=where)
    extra = b""
    if lines and lines[0].startswith("extra "):
        decoded = decode_base64(lines.pop(0).removeprefix("extra "))
        if decoded is None:
            raise ReceiptSyntaxError("the extra line is not base64", where=where)
        extra = decoded
    index = (
        decode_decimal(lines[0].removeprefix("index ")) if lines and lines[0].startswith("index ") else None
    )
    if index is None:
        raise ReceiptSyntaxError("no index line", where=where)
    path = [decode_base64(line) for line in lines[1:]]
    if len(path) > MAX_PATH:
        raise ReceiptSyntaxError(f"a path of more than {MAX_PATH} hashes", where=where)
    hashes = tuple(value for value in path if value is not None and len(value) == HASH_BYTES)
    if len(hashes) != len(path):
        raise ReceiptSyntaxError("a line of the path is no hash", where=where)
    return Receipt(index, hashes, parse_note(note, where), extra)


def verify_receipt(receipt: Receipt, entry: bytes, policy: Policy, where: str = "") -> Approval:
    """Check by the steps of this module that the entry is in a trusted log; returns who vouches for it.

    Raises:
        CheckpointSyntaxError, OriginUnknownError, KeyUnknownError, SignatureInvalidError: step 1.
        QuorumMissingError: step 2.
        TreeSizeError, LeafIndexError, ProofLengthError, ProofRootError: step 3.
    """
    checkpoint = receipt.checkpoint(where)
    approval = policy.check(receipt.note, checkpoint, where)
    verify_inclusion(leaf_hash(entry), receipt.index, checkpoint.size, receipt.path, checkpoint.root)
    return approval
