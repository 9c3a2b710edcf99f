"""Errors of commitments to hidden tokens: as `errors.py`, whose root they share, and as open to all rooms."""

from __future__ import annotations

from auditor.errors import UnusableInputError, VerificationFailedError


class CommitmentFieldError(UnusableInputError):
    """A field of a token commitment that is out of range or of the wrong length."""

    code = "commitment-field"


class CommitmentHeadError(UnusableInputError):
    """A signed note that is no token head."""

    code = "commitment-head"


class HeadChainError(VerificationFailedError):
    """Streamed heads of one response that contradict each other, or do not end in a final one."""

    code = "head-chain"


class ChallengeMismatchError(VerificationFailedError):
    """An opening of another challenge, or a challenge of another head."""

    code = "challenge-mismatch"


class ChallengeReplayedError(VerificationFailedError):
    """An opening that was made for an earlier challenge of the same head: its nonce is another."""

    code = "challenge-replayed"


class HeadSwappedError(VerificationFailedError):
    """A signed head that belongs to another response than the one it came with."""

    code = "head-swapped"


class OpeningIncompleteError(VerificationFailedError):
    """An opening that withholds challenged tokens or brings others."""

    code = "opening-incomplete"


class LeafMismatchError(VerificationFailedError):
    """An opened token or embedding that is not the one committed to at its place."""

    code = "leaf-mismatch"


class SaltForeignError(VerificationFailedError):
    """A salt that is not the one its leaf was committed to with: of another session, response or place."""

    code = "salt-foreign"


class OpeningSyntaxError(UnusableInputError):
    """A commitment, challenge, opening or kept record that is cut short or not of its format."""

    code = "opening-syntax"


class CountMismatchError(VerificationFailedError):
    """A response that bills other token counts than its provider signed.

    Args:
        billed, signed: the counts; None where the log does not say what was billed.
    """

    code = "count-mismatch"

    def __init__(self, message: str, *, billed: int | None, signed: int, where: str = "") -> None:
        super().__init__(message, where=where)
        self.billed, self.signed = billed, signed


class CommittedLateError(VerificationFailedError):
    """Hidden tokens that were not committed to before the first visible token came.

    Args:
        by_clock: the client's clock says so, and not the signed heads themselves.
    """

    code = "committed-late"

    def __init__(self, message: str, *, by_clock: bool, where: str = "") -> None:
        super().__init__(message, where=where)
        self.by_clock = by_clock


class SessionKeyError(UnusableInputError):
    """A session key whose salts do not lead to the root that was signed."""

    code = "session-key"


class EmbeddingForgedError(VerificationFailedError):
    """An embedding fingerprint that is not of the opened text."""

    code = "embedding-forged"


class EmbedderUnknownError(UnusableInputError):
    """An embedder that is not known here, or whose extra is not installed."""

    code = "embedder-unknown"


class ExposureError(UnusableInputError):
    """A challenge that would show the auditor more of a response than agreed."""

    code = "exposure"
