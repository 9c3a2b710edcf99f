"""Salted commitments to prompts and outputs: a report can be shown without them and still be checked.

A digest of a prompt alone can be guessed by trying prompts; a salt of 32 bytes that is shown only together
with the text prevents it. Salts are derived from one secret of the tenant, so that the same report has the
same bytes and no two tenants, requests or fields share a salt.

    salt       = HMAC-SHA256(tenant salt, "auditor.salt/v1" LF evidence id LF field)
    commitment = SHA-256("auditor.commitment/v1" LF salt, SHA-256(text))
"""

from __future__ import annotations

import hashlib
import hmac

SALT_BYTES = 32


def salt_of(tenant_salt: bytes, evidence_id: str, name: str) -> bytes:
    """The salt of one field of one request."""
    message = f"auditor.salt/v1\n{evidence_id}\n{name}".encode()
    return hmac.new(tenant_salt, message, hashlib.sha256).digest()


def commit(salt: bytes, text_digest: str) -> str:
    """The commitment to a text with this digest (`sha256:...`)."""
    raw = bytes.fromhex(text_digest.removeprefix("sha256:"))
    said = hashlib.sha256(b"auditor.commitment/v1\n" + salt + raw)
    return f"sha256:{said.hexdigest()}"


def commitment_of(tenant_salt: bytes, evidence_id: str, name: str, text_digest: str) -> str:
    """`commit` under the tenant's salt."""
    return commit(salt_of(tenant_salt, evidence_id, name), text_digest)
