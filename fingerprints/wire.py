"""Fingerprints as bytes: the payload in a trace, the entry around it, and the binary sidecar. No I/O.

A payload, version 1, integers big-endian:

    0   4 bytes  "ADFR"
    4   uint8    version, 1
    5   uint8    code: 0 int4, 1 int8, 2 fp8 (e4m3fn), 3 bf16
    6   uint8    features k, 1 to 128
    7   uint8    window, 1 to 255
    8   int16    layer, -1 for the states after the final norm
    10  uint32   rows n
    14  8 bytes  binding to the request
    22  n rows   uint8 scale (not for bf16), then k levels: int4 two a byte, the first in the high half, the
                 last half zero where k is odd; int8 and fp8 a byte each; bf16 two bytes each

A trace has entries `{"kind": "activation-difr/v1", "projection_seed": <32 hex digits>, "data": <base64>,
"crc32": <8 hex digits>}`. The sum, over seed and payload, tells bytes that changed on the way from a provider
that computed something else; it proves nothing, and entries written before there was one lack it.
A sidecar is "ADFS", version 1, then records: uint16 length and UTF-8 id of the request, 16 bytes of
projection seed, uint32 length and payload.

Reading is bounded by the bytes given, allocates nothing that they do not pay for, and raises
`FingerprintError` or a subclass for whatever is not exactly this format.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from auditor.errors import (
    FingerprintCorruptedError,
    FingerprintError,
    FingerprintUnsupportedError,
    FingerprintValueError,
)
from auditor.fingerprints.activation_difr import (
    BINDING_BYTES,
    FINAL,
    SEED_BYTES,
    Fingerprint,
    FingerprintKind,
)
from auditor.kernels.sign_projection import MOST_ROWS
from auditor.kernels.value_codes import CODES, Coded, CodeName, has_loose_scale, has_non_finite

ENTRY_KIND = "activation-difr/v1"
MOST_PAYLOAD_BYTES = 64 << 20
_ENTRY_KEYS = {"kind", "projection_seed", "data", "crc32"}

_MAGIC, _SIDECAR_MAGIC, _VERSION = b"ADFR", b"ADFS", 1
_HEADER = struct.Struct(f">4sBBBBhI{BINDING_BYTES}s")


def row_bytes(kind: FingerprintKind) -> int:
    """Bytes of one window's row."""
    k = kind.features
    return {"int4": 1 + (k + 1) // 2, "int8": 1 + k, "fp8": 1 + k, "bf16": 2 * k}[kind.code]


HEADER_BYTES = _HEADER.size


def to_payload(given: Fingerprint) -> bytes:
    """Serialise one request's fingerprints (22 bytes and `row_bytes` a window)."""
    kind, coded = given.kind, given.coded
    code = CODES.index(kind.code)
    n = len(coded.levels)
    header = _HEADER.pack(_MAGIC, _VERSION, code, kind.features, kind.window, kind.layer, n, given.binding)
    return header + _rows_of(coded).tobytes()


def _rows_of(coded: Coded) -> np.ndarray[Any, np.dtype[np.uint8]]:
    n = len(coded.levels)
    if coded.code == "bf16":
        return np.ascontiguousarray(coded.levels.astype(">u2")).view(np.uint8).reshape(n, -1)
    bits = coded.levels.astype(np.int64) & 0xFF
    levels: np.ndarray[Any, np.dtype[np.uint8]] = bits.astype(np.uint8)
    if coded.code == "int4":
        padding = np.zeros((n, levels.shape[1] % 2), np.uint8)
        levels = np.concatenate([levels, padding], axis=1)
        levels = (((levels[:, ::2] & 0xF) << 4) | (levels[:, 1::2] & 0xF)).astype(np.uint8)
    return np.concatenate([coded.scale[:, None], levels], axis=1)


def from_payload(raw: bytes, *, projection_seed: bytes, where: str = "") -> Fingerprint:
    """Read a payload.

    Raises:
        FingerprintError: cut short, bytes left over, or a header that makes no sense.
        FingerprintUnsupportedError: another version or code.
        FingerprintValueError: NaN, infinity, a level that the code does not have, or a scale that no encoder
            would choose.
    """
    if len(raw) > MOST_PAYLOAD_BYTES:
        raise FingerprintError(f"{len(raw)} bytes; at most {MOST_PAYLOAD_BYTES} are read", where=where)
    if len(raw) < _HEADER.size:
        raise FingerprintError(f"{len(raw)} bytes; the header alone has {_HEADER.size}", where=where)
    magic, version, code, features, window, layer, n, binding = _HEADER.unpack_from(raw)
    if magic != _MAGIC:
        raise FingerprintError("not a fingerprint (wrong magic)", where=where)
    if version != _VERSION or code >= len(CODES):
        raise FingerprintUnsupportedError(f"version {version}, code {code}", where=where)
    if not 1 <= features <= MOST_ROWS or window < 1 or layer < FINAL:
        raise FingerprintError(f"{features} features, window {window}, layer {layer}", where=where)
    kind = FingerprintKind(CODES[code], features, window, layer)
    body = raw[_HEADER.size :]
    if len(body) != n * row_bytes(kind):
        raise FingerprintError(
            f"{len(body)} bytes of rows; {n} rows of {row_bytes(kind)} are announced", where=where
        )
    rows = np.frombuffer(body, np.uint8).reshape(n, row_bytes(kind))
    return Fingerprint(kind, projection_seed, binding, _coded_of(rows, kind, where))


def _coded_of(rows: np.ndarray[Any, np.dtype[np.uint8]], kind: FingerprintKind, where: str) -> Coded:
    code: CodeName = kind.code
    if code == "bf16":
        bits = np.ascontiguousarray(rows).view(">u2").astype(np.uint16)
        coded = Coded(code, np.zeros(len(rows), np.uint8), bits)
    elif code == "fp8":
        coded = Coded(code, rows[:, 0].copy(), rows[:, 1:].copy())
    elif code == "int8":
        coded = Coded(code, rows[:, 0].copy(), rows[:, 1:].copy().view(np.int8))
    else:
        coded = Coded(code, rows[:, 0].copy(), _unpacked(rows[:, 1:], kind.features, where))
    lowest = {"int4": -8, "int8": -128}.get(code)
    if has_non_finite(coded) or (lowest is not None and bool((coded.levels == lowest).any())):
        raise FingerprintValueError("NaN, infinity, or a level outside the code", where=where)
    if has_loose_scale(coded):
        raise FingerprintValueError("a scale larger than its levels need, which hides any value", where=where)
    return coded


def _unpacked(
    packed: np.ndarray[Any, np.dtype[np.uint8]], features: int, where: str
) -> np.ndarray[Any, np.dtype[np.int8]]:
    nibbles = np.stack([packed >> 4, packed & 0xF], axis=2).reshape(len(packed), -1)
    if bool(nibbles[:, features:].any()):
        raise FingerprintError("a padding half-byte that is not zero", where=where)
    return np.asarray(((nibbles[:, :features].astype(np.int8) ^ 8) - 8), np.int8)


def to_entry(given: Fingerprint) -> dict[str, str]:
    """The fingerprint as an entry of a trace's `fingerprints`."""
    return entry_of(to_payload(given), given.projection_seed)


def entry_of(raw: bytes, projection_seed: bytes) -> dict[str, str]:
    """A payload as an entry, whatever its bytes are."""
    return {
        "kind": ENTRY_KIND,
        "projection_seed": projection_seed.hex(),
        "data": base64.b64encode(raw).decode(),
        "crc32": _check_sum(raw, projection_seed),
    }


def _check_sum(raw: bytes, projection_seed: bytes) -> str:
    return f"{zlib.crc32(projection_seed + raw):08x}"


def from_entry(entry: Any, *, where: str = "") -> Fingerprint:
    """Read an entry of a trace's `fingerprints`.

    Raises:
        FingerprintError: as `from_payload`, or the entry is not of this form.
        FingerprintUnsupportedError: an entry of another kind.
        FingerprintCorruptedError: its bytes are not those that its check sum was made of.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("kind"), str):
        raise FingerprintError("an entry without a kind", where=where)
    if entry["kind"] != ENTRY_KIND:
        raise FingerprintUnsupportedError(f"kind {entry['kind'][:40]!r}", where=where)
    seed, data = entry.get("projection_seed"), entry.get("data")
    if not isinstance(seed, str) or not isinstance(data, str) or not set(entry) <= _ENTRY_KEYS:
        raise FingerprintError("an entry has kind, projection_seed, data and crc32", where=where)
    if len(data) > 4 * (MOST_PAYLOAD_BYTES // 3 + 1):
        raise FingerprintError(f"{len(data)} characters of data", where=where)
    if len(seed) != 2 * SEED_BYTES or not set(seed) <= set("0123456789abcdef"):
        raise FingerprintError(f"projection_seed is not {2 * SEED_BYTES} hex digits", where=where)
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FingerprintError("data is not base64", where=where) from error
    if base64.b64encode(raw).decode() != data:
        raise FingerprintError("data is not canonical base64", where=where)
    if entry.get("crc32", _check_sum(raw, bytes.fromhex(seed))) != _check_sum(raw, bytes.fromhex(seed)):
        raise FingerprintCorruptedError("bytes that changed after they were written", where=where)
    return from_payload(raw, projection_seed=bytes.fromhex(seed), where=where)


def to_sidecar(records: Iterable[tuple[str, Fingerprint]]) -> bytes:
    """Serialise (request id, fingerprint) pairs.

    Raises:
        ValueError: an id of more than 65,535 bytes.
    """
    parts = [_SIDECAR_MAGIC, bytes([_VERSION])]
    for request_id, given in records:
        name, payload = request_id.encode(), to_payload(given)
        if len(name) > 0xFFFF:
            raise ValueError("a request id of more than 65,535 bytes")
        parts += [struct.pack(">H", len(name)), name, given.projection_seed]
        parts += [struct.pack(">I", len(payload)), payload]
    return b"".join(parts)


def from_sidecar(raw: bytes, *, where: str = "") -> Iterator[tuple[str, Fingerprint]]:
    """Read a sidecar, record by record.

    Raises:
        FingerprintError: as `from_payload`, or the sidecar itself is malformed.
    """
    if raw[:4] != _SIDECAR_MAGIC:
        raise FingerprintError("not a fingerprint sidecar (wrong magic)", where=where)
    if raw[4:5] != bytes([_VERSION]):
        raise FingerprintUnsupportedError("a sidecar of another version", where=where)
    place = 5

    def take(count: int) -> bytes:
        nonlocal place
        if place + count > len(raw):
            raise FingerprintError("the sidecar ends within a record", where=where)
        place += count
        return raw[place - count : place]

    while place < len(raw):
        name = take(struct.unpack(">H", take(2))[0])
        seed = take(SEED_BYTES)
        payload = take(struct.unpack(">I", take(4))[0])
        try:
            request_id = name.decode()
        except UnicodeDecodeError as error:
            raise FingerprintError("a request id that is not UTF-8", where=where) from error
        yield request_id, from_payload(payload, projection_seed=seed, where=where)
