"""DSSE envelopes (secure-systems-lab/dsse, v1.0.0) around in-toto statements, signed with Ed25519. Pure.

The signature is over PAE(type, payload) = "DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload, so that
nothing that is signed as a note or a checkpoint can pass for an envelope. `keyid` is the key's name and id,
as in a vkey.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from auditor.errors import KeySyntaxError, KeyUnknownError, SignatureInvalidError, TraceSyntaxError
from auditor.merkle.encoding import decode_base64, encode_base64
from auditor.merkle.keys import Algorithm, PublicKey, Signer
from auditor.reports.errors import EnvelopeSyntaxError
from auditor.strict_json import load_object

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES = 64 * 1024 * 1024
_MOST_SIGNATURES = 16


def pae(payload_type: str, payload: bytes) -> bytes:
    """What is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_id(key: PublicKey) -> str:
    """The hint that says whose a signature is."""
    return f"{key.name}+{key.key_id.hex()}"


def seal(payload: bytes, signers: Iterable[Signer]) -> bytes:
    """An envelope around a statement.

    Raises:
        KeySyntaxError: a key that is not a plain Ed25519 one.
    """
    signatures = []
    for signer in signers:
        if signer.public.algorithm is not Algorithm.ED25519:
            raise KeySyntaxError(f"{signer.public.name} signs checkpoints only", fix="use a key of type 0x01")
        signature = signer.sign(pae(PAYLOAD_TYPE, payload))
        signatures.append({"keyid": key_id(signer.public), "sig": encode_base64(signature)})
    value = {"payload": encode_base64(payload), "payloadType": PAYLOAD_TYPE, "signatures": signatures}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def open_envelope(
    raw: bytes, keys: Sequence[PublicKey], where: str = ""
) -> tuple[bytes, tuple[PublicKey, ...]]:
    """The payload, and the known keys that signed it.

    Raises:
        EnvelopeSyntaxError: it is none.
        SignatureInvalidError: a signature that names a known key does not verify.
        KeyUnknownError: no known key signed.
    """
    payload, signatures = _parsed(raw, where)
    message = pae(PAYLOAD_TYPE, payload)
    signed, others = [], []
    for hint, signature in signatures:
        found = [key for key in keys if key_id(key) == hint]
        for key in found:
            try:
                key.verify(message, signature)
            except SignatureInvalidError as error:
                raise SignatureInvalidError(error.message, where=where) from None
            signed.append(key)
        if not found:
            others.append(hint)
    if not signed:
        who = ", ".join(others[:4]) or "nobody"
        raise KeyUnknownError(f"no trusted key signed it; it has signatures of {who}", where=where)
    return payload, tuple(signed)


def _parsed(raw: bytes, where: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    try:
        value = load_object(raw, where=where, max_bytes=MAX_ENVELOPE_BYTES)
    except TraceSyntaxError as error:
        raise EnvelopeSyntaxError(error.message, where=where) from None
    payload = _bytes(value.get("payload"))
    lines = value.get("signatures")
    if payload is None or value.get("payloadType") != PAYLOAD_TYPE or not isinstance(lines, list):
        raise EnvelopeSyntaxError(f"no envelope of {PAYLOAD_TYPE}", where=where)
    if not 1 <= len(lines) <= _MOST_SIGNATURES:
        raise EnvelopeSyntaxError(f"{len(lines)} signatures", where=where)
    signatures = []
    for line in lines:
        signature = _bytes(line.get("sig")) if isinstance(line, dict) else None
        hint = line.get("keyid", "") if isinstance(line, dict) else None
        if signature is None or not isinstance(hint, str):
            raise EnvelopeSyntaxError("a signature cannot be read", where=where)
        signatures.append((hint, signature))
    return payload, signatures


def _bytes(value: Any) -> bytes | None:
    return decode_base64(value) if isinstance(value, str) else None
