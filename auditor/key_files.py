"""Private keys on disk: PKCS#8 in PEM under a line that says the public key; mode 0600, encrypted on request.

    vkey: example.com/log+6d8f1c0a+AQ...
    -----BEGIN ENCRYPTED PRIVATE KEY-----
    ...

Text above the armour is what PEM allows (RFC 7468 section 5.2), so OpenSSL reads the file too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from auditor.durable_files import write_durably
from auditor.errors import KeyFileError, KeySyntaxError, OutputExistsError
from auditor.merkle.keys import SEED_BYTES, Algorithm, PublicKey, SeedSigner, parse_vkey

PASSPHRASE_VARIABLE = "AUDITOR_KEY_PASSPHRASE"  # noqa: S105  # the variable's name
MAX_KEY_FILE_BYTES = 100_000
_LABEL = "vkey: "


def generate(name: str, algorithm: Algorithm) -> SeedSigner:
    """A new key from the system's random source.

    Raises:
        KeySyntaxError: the name cannot stand in a signature line.
    """
    return SeedSigner(name, algorithm, os.urandom(SEED_BYTES))


def write_key(path: Path, signer: SeedSigner, passphrase: str | None) -> None:
    """Write a key file that only its owner can read.

    Raises:
        OutputExistsError: there is such a file; keys are never overwritten.
    """
    if path.exists():
        raise OutputExistsError(
            "exists; a key is never overwritten", where=str(path), fix="choose another name"
        )
    kind = MLDSA44PrivateKey if signer.algorithm is Algorithm.ML_DSA_44 else None
    key = kind.from_seed_bytes(signer.seed) if kind else Ed25519PrivateKey.from_private_bytes(signer.seed)
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        protection = serialization.BestAvailableEncryption(passphrase.encode())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    write_durably(path, f"{_LABEL}{signer.public.vkey}\n".encode() + pem, mode=0o600)


def _read(path: Path) -> tuple[PublicKey, bytes]:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_KEY_FILE_BYTES + 1)
            mode = os.fstat(stream.fileno()).st_mode
    except OSError as error:
        raise KeyFileError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileError("others can read this key", where=str(path), fix=f"chmod 600 {path}")
    first, _, pem = raw.partition(b"\n")
    label = first.decode("utf-8", "replace")
    if not label.startswith(_LABEL) or len(raw) > MAX_KEY_FILE_BYTES:
        raise KeyFileError("no key file: its first line names no vkey", where=str(path))
    try:
        return parse_vkey(label.removeprefix(_LABEL)), pem
    except KeySyntaxError as error:
        raise KeyFileError(error.message, where=str(path)) from None


def read_public_key(path: Path) -> PublicKey:
    """The public half of a key file, without its passphrase.

    Raises:
        KeyFileError: missing, open to others, or not a key file.
    """
    return _read(path)[0]


def read_key(path: Path, passphrase: str | None) -> SeedSigner:
    """Read a key file.

    Raises:
        KeyFileError: missing, open to others, encrypted otherwise, or of another public key than it says.
    """
    public, pem = _read(path)
    try:
        key = serialization.load_pem_private_key(pem, passphrase.encode() if passphrase else None)
    except (ValueError, TypeError):
        fix = f"set {PASSPHRASE_VARIABLE} if it is encrypted, and only then"
        raise KeyFileError("the private key cannot be opened", where=str(path), fix=fix) from None
    if not isinstance(key, (Ed25519PrivateKey, MLDSA44PrivateKey)):
        raise KeyFileError("neither an Ed25519 nor an ML-DSA-44 key", where=str(path))
    try:
        signer = SeedSigner(public.name, public.algorithm, key.private_bytes_raw())
    except (KeySyntaxError, ValueError):
        signer = None
    if signer is None or signer.public != public:
        raise KeyFileError("the private key is not that of the vkey above it", where=str(path))
    return signer
