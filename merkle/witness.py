"""What a witness decides (C2SP tlog-witness, `add-checkpoint`); pure: state and keys come in as arguments.

The caller must store the accepted head before it signs, and let nobody else in between
(`auditor/witness.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from auditor.errors import (
    LogForkError,
    OriginUnknownError,
    ProofLengthError,
    ProofRootError,
    WitnessConflictError,
    WitnessRequestError,
)
from auditor.merkle.checkpoints import Checkpoint, parse_checkpoint, verify_checkpoint
from auditor.merkle.encoding import decode_base64, decode_decimal, encode_base64
from auditor.merkle.hashing import HASH_BYTES
from auditor.merkle.keys import PublicKey
from auditor.merkle.notes import SignedNote
from auditor.merkle.proofs import verify_consistency

MAX_PROOF = 63


@dataclass(frozen=True, slots=True)
class WitnessRequest:
    """A checkpoint with the proof that it extends the one of `old_size` leaves. Nothing is verified."""

    old_size: int
    proof: tuple[bytes, ...]
    note: SignedNote
    checkpoint: Checkpoint

    def serialize(self) -> bytes:
        """The request's body."""
        lines = [f"old {self.old_size}", *map(encode_base64, self.proof), "", ""]
        return "\n".join(lines).encode() + self.note.serialize()


def parse_request(raw: bytes, where: str = "") -> WitnessRequest:
    """Read a request without trusting it.

    Raises:
        WitnessRequestError: old size or proof cannot be read.
        NoteSyntaxError, CheckpointSyntaxError: no checkpoint follows.
    """
    head, blank, rest = raw.partition(b"\n\n")
    try:
        first, *lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise WitnessRequestError("the part above the checkpoint is not ASCII", where=where) from None
    old_size = decode_decimal(first.removeprefix("old ")) if first.startswith("old ") else None
    if not blank or old_size is None:
        raise WitnessRequestError("a request begins with `old SIZE`, a proof and a blank line", where=where)
    proof = [decode_base64(line) or b"" for line in lines]
    if len(proof) > MAX_PROOF or any(len(value) != HASH_BYTES for value in proof):
        raise WitnessRequestError("a line of the proof is no hash, or there are too many", where=where)
    return WitnessRequest(old_size, tuple(proof), *parse_checkpoint(rest, where))


def judge(request: WitnessRequest, last: tuple[int, bytes] | None, log_keys: Iterable[PublicKey]) -> None:
    """Whether to cosign: returns when the checkpoint is the log's and extends what the witness saw last.

    Args:
        request: what was asked.
        last: size and root of this origin's last cosigned checkpoint; None when there is none.
        log_keys: keys of all logs this witness watches.

    Raises:
        OriginUnknownError: no such log (HTTP 404).
        KeyUnknownError, SignatureInvalidError: not signed by it (HTTP 403).
        WitnessRequestError: the old size is beyond the checkpoint (HTTP 400).
        WitnessConflictError: the witness saw another size last (HTTP 409).
        LogForkError: the same size with another root (HTTP 409), or a proof that does not hold (HTTP 422).
    """
    head = request.checkpoint
    keys: Sequence[PublicKey] = [key for key in log_keys if key.name == head.origin]
    if not keys:
        raise OriginUnknownError(f"this witness does not watch {head.origin[:80]!r}")
    verify_checkpoint(request.note, head, keys)
    if request.old_size > head.size:
        raise WitnessRequestError(f"old size {request.old_size} is beyond the checkpoint's {head.size}")
    size, root = last or (0, b"")
    if request.old_size != size:
        raise WitnessConflictError(f"the last checkpoint seen has {size} leaves", size=size)
    if size == 0:
        if request.proof:
            raise LogForkError("a proof from old size 0 has to be empty")
        return
    try:
        verify_consistency(size, head.size, request.proof, root, head.root)
    except (ProofRootError, ProofLengthError) as error:
        raise LogForkError(f"{head.origin} does not extend its {size} leaves: {error.message}") from None
