"""Files of commitments: JSON objects, one a line; unknown fields and other spellings are refused.

    commitment   in the trace: signed heads as they were streamed, proofs between them, and, once it was asked
                 for, the challenge and its opening
    challenge    auditor to provider
    opening      provider to auditor
    kept         what the provider keeps: the hidden tokens, and which blocks it has opened so far (mode 0600)

Hashes, nonces and signed texts are as `merkle/` makes them; bytes are base64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from auditor.commitment_errors import CommitmentFieldError, OpeningSyntaxError
from auditor.errors import AuditError
from auditor.merkle.encoding import encode_base64
from auditor.merkle.token_leaves import TokenLeaf
from auditor.merkle.token_openings import Challenge, Opening
from auditor.strict_json import dump_json, load_object
from auditor.trace_format import validate
from auditor.wire_fields import Bytes, Exact, Hash

COMMITMENT = "auditor.token-commitment/v1"
CHALLENGE = "auditor.token-challenge/v1"
OPENING = "auditor.token-opening/v1"
KEPT = "auditor.token-kept/v1"
MAX_FILE_BYTES = 1 << 30

T = TypeVar("T")


Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _HeadWire(Exact):
    note: str
    received: str | None = None


class _ChallengeWire(Exact):
    request: str
    head: Hash
    nonce: Bytes
    count: Count
    prefix: bool
    blocks: list[Count]


class _LeafWire(Exact):
    index: Count
    token: Count
    salt: Bytes
    embedding: Bytes
    hash: Hash


class _OpeningWire(Exact):
    request: str
    head: Hash
    nonce: Bytes
    leaves: list[_LeafWire]
    proof: list[Hash]


class _CommitmentWire(Exact):
    heads: Annotated[list[_HeadWire], Field(min_length=1)]
    proofs: list[list[Hash]]
    challenge: dict[str, Any] | None = None
    opening: dict[str, Any] | None = None


class _KeptWire(Exact):
    request: str
    head: str
    tokens: list[Count]
    opened: list[Count]


@dataclass(frozen=True, slots=True)
class SentHead:
    """A signed head, and when the client had it (ISO 8601; None where nobody noted it)."""

    note: str
    received: str | None = None


@dataclass(frozen=True, slots=True)
class Commitment:
    """`commitment` of a trace."""

    heads: tuple[SentHead, ...]
    proofs: tuple[tuple[bytes, ...], ...]
    challenge: Challenge | None = None
    opening: Opening | None = None

    def to_json(self, request: str) -> dict[str, Any]:
        """The trace's field."""
        found: dict[str, Any] = {
            "schema": COMMITMENT,
            "heads": [{"note": head.note, "received": head.received} for head in self.heads],
            "proofs": [[encode_base64(value) for value in proof] for proof in self.proofs],
        }
        if self.challenge is not None:
            found["challenge"] = challenge_to_json(request, self.challenge)
        if self.opening is not None:
            found["opening"] = opening_to_json(request, self.opening)
        return found


@dataclass(frozen=True, slots=True)
class Kept:
    """What a provider keeps of one response."""

    request: str
    head: str
    tokens: tuple[int, ...]
    opened: tuple[int, ...] = ()

    def having_opened(self, blocks: Iterable[int]) -> Kept:
        """The record after another opening."""
        return replace(self, opened=tuple(sorted({*self.opened, *blocks})))

    def to_json(self) -> dict[str, Any]:
        """One line of the file."""
        return {
            "schema": KEPT,
            "request": self.request,
            "head": self.head,
            "tokens": list(self.tokens),
            "opened": list(self.opened),
        }


def _read(wire: type[T], schema: str, value: object, where: str) -> T:
    if not isinstance(value, dict) or value.get("schema") != schema:
        raise OpeningSyntaxError(f"no {schema}", where=where)
    try:
        return validate(wire, {k: v for k, v in value.items() if k != "schema"}, where=where)  # type: ignore[type-var]
    except AuditError as error:
        raise OpeningSyntaxError(error.message, where=where) from None


def commitment_from_json(value: object, request: str, where: str) -> Commitment:
    """Read a trace's `commitment`.

    Raises:
        OpeningSyntaxError: not exactly of the format, or with a challenge or opening of another response.
    """
    wire = _read(_CommitmentWire, COMMITMENT, value, where)
    challenge = None if wire.challenge is None else challenge_from_json(wire.challenge, where)
    opening = None if wire.opening is None else opening_from_json(wire.opening, where)
    if any(part is not None and part[0] != request for part in (challenge, opening)):
        raise OpeningSyntaxError("the challenge or opening is of another response", where=where)
    return Commitment(
        tuple(SentHead(head.note, head.received) for head in wire.heads),
        tuple(tuple(proof) for proof in wire.proofs),
        None if challenge is None else challenge[1],
        None if opening is None else opening[1],
    )


def challenge_to_json(request: str, challenge: Challenge) -> dict[str, Any]:
    """One line of a challenge file."""
    return {
        "schema": CHALLENGE,
        "request": request,
        "head": encode_base64(challenge.head),
        "nonce": encode_base64(challenge.nonce),
        "count": challenge.count,
        "prefix": challenge.prefix,
        "blocks": list(challenge.blocks),
    }


def challenge_from_json(value: object, where: str) -> tuple[str, Challenge]:
    """Response and challenge.

    Raises:
        OpeningSyntaxError: not of the format.
    """
    wire = _read(_ChallengeWire, CHALLENGE, value, where)
    return wire.request, Challenge(wire.head, wire.nonce, wire.count, wire.prefix, tuple(wire.blocks))


def opening_to_json(request: str, opening: Opening) -> dict[str, Any]:
    """One line of an opening file."""
    leaves = [
        {
            "index": index,
            "token": leaf.token_id,
            "salt": encode_base64(leaf.salt),
            "embedding": encode_base64(leaf.fingerprint),
            "hash": encode_base64(opening.hashes[index]),
        }
        for index, leaf in sorted(opening.leaves.items())
    ]
    return {
        "schema": OPENING,
        "request": request,
        "head": encode_base64(opening.head),
        "nonce": encode_base64(opening.nonce),
        "leaves": leaves,
        "proof": [encode_base64(value) for value in opening.proof],
    }


def opening_from_json(value: object, where: str) -> tuple[str, Opening]:
    """Response and opening.

    Raises:
        OpeningSyntaxError: not of the format, cut short, or a token that stands there twice.
    """
    wire = _read(_OpeningWire, OPENING, value, where)
    try:
        leaves = {
            leaf.index: TokenLeaf(wire.request, leaf.index, leaf.token, leaf.salt, leaf.embedding)
            for leaf in wire.leaves
        }
    except CommitmentFieldError as error:
        raise OpeningSyntaxError(error.message, where=where) from None
    if len(leaves) != len(wire.leaves):
        raise OpeningSyntaxError("a token is opened twice", where=where)
    hashes = {leaf.index: leaf.hash for leaf in wire.leaves}
    return wire.request, Opening(wire.head, wire.nonce, leaves, hashes, tuple(wire.proof))


def kept_from_json(value: object, where: str) -> tuple[str, Kept]:
    """Response and record.

    Raises:
        OpeningSyntaxError: not of the format.
    """
    wire = _read(_KeptWire, KEPT, value, where)
    return wire.request, Kept(wire.request, wire.head, tuple(wire.tokens), tuple(wire.opened))


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Objects of a JSON Lines file and their places.

    Raises:
        OpeningSyntaxError: the file or a line cannot be read.
    """
    for line, where in raw_lines(path):
        yield object_of(line, where), where


def object_of(line: bytes, where: str) -> dict[str, Any]:
    """One line's object.

    Raises:
        OpeningSyntaxError: it has none, or is cut short.
    """
    try:
        return load_object(line, where=where)
    except AuditError as error:
        raise OpeningSyntaxError(error.message, where=where, fix=error.fix) from None


def raw_lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """Lines of a file that are not empty, and their places.

    Raises:
        OpeningSyntaxError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise OpeningSyntaxError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if len(raw) > MAX_FILE_BYTES:
        raise OpeningSyntaxError(f"longer than {MAX_FILE_BYTES} bytes", where=str(path), fix="split it")
    for number, line in enumerate(raw.splitlines(), 1):
        if line.strip():
            yield line, f"{path}:{number}"


def lines_of(objects: Iterable[dict[str, Any]]) -> bytes:
    """A JSON Lines file."""
    return b"".join(dump_json(value, where="") + b"\n" for value in objects)
