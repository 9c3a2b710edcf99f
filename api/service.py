"""What every route needs: the store, the blobs, and who is calling."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials
from starlette.concurrency import run_in_threadpool

from auditor.reports.packing import ReportSigner
from auditor.service import signatures, tenants
from auditor.service.blobs import Blobs
from auditor.service.errors import IdempotencyKeyMissingError, UnauthenticatedError
from auditor.service.oidc import Issuer
from auditor.service.opening_checks import OpeningChecker
from auditor.service.recent_callers import RecentCallers
from auditor.service.signatures import Message, Signed
from auditor.service.submissions import Submissions
from auditor.service.tenants import ApiKey
from auditor.service.webhook_signing import WebhookSigner
from auditor.store import Store

MOST_KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Service:
    """An open service.

    Attributes:
        uploads: folder of parts that are no whole log yet.
        log: folder of the transparency log.
        webhooks: signs what is sent to webhooks.
        report_signer: signs reports' evidence packs; without one there are none.
        issuer: whose tokens people may come with; None where only keys are taken.
        checker: what openings of challenges are checked with.
        log_key: the log's public key, as a vkey; empty where it is not known.
        callers: who submitted a moment ago.
        submissions: takes what is submitted.
    """

    store: Store
    blobs: Blobs
    uploads: Path
    log: Path
    webhooks: WebhookSigner
    report_signer: ReportSigner | None = None
    issuer: Issuer | None = None
    checker: OpeningChecker = field(default_factory=OpeningChecker)
    log_key: str = ""
    callers: RecentCallers = field(default_factory=RecentCallers)
    submissions: Submissions = field(init=False)

    def __post_init__(self) -> None:
        """Make what needs the rest."""
        object.__setattr__(self, "submissions", Submissions(self.store, self.blobs))


async def service_of(request: Request) -> Service:
    """The service of the application that answers."""
    found = request.app.state.service
    if not isinstance(found, Service):
        raise TypeError(type(found).__name__)
    return found


# Dependencies that wait for nothing are coroutines: a plain function costs a change of threads.
TheService = Annotated[Service, Depends(service_of)]
bearer = HTTPBearer(auto_error=False, description="An API key, `ak_ID.SECRET`, or an OIDC token.")


def _caller(
    service: TheService, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> ApiKey:
    if sent is None:
        raise UnauthenticatedError("no key was sent", fix="send Authorization: Bearer KEY")
    if service.issuer is not None and sent.credentials.count(".") == 2:  # a JWT; keys have one dot
        person = service.issuer.person(sent.credentials)
        with service.store.transaction(writes=True) as connection:
            return tenants.person_key(connection, person.tenant, person.issuer, person.subject, person.scopes)
    with service.store.transaction() as connection:
        return tenants.authenticate(connection, sent.credentials)


def _with_scope(*scopes: str) -> object:
    async def check(caller: Annotated[ApiKey, Depends(_caller)]) -> ApiKey:
        caller.require(*scopes)
        return caller

    return Depends(check)


Reader = Annotated[ApiKey, _with_scope("audits:read")]
Writer = Annotated[ApiKey, _with_scope("audits:write")]


@dataclass(frozen=True, slots=True)
class Submission:
    """Who submits; `signed` where a signature says so instead of an API key."""

    key: ApiKey
    message: Message
    signed: Signed | None


async def submission(
    request: Request,
    service: TheService,
    sent: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Submission:
    """Who submits: a dependency.

    Raises:
        UnauthenticatedError, ScopeMissingError: nobody who may.
    """
    message = Message(request.method, str(request.url), request.headers)
    if "signature-input" in request.headers:
        signed = await run_in_threadpool(_signed, service, message)
        signed.key.require("audits:write")
        return Submission(signed.key, message, signed)
    # Who came a moment ago may hand in a body; whether the key is still good is asked again in the
    # transaction that takes it (`tenants.take_allowances`), so a revocation is not overlooked.
    text = sent.credentials if sent is not None else ""
    caller = service.callers.find(text)
    if caller is None:
        caller = await run_in_threadpool(_caller, service, sent)
        if text.count(".") == 1:  # a key; tokens end by their own clock
            service.callers.keep(text, caller)
    caller.require("audits:write")
    return Submission(caller, message, None)


def _signed(service: Service, message: Message) -> Signed:
    with service.store.transaction() as connection:
        return signatures.authenticate(connection, message)


Submitter = Annotated[Submission, Depends(submission)]
Truster = Annotated[ApiKey, _with_scope("trust")]
ReaderOrProvider = Annotated[ApiKey, _with_scope("audits:read", tenants.PROVIDER_SCOPE)]
WriterOrProvider = Annotated[ApiKey, _with_scope("audits:write", tenants.PROVIDER_SCOPE)]
KeyKeeper = Annotated[ApiKey, _with_scope("keys")]
Arbiter = Annotated[ApiKey, _with_scope("disputes")]
HookKeeper = Annotated[ApiKey, _with_scope("webhooks")]
Operator = Annotated[ApiKey, _with_scope("operator")]


async def idempotency_key(request: Request) -> str:
    """The request's Idempotency-Key: a dependency.

    Raises:
        IdempotencyKeyMissingError: it has none, or one that is none.
    """
    key = request.headers.get("idempotency-key", "")
    if not key or len(key) > MOST_KEY_CHARACTERS or not key.isprintable():
        raise IdempotencyKeyMissingError(
            f"send an Idempotency-Key of 1 to {MOST_KEY_CHARACTERS} characters",
            where="Idempotency-Key",
            fix="a fresh UUID for each thing you mean to do once",
        )
    return key


IdempotencyKey = Annotated[str, Depends(idempotency_key)]
IDEMPOTENCY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": MOST_KEY_CHARACTERS},
    "description": "The same key with the same request does it once, and answers the same.",
    "example": "0193f6b0-5d3a-7c1e-9f55-2f7b7a3f9d10",
}
