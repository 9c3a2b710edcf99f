"""What can be wrong with a report, an envelope or an evidence pack. Each has a code of its own."""

from __future__ import annotations

from auditor.errors import UnusableInputError, VerificationFailedError


class ReportDiffersError(VerificationFailedError):
    """A report that comes out otherwise when it is made again: the database was altered, or the tool was."""

    code = "report-differs"


class EnvelopeSyntaxError(UnusableInputError):
    """Bytes that are no DSSE envelope around an in-toto statement."""

    code = "envelope-syntax"


class PackSyntaxError(UnusableInputError):
    """Bytes that are no evidence pack: not a zip, too large, or with members that no pack has."""

    code = "pack-syntax"


class PackAlteredError(VerificationFailedError):
    """A pack whose archive is not byte for byte what its members make."""

    code = "pack-altered"


class PackMemberError(VerificationFailedError):
    """A member that is not the one that was signed, that nobody signed, or that is missing."""

    code = "pack-member"


class StatementMismatchError(VerificationFailedError):
    """A signed statement that is about another report, or says something else than the report."""

    code = "statement-mismatch"


class EntryMismatchError(VerificationFailedError):
    """A log entry that tells of another report or of other statements."""

    code = "entry-mismatch"


class PolicyMismatchError(VerificationFailedError):
    """A policy file that is not the one the report was made by."""

    code = "policy-mismatch"


class DisclosureMismatchError(VerificationFailedError):
    """A disclosed text that does not open its commitment in the report."""

    code = "disclosure-mismatch"


class KeyStaleError(VerificationFailedError):
    """A signature by a key outside the time in which it was in force."""

    code = "key-stale"


class ReportInvalidError(VerificationFailedError):
    """A signed `report.json` that is not in canonical form or of another schema."""

    code = "report-invalid"


class TimeStampMissingError(VerificationFailedError):
    """A pack without the time stamp that its reader asks for."""

    code = "time-stamp-missing"


class TimeStampSyntaxError(VerificationFailedError):
    """Bytes that are no RFC 3161 time stamp that we can read."""

    code = "time-stamp-syntax"


class TimeStampRefusedError(VerificationFailedError):
    """A time-stamping authority that cannot be asked, or that granted nothing."""

    code = "time-stamp-refused"


class TimeStampMismatchError(VerificationFailedError):
    """A time stamp of other bytes or another query, or of a time before what it stamps was made."""

    code = "time-stamp-mismatch"


class TimeStampUntrustedError(VerificationFailedError):
    """A time stamp that no trusted authority signed: wrong root, signature, validity or key usage."""

    code = "time-stamp-untrusted"
