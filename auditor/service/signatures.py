"""Submissions signed by their provider: RFC 9421 with Ed25519, over a Content-Digest (RFC 9530).

The service holds the public half only, so nobody but the provider can have submitted what is signed. A
signature:

1. carries the tag `auditor-submission`, the id of a key that is bound to one tenant, its time and a nonce;
2. covers `COMPONENTS`, so that it fits one request to one service;
3. is at most `MOST_SECONDS` old by the database's clock, however far a host's own clock may be off;
4. is used once: its nonce is committed with what it submitted, and kept for as long as the signature could be
   sent again.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, HTTPSignatureKeyResolver
from http_message_signatures.algorithms import ED25519
from http_message_signatures.exceptions import HTTPMessageSignaturesException
from sqlalchemy import delete, select

from auditor.errors import KeySyntaxError, OptionError
from auditor.merkle.keys import Algorithm, SeedSigner, parse_vkey
from auditor.service import tenants
from auditor.service.clock import SECOND
from auditor.service.clock import now as time_now
from auditor.service.errors import (
    DigestMismatchError,
    RequestInvalidError,
    SignatureRefusedError,
    SignatureReplayedError,
)
from auditor.store_engine import insert_if_absent
from auditor.store_schema import nonce as nonce_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from auditor.service.tenants import ApiKey

TAG = "auditor-submission"
COMPONENTS = (
    "@method",
    "@authority",
    "@path",
    "@query",
    "content-type",
    "content-digest",
    "idempotency-key",
)
MOST_SECONDS = 300
NONCE_CHARACTERS = (16, 64)
_SKEW_SECONDS = 5
_AGAIN = "sign it again"


@dataclass(slots=True)
class Message:
    """A request as the library has it; signing adds to `headers`."""

    method: str
    url: str
    headers: Any


@dataclass(frozen=True, slots=True)
class Signed:
    """Who signed a request, and the nonce to be used up; `expires` in microseconds since 1970."""

    key: ApiKey
    nonce: str
    expires: int


def check_public_key(vkey: str) -> None:
    """Refuse a key that submissions cannot be checked with.

    Raises:
        RequestInvalidError: no Ed25519 key as `audit keys generate` prints it.
    """
    try:
        usable = parse_vkey(vkey).algorithm is Algorithm.ED25519
    except KeySyntaxError:
        usable = False
    if not usable:
        raise RequestInvalidError(
            "no Ed25519 key", where="public_key", fix="send the vkey that `audit keys generate` printed"
        )


def authenticate(connection: Connection, message: Message) -> Signed:
    """Who signed a request; the body is not looked at yet (see `check_body`).

    Raises:
        SignatureRefusedError: incomplete, wrong, too old, or by a key that is unknown, expired or revoked.
        SignatureReplayedError: it was used before.
    """
    keys = _RegisteredKeys(connection)
    verifier = HTTPMessageVerifier(signature_algorithm=ED25519, key_resolver=keys)
    try:
        found = verifier.verify(
            message,
            max_age=dt.timedelta(seconds=MOST_SECONDS),
            expect_tag=TAG,
            require_components=COMPONENTS,
        )
    except HTTPMessageSignaturesException:
        raise SignatureRefusedError("no valid signature by a known key", where="Signature") from None
    if len(found) != 1 or keys.key is None:
        raise SignatureRefusedError("exactly one signature is read", where="Signature")
    nonce, created = found[0].nonce or "", int(found[0].parameters["created"]) * SECOND
    shortest, longest = NONCE_CHARACTERS
    if not shortest <= len(nonce) <= longest:
        raise SignatureRefusedError(
            f"a nonce has {shortest} to {longest} characters", where="Signature-Input", fix=_AGAIN
        )
    now = time_now(connection)
    if not now - MOST_SECONDS * SECOND <= created <= now + _SKEW_SECONDS * SECOND:
        raise SignatureRefusedError("too old, or from the future", where="Signature-Input", fix=_AGAIN)
    column = nonce_table.c
    used = select(column.nonce).where(column.key_id == keys.key.id, column.nonce == nonce)
    if connection.execute(used).first() is not None:
        raise SignatureReplayedError("the nonce was used before", where="Signature-Input", fix=_AGAIN)
    return Signed(keys.key, nonce, created + MOST_SECONDS * SECOND)


def check_body(message: Message, body: bytes) -> None:
    """Refuse a body other than the one whose digest was signed.

    Raises:
        DigestMismatchError: another body.
    """
    if message.headers.get("content-digest") != content_digest(body):
        raise DigestMismatchError("other bytes than signed", where="Content-Digest", fix="sha-256=:BASE64:")


def use_up(connection: Connection, signed: Signed) -> None:
    """Use a signature, in the transaction of what it submits.

    Raises:
        SignatureReplayedError: it was used before.
    """
    now = time_now(connection)
    connection.execute(delete(nonce_table).where(nonce_table.c.expires < now))
    values = {"key_id": signed.key.id, "nonce": signed.nonce, "expires": signed.expires}
    if signed.expires < now or not insert_if_absent(connection, nonce_table, values):
        raise SignatureReplayedError("the nonce was used before", where="Signature-Input", fix=_AGAIN)


def content_digest(body: bytes) -> str:
    """RFC 9530's header."""
    return f"sha-256=:{b64encode(hashlib.sha256(body).digest()).decode()}:"


@dataclass(frozen=True, slots=True)
class RequestSigner:
    """A provider's side: a private key and the id the service gave its public half.

    Raises:
        OptionError: not an Ed25519 key.
    """

    key_id: str
    signer: SeedSigner

    def __post_init__(self) -> None:
        if self.signer.algorithm is not Algorithm.ED25519:
            raise OptionError("not an Ed25519 key", where="--sign", fix="audit keys generate")

    def headers(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        """The headers of a signed request: those given, and the signature's; fresh each time."""
        message = Message(method, url, dict(headers) | {"Content-Digest": content_digest(body)})
        key = Ed25519PrivateKey.from_private_bytes(self.signer.seed)
        HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=_OwnKey(key)).sign(
            message,
            key_id=self.key_id,
            nonce=secrets.token_urlsafe(24),
            tag=TAG,
            label="sig1",
            covered_component_ids=COMPONENTS,
            use_existing_digest=True,
        )
        return dict(message.headers)


class _OwnKey(HTTPSignatureKeyResolver):
    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def resolve_private_key(self, key_id: str) -> Ed25519PrivateKey:  # noqa: ARG002
        return self._key


class _RegisteredKeys(HTTPSignatureKeyResolver):
    """Public keys of all tenants; `key` is the one that was asked for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.key: ApiKey | None = None

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey | None:
        self.key = tenants.signing_key(self._connection, key_id)
        if self.key is None or self.key.public_key is None:
            return None
        return Ed25519PublicKey.from_public_bytes(parse_vkey(self.key.public_key).material)
