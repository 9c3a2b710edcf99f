"""Every error this project raises; those of commitments to hidden tokens have `commitment_errors.py`.

The one leaf of the package: all rooms may import it, it imports none of them. Each class has a
stable `code`, which is what the command line prints and what the HTTP API uses as the problem type
(RFC 9457). `str(error)` is always one line: where it happened, what is wrong, how to mend it.
"""

from __future__ import annotations


class AuditError(Exception):
    """Root of every error raised on purpose.

    Args:
        message: what is wrong, with expected and found values.
        where: file and line, option, or trace id; empty when there is no place to point at.
        fix: what the reader can do about it; empty when nothing sensible can be said.
    """

    code = "internal"

    def __init__(self, message: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.where = where
        self.fix = " ".join(fix.split())

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} ({self.fix})" if self.fix else text


class UnusableInputError(AuditError):
    """Input or options from which no verdict can be made; exit status 2."""

    code = "input-unusable"


class OptionError(UnusableInputError):
    """A command-line option or API argument with a value that makes no sense."""

    code = "option-invalid"


class TraceSyntaxError(UnusableInputError):
    """A log line that is not a JSON object, is truncated, too long, or holds NaN or infinity."""

    code = "trace-syntax"


class TraceFieldError(UnusableInputError):
    """A log line whose JSON is fine but whose field is missing, mistyped or out of range."""

    code = "trace-field"


class TokenOutOfRangeError(TraceFieldError):
    """A token id that the model's vocabulary does not hold."""

    code = "token-out-of-range"


class ContextLengthError(TraceFieldError):
    """Prompt and output together exceed the positions the model was built for."""

    code = "context-length"


class TraceFileError(UnusableInputError):
    """A trace file that is missing, unreadable, of an unknown format, or empty."""

    code = "trace-file"


class ModelNotFoundError(UnusableInputError):
    """A model directory, or a file it must hold, does not exist."""

    code = "model-not-found"


class ModelUnsafeError(UnusableInputError):
    """A checkpoint in a format that can run code when it is opened (pickle), or that asks for remote code."""

    code = "model-unsafe"


class ModelUnsupportedError(UnusableInputError):
    """A configuration that the reference runner does not implement exactly, so must refuse."""

    code = "model-unsupported"


class ModelCorruptError(UnusableInputError):
    """A checkpoint whose tensors are missing, misshapen or unreadable."""

    code = "model-corrupt"


class ProfileInvalidError(UnusableInputError):
    """A calibration profile that cannot be read or contradicts itself."""

    code = "profile-invalid"


class ProfileUnsignedError(UnusableInputError):
    """A calibration profile that carries no signature, where signatures are asked for."""

    code = "profile-unsigned"


class ProfileExpiredError(UnusableInputError):
    """A calibration profile that is no longer in force."""

    code = "profile-expired"


class ProfileRevokedError(UnusableInputError):
    """A calibration profile that a trusted key took back."""

    code = "profile-revoked"


class ProfileSupersededError(UnusableInputError):
    """A calibration profile made before the oldest that is still accepted for its recipe."""

    code = "profile-superseded"


class RevocationsError(UnusableInputError):
    """A list of revoked profiles that cannot be read, or that is out of date."""

    code = "revocations"


class CalibrationSuspectError(UnusableInputError):
    """Traffic handed in as honest does not look like traffic of one kind."""

    code = "calibration-suspect"


class PolicyInvalidError(UnusableInputError):
    """A policy of a schedule that cannot be read or asks for what there is not.

    Args:
        problems: one line each, at least one.
    """

    code = "policy-invalid"

    def __init__(self, problems: tuple[str, ...]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = problems


class OutputExistsError(UnusableInputError):
    """A file that would have been overwritten."""

    code = "output-exists"


class StoreError(AuditError):
    """The database cannot be reached, opened or written, or its schema is not the one we know."""

    code = "store"


class CaptureError(AuditError):
    """An engine whose tokens cannot be recorded rightly, or a trace file that cannot be appended to."""

    code = "capture"


class CannotScoreError(AuditError):
    """Evidence that cannot be scored exactly: the verdict becomes `inconclusive`, never a pass."""

    code = "cannot-score"


class NoiseUnknownError(CannotScoreError):
    """A noise scheme or engine version whose draws we cannot replay."""

    code = "noise-unknown"


class SamplingUnsupportedError(CannotScoreError):
    """A sampling feature that the scorer does not model."""

    code = "sampling-unsupported"


class TraceIncompleteError(CannotScoreError):
    """A trace that lacks what a replay needs: token ids, a prompt, or a seed."""

    code = "trace-incomplete"


class VerificationFailedError(AuditError):
    """Something that was signed, proved or committed to does not hold; exit status 1, never a pass."""

    code = "verification-failed"


class HashLengthError(UnusableInputError):
    """A hash that is not 32 bytes long."""

    code = "hash-length"


class TreeSizeError(UnusableInputError):
    """A tree size that cannot be: negative, zero where a leaf is needed, or beyond what the tree holds."""

    code = "tree-size"


class LeafIndexError(UnusableInputError):
    """A leaf index at or beyond the tree's size, or a set of them that is not sorted and distinct."""

    code = "leaf-index"


class SubtreeRangeError(UnusableInputError):
    """A range of leaves that is not a subtree: start not a multiple of the covering power of two."""

    code = "subtree-range"


class ProofLengthError(VerificationFailedError):
    """A proof with fewer or more hashes than its sizes and indices call for."""

    code = "proof-length"


class ProofRootError(VerificationFailedError):
    """A proof that leads to another root than the one claimed."""

    code = "proof-root"


class NoteSyntaxError(UnusableInputError):
    """Bytes that are no signed note (C2SP signed-note)."""

    code = "note-syntax"


class CheckpointSyntaxError(UnusableInputError):
    """A note whose text is no checkpoint (C2SP tlog-checkpoint)."""

    code = "checkpoint-syntax"


class ReceiptSyntaxError(UnusableInputError):
    """Bytes that are no receipt (C2SP tlog-proof)."""

    code = "receipt-syntax"


class PolicySyntaxError(UnusableInputError):
    """A trust policy that cannot be read (C2SP tlog-policy)."""

    code = "policy-syntax"


class KeySyntaxError(UnusableInputError):
    """A public or private key that cannot be read, or whose key id does not fit it."""

    code = "key-syntax"


class KeyFileError(UnusableInputError):
    """A key file that is missing, readable by others, encrypted with another passphrase, or in the way."""

    code = "key-file"


class KeyUnknownError(VerificationFailedError):
    """A note that none of the trusted keys has signed."""

    code = "key-unknown"


class SignatureInvalidError(VerificationFailedError):
    """A signature line of a trusted key that does not verify."""

    code = "signature-invalid"


class QuorumMissingError(VerificationFailedError):
    """A checkpoint with fewer witness cosignatures than the policy asks for."""

    code = "quorum-missing"


class OriginUnknownError(VerificationFailedError):
    """A checkpoint of another log than the one expected."""

    code = "origin-unknown"


class LogForkError(VerificationFailedError):
    """A tree that does not continue the one that was signed before."""

    code = "log-fork"


class LogShrinkError(VerificationFailedError):
    """A tree smaller than the one that was signed before."""

    code = "log-shrink"


class LogStateError(UnusableInputError):
    """A log's or witness's folder that is missing, in the way, or contradicts itself."""

    code = "log-state"


class TileError(UnusableInputError):
    """A tile or entry bundle that is missing, or whose name or length is wrong (C2SP tlog-tiles)."""

    code = "tile-invalid"


class EntrySizeError(UnusableInputError):
    """A log entry longer than an entry bundle can hold (65,535 bytes)."""

    code = "entry-size"


class WitnessRequestError(UnusableInputError):
    """A witness request that is malformed, or says an old size beyond the new one (HTTP 400)."""

    code = "witness-request"


class WitnessConflictError(VerificationFailedError):
    """A witness request that starts from another size than the witness saw last (HTTP 409).

    Args:
        size: leaves of the last checkpoint the witness cosigned.
    """

    code = "witness-conflict"

    def __init__(self, message: str, *, size: int, where: str = "", fix: str = "") -> None:
        super().__init__(message, where=where, fix=fix)
        self.size = size


class FingerprintError(CannotScoreError):
    """An activation fingerprint that cannot be read: not this format, cut short, or with bytes left over."""

    code = "fingerprint-malformed"


class FingerprintUnsupportedError(FingerprintError):
    """A fingerprint of a version, code or layer that is not known here."""

    code = "fingerprint-unsupported"


class FingerprintLengthError(FingerprintError):
    """A fingerprint that covers another number of tokens than the output has."""

    code = "fingerprint-length"


class FingerprintValueError(FingerprintError):
    """A fingerprint that holds NaN, infinity or a level outside its code."""

    code = "fingerprint-value"


class FingerprintCorruptedError(FingerprintError):
    """A fingerprint whose bytes are not those that its check sum was made of."""

    code = "fingerprint-corrupted"


class FingerprintReplayedError(FingerprintError):
    """A fingerprint that was made for another request."""

    code = "fingerprint-replayed"


class FingerprintUncalibratedError(CannotScoreError):
    """A fingerprint of a kind for which the profile holds no honest distances."""

    code = "fingerprint-uncalibrated"


class FingerprintOpeningError(FingerprintError):
    """An answer to a challenge that does not fit what was committed to or asked for."""

    code = "fingerprint-opening"
