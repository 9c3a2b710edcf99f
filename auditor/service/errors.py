"""What the service refuses: errors that answer an HTTP request, with the status they answer with.

Roots and conventions are in `auditor.errors`; these lie apart because only they have a status.
"""

from __future__ import annotations

from auditor.errors import AuditError, UnusableInputError


class ServiceError(AuditError):
    """A request that is refused.

    Attributes:
        status: of the HTTP answer.
        retry_after: whole seconds after which it may be tried again, None where that would not help.
    """

    code = "request"
    status = 400

    def __init__(
        self, message: str, *, where: str = "", fix: str = "", retry_after: int | None = None
    ) -> None:
        super().__init__(message, where=where, fix=fix)
        self.retry_after = retry_after


class RequestInvalidError(ServiceError):
    """A parameter, header or body that is missing, mistyped or out of range."""

    code = "request-invalid"
    status = 422


class BodyMalformedError(ServiceError):
    """A body that is not the JSON that was announced."""

    code = "body-malformed"


class UnauthenticatedError(ServiceError):
    """No key, or one that is unknown, expired or revoked."""

    code = "unauthenticated"
    status = 401


class SignInNeededError(UnauthenticatedError):
    """A page that is for those who are signed in."""

    code = "sign-in-needed"


class FormForgedError(ServiceError):
    """A form that does not come from a page of the same session, or comes from one that is over."""

    code = "form-forged"
    status = 403


class SignatureRefusedError(UnauthenticatedError):
    """A signed request whose signature is incomplete, wrong, too old or by an unknown key."""

    code = "signature-refused"


class SignatureReplayedError(UnauthenticatedError):
    """A signed request that was sent before: a nonce is good for one."""

    code = "signature-replayed"


class ScopeMissingError(ServiceError):
    """A key that may not do this."""

    code = "scope-missing"
    status = 403


class NotFoundError(ServiceError):
    """Nothing there, or not for this tenant: the two are never told apart."""

    code = "not-found"
    status = 404


class EvidenceErasedError(UnusableInputError):
    """A log whose bytes were erased: digests and log entries stay, but nothing can be audited anew."""

    code = "evidence-erased"
    status = 410


class MethodNotAllowedError(ServiceError):
    """A path that exists, but not for this method."""

    code = "method-not-allowed"
    status = 405


class NotFinishedError(ServiceError):
    """A verdict or its evidence before the audit is done."""

    code = "not-finished"
    status = 409


class ConflictError(ServiceError):
    """A change that no longer fits what it would change."""

    code = "conflict"
    status = 409


class BodyTooLargeError(ServiceError):
    """A body beyond the limit, as sent or when decompressed."""

    code = "body-too-large"
    status = 413


class MediaTypeError(ServiceError):
    """A body of a type or coding that is not read here."""

    code = "media-type"
    status = 415


class CompressionBombError(ServiceError):
    """Compressed bytes that stand for far more than themselves, or for compressed bytes again."""

    code = "compression-bomb"
    status = 422


class DigestMismatchError(ServiceError):
    """Bytes that are not those whose digest was announced."""

    code = "digest-mismatch"
    status = 422


class IdempotencyKeyMissingError(ServiceError):
    """A request that makes something, without an Idempotency-Key."""

    code = "idempotency-key-missing"


class IdempotencyKeyReusedError(ServiceError):
    """An Idempotency-Key that was used for another request."""

    code = "idempotency-key-reused"
    status = 422


class RateLimitedError(ServiceError):
    """A key that submits faster than it may."""

    code = "rate-limited"
    status = 429


class NotReadyError(ServiceError):
    """The database cannot be used, or is not at the schema this program needs."""

    code = "not-ready"
    status = 503


class InternalError(ServiceError):
    """A fault of the service. Its details are in the service's own log only."""

    code = "internal"
    status = 500


class LeaseLostError(AuditError):
    """A worker whose lease was taken over: it may write nothing more about that job."""

    code = "lease-lost"
