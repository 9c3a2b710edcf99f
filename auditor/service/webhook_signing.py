"""Signatures of webhooks: Standard Webhooks `v1a`, Ed25519 over `id.timestamp.body`.

Each webhook has a key of its own, so that one receiver cannot pass a message off on another. All are derived
from one seed (HKDF-SHA256, RFC 5869), so the database holds no secret.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from auditor.durable_files import locked
from auditor.key_files import PASSPHRASE_VARIABLE, generate, read_key, write_key
from auditor.merkle.keys import SEED_BYTES, Algorithm

KEY_NAME = "auditor.localhost/webhooks"
_PURPOSE = b"auditor.webhook/v1 "


@dataclass(frozen=True, slots=True)
class WebhookSigner:
    """Signs what is sent to webhooks."""

    seed: bytes = field(repr=False)

    def public_key(self, webhook_id: str) -> str:
        """What a receiver checks with, `whpk_BASE64`."""
        material = self._key(webhook_id).public_key().public_bytes_raw()
        return f"whpk_{base64.b64encode(material).decode()}"

    def headers(self, webhook_id: str, message_id: str, seconds: int, body: bytes) -> dict[str, str]:
        """The three headers of a message.

        Args:
            webhook_id: whose key signs.
            message_id: the same in every attempt.
            seconds: since 1970, of this attempt.
            body: as sent.
        """
        signed = f"{message_id}.{seconds}.".encode() + body
        signature = base64.b64encode(self._key(webhook_id).sign(signed)).decode()
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(seconds),
            "webhook-signature": f"v1a,{signature}",
        }

    def _key(self, webhook_id: str) -> Ed25519PrivateKey:
        purpose = _PURPOSE + webhook_id.encode()
        seed = HKDF(hashes.SHA256(), SEED_BYTES, salt=None, info=purpose).derive(self.seed)
        return Ed25519PrivateKey.from_private_bytes(seed)


def open_webhook_key(key_file: Path) -> WebhookSigner:
    """The signer of a service; the first time, with a fresh seed.

    Raises:
        KeyFileError: a file is there that cannot be used.
    """
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    with locked(key_file.with_name(key_file.name + ".lock")):
        if not key_file.exists():
            write_key(key_file, generate(KEY_NAME, Algorithm.ED25519), passphrase)
        return WebhookSigner(read_key(key_file, passphrase).seed)
