"""Bearer tokens of people, from an OpenID Connect issuer that the operator names.

1. The token is short, has the form of a JWT, and its `alg` is one of `ALGORITHMS`: all with public keys, so
that no published key can be used as a shared secret, and `none` is none of them.
2. Its `kid` names a key of the issuer. Keys are fetched from the issuer's own discovery document, kept for
`KEYS_SECONDS`, and asked for again when an unknown `kid` comes, at most every `ASK_SECONDS`.
3. That key's signature is right, for the algorithm that the key itself is for. 4. Issuer and audience are
the ones configured; `exp`, `iat` and `sub` are there; it has not expired, and does not live longer than
`MOST_TOKEN_SECONDS`. 5. Its claim `auditor_tenant` names a tenant, and `scope` gives scopes that we know;
others are ignored.

The issuer decides who may do what; this service only whether it was the issuer.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from auditor.errors import OptionError
from auditor.service.errors import NotReadyError, UnauthenticatedError
from auditor.service.tenants import SCOPES

logger = logging.getLogger("auditor.oidc")

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
TENANT_CLAIM = "auditor_tenant"
KEYS_SECONDS = 300.0
ASK_SECONDS = 10.0
MOST_TOKEN_SECONDS = 86_400
LEEWAY_SECONDS = 30
MOST_TOKEN_CHARACTERS = 8192
_MOST_DOCUMENT_BYTES = 256 << 10
_DISCOVERY = "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class Person:
    """Who a token is of. `tenant` is a tenant's name or id; `subject` is the issuer's name for the person."""

    issuer: str
    subject: str
    tenant: str
    scopes: tuple[str, ...]


class Issuer:
    """An issuer whose tokens are taken.

    Args:
        url: as the tokens' `iss` has it; https, or http on this machine.
        audience: as their `aud` must have it.

    Raises:
        OptionError: the URL is not one to trust.
    """

    def __init__(self, url: str, audience: str) -> None:
        if not _is_private_way(url):
            raise OptionError(f"{url!r} is no https address", where="--oidc-issuer")
        if not audience:
            raise OptionError(
                "is empty", where="--oidc-audience", fix="say what tokens for this service name"
            )
        self.url, self.audience = url, audience
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._asked = float("-inf")
        self._lock = threading.Lock()
        self._http = httpx.Client(timeout=5.0, follow_redirects=False)

    def person(self, token: str) -> Person:
        """The person whose token this is.

        Raises:
            UnauthenticatedError: it is not taken; why is in the service's log only.
            NotReadyError: the issuer does not answer, and its keys are not known.
        """
        try:
            claims = self._claims(token)
        except (jwt.PyJWTError, ValueError) as error:
            logger.info("a token was refused: %s", type(error).__name__)
            raise UnauthenticatedError("the token is not taken") from None
        tenant = claims.get(TENANT_CLAIM)
        if not isinstance(tenant, str) or not tenant or "\0" in tenant:
            raise UnauthenticatedError(f"the token has no claim {TENANT_CLAIM}")
        said = claims.get("scope", "")
        scopes = said.split() if isinstance(said, str) else []
        known = tuple(sorted(set(scopes) & SCOPES.keys()))
        return Person(self.url, str(claims["sub"])[:200], tenant, known)

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > MOST_TOKEN_CHARACTERS:
            raise ValueError("too long")
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in ALGORITHMS:
            raise jwt.InvalidAlgorithmError
        key = self._key(str(header.get("kid", "")))
        if key.algorithm_name != header["alg"]:
            raise jwt.InvalidAlgorithmError
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=self.audience,
            issuer=self.url,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "iss", "aud", "sub"], "verify_signature": True},
        )
        if claims["exp"] - claims["iat"] > MOST_TOKEN_SECONDS:
            raise ValueError("lives too long")
        return claims

    def _key(self, kid: str) -> jwt.PyJWK:
        with self._lock:
            now = time.monotonic()
            stale = now - self._fetched > KEYS_SECONDS
            if (stale or kid not in self._keys) and now - self._asked > ASK_SECONDS:
                self._asked = now
                try:
                    self._keys, self._fetched = self._fetch(), now
                except (httpx.HTTPError, ValueError, jwt.PyJWTError) as error:
                    logger.error("%s: its keys cannot be had: %s", self.url, type(error).__name__)  # noqa: TRY400
            if now - self._fetched > KEYS_SECONDS:
                # Keys may have been withdrawn since; nobody gets in on old ones.
                raise NotReadyError("the issuer of tokens does not answer", retry_after=int(ASK_SECONDS))
            found = self._keys.get(kid)
        if found is None:
            raise jwt.InvalidKeyError
        return found

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        about = self._document(self.url.rstrip("/") + _DISCOVERY)
        place = about.get("jwks_uri")
        if about.get("issuer") != self.url or not isinstance(place, str) or not _is_private_way(place):
            raise ValueError("not that issuer's document")
        found: dict[str, jwt.PyJWK] = {}
        for value in self._document(place).get("keys", []):
            if not isinstance(value, dict) or value.get("use", "sig") != "sig" or not value.get("kid"):
                continue
            try:
                key = jwt.PyJWK(value)
            except jwt.PyJWTError:
                continue  # of a kind that we do not take
            if key.algorithm_name in ALGORITHMS:
                found[str(value["kid"])] = key
        return found

    def _document(self, place: str) -> dict[str, Any]:
        with self._http.stream("GET", place) as response:
            response.raise_for_status()
            data = b""
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > _MOST_DOCUMENT_BYTES:
                    raise ValueError("too long")
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("no object")  # noqa: TRY004  # of what came over the wire
        return value


def _is_private_way(url: str) -> bool:
    """Whether nobody in between can answer: https, or http to this very machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return True
    try:
        return parts.scheme == "http" and ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
