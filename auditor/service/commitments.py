"""Commitments to hidden tokens as they come in: signed heads, each checked against the one before.

The response and the provider are those that the signature names. A head that is there already is not another
one; a different head in its place is refused, and so is anything after the final one. Each head is told to
the log in the transaction that keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, insert, select, tuple_, update

from auditor.commitment_errors import CommitmentFieldError, HeadChainError
from auditor.errors import HashLengthError
from auditor.hidden_tokens.providing import head_text
from auditor.hidden_tokens.wire import Commitment, SentHead
from auditor.merkle.encoding import decode_base64, encode_base64
from auditor.merkle.hashing import HASH_BYTES
from auditor.merkle.notes import open_note, parse_note
from auditor.merkle.token_heads import TokenHead, check_next, parse_head_text
from auditor.merkle.token_openings import head_digest
from auditor.service import audits, models, providers
from auditor.service.clock import now as time_now
from auditor.service.errors import (
    ConflictError,
    HeadConflictError,
    ModelUnknownError,
    NotFinishedError,
    NotFoundError,
)
from auditor.service.identifiers import new_id
from auditor.store_commitments import commitment as commitment_table
from auditor.store_commitments import streaming_head as head_table
from auditor.store_engine import insert_if_absent

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Select

    from auditor.merkle.keys import PublicKey

MOST_HEADS = 4096
"""Of one response."""
MOST_HIDDEN = 1 << 20
"""Tokens of one response: what is drawn from a head costs memory by its size."""


def proof_from_text(texts: Sequence[str], where: str = "") -> tuple[bytes, ...]:
    """Hashes of a proof, from base64.

    Raises:
        HashLengthError: one is not 32 bytes.
    """
    found = tuple(decode_base64(text) or b"" for text in texts)
    if any(len(value) != HASH_BYTES for value in found):
        raise HashLengthError("not 32 bytes in base64", where=where)
    return found


def proof_to_text(proof: Sequence[bytes]) -> list[str]:
    """Hashes of a proof, in base64."""
    return [encode_base64(value) for value in proof]


@dataclass(frozen=True, slots=True)
class PostedHead:
    """A signed head as it came.

    Attributes:
        proof: hashes from the head before to this one; empty for the first.
        received: when the client had it, where somebody noted it.
    """

    note: str
    proof: tuple[bytes, ...] = ()
    received: str | None = None


@dataclass(frozen=True, slots=True)
class StoredHead(PostedHead):
    """A head that was kept; `created` by our clock."""

    sequence: int = 0
    created: int = 0


@dataclass(frozen=True, slots=True)
class KeptCommitment:
    """A response's commitment; `head` is the newest, `finished` when the final one came."""

    id: str
    tenant_id: str
    provider_id: str
    request: str
    created: int
    finished: int | None
    head: TokenHead


def append(
    connection: Connection, tenant_id: str, posted: Sequence[PostedHead], provider_id: str | None = None
) -> tuple[str, bool]:
    """Keep heads of one response, in order; returns its id, and whether it is a new one.

    Args:
        provider_id: the only provider whose heads are taken.

    Raises:
        NoteSyntaxError, CommitmentHeadError, CommitmentFieldError: no signed heads, or one beyond the limits.
        KeyUnknownError, SignatureInvalidError: not signed by the tenant's provider.
        HeadChainError, TreeSizeError, HashLengthError, ProofLengthError, ProofRootError: they do not continue
            what is there.
        ModelUnknownError: the declared model is not sold.
        HeadConflictError: another head is in that place.
    """
    keys = providers.signing_keys(connection, tenant_id, provider_id)
    opened = [_opened(head.note, keys, f"heads.{number}") for number, head in enumerate(posted)]
    owner, first = opened[0]
    commitment_id, fresh = _open(connection, tenant_id, owner, first)
    # Those that are posted again, and the one that they continue: a long stream is not read anew each time.
    stored = _stored_heads(connection, tenant_id, commitment_id, after=first.sequence - 2)
    there = {head.sequence: head_text(head.note) for head in stored}
    if not stored and not fresh:
        raise HeadChainError(f"head {first.sequence} does not follow the newest one")
    last = parse_head_text(there[stored[-1].sequence]) if stored else None
    for (signer, head), sent in zip(opened, posted, strict=True):
        if signer != owner:
            raise HeadChainError("heads of several providers")
        if last is not None and head.request != last.request:
            raise HeadChainError("heads of several responses")
        if head.sequence in there:
            if there[head.sequence] != head.text():
                raise HeadConflictError(f"another head {head.sequence} of this response is there already")
            continue
        last = _keep(connection, tenant_id, commitment_id, last, head, sent)
        there[head.sequence] = head.text()
    return commitment_id, fresh


def _opened(note: str, keys: dict[PublicKey, str], where: str) -> tuple[str, TokenHead]:
    """The provider that signed, and what."""
    parsed = parse_note(note.encode(), where)
    signers = {keys[key] for key in open_note(parsed, keys, where)}
    if len(signers) > 1:
        raise HeadChainError("several providers signed one head", where=where)
    head = parse_head_text(parsed.text, where)
    if head.hidden > MOST_HIDDEN or head.sequence >= MOST_HEADS:
        raise CommitmentFieldError(
            f"more than {MOST_HIDDEN} hidden tokens, or {MOST_HEADS} heads", where=where
        )
    return signers.pop(), head


def _open(connection: Connection, tenant_id: str, owner: str, head: TokenHead) -> tuple[str, bool]:
    """The commitment of a response, locked; a new one if the head is its first."""
    column = commitment_table.c
    same = (column.tenant_id == tenant_id, column.provider_id == owner, column.request == head.request)
    wanted = select(column.id).where(*same).with_for_update()
    found = connection.execute(wanted).scalar_one_or_none()
    if found is not None:
        return found, False
    if head.sequence != 0:
        raise HeadChainError(f"head {head.sequence} of a response that has no head 0 here")
    if not models.is_sold(connection, tenant_id, head.model, head.tokenizer):
        raise ModelUnknownError("no registered model has these digests", fix="POST /v1/models")
    made = {"id": new_id("cmt"), "tenant_id": tenant_id, "provider_id": owner, "request": head.request}
    if not insert_if_absent(connection, commitment_table, made | {"created": time_now(connection)}):
        raise ConflictError("heads of this response are coming in elsewhere", retry_after=1)
    return made["id"], True


def _keep(
    connection: Connection,
    tenant_id: str,
    commitment_id: str,
    last: TokenHead | None,
    head: TokenHead,
    sent: PostedHead,
) -> TokenHead:
    if last is not None:
        check_next(last, head, sent.proof)
    elif head.sequence != 0 or sent.proof:
        raise HeadChainError("the first head is number 0, and extends nothing")
    now = time_now(connection)
    values = {
        "commitment_id": commitment_id,
        "sequence": head.sequence,
        "tenant_id": tenant_id,
        "note": sent.note,
        "proof": json.dumps(proof_to_text(sent.proof)),
        "received": sent.received,
        "created": now,
    }
    connection.execute(insert(head_table).values(values))
    told = {"commitment": commitment_id, "head": f"sha256:{head_digest(head).hex()}"}
    audits.log_fact(connection, commitment_id, tenant_id, f"head-{head.sequence}", told)
    if head.final:
        ended = update(commitment_table).where(
            commitment_table.c.tenant_id == tenant_id, commitment_table.c.id == commitment_id
        )
        connection.execute(ended.values(finished=now))
    return head


def _stored_heads(
    connection: Connection, tenant_id: str, commitment_id: str, *, after: int = -1, limit: int = MOST_HEADS
) -> list[StoredHead]:
    column = head_table.c
    wanted = select(head_table).where(
        column.tenant_id == tenant_id, column.commitment_id == commitment_id, column.sequence > after
    )
    return [_stored(row) for row in connection.execute(wanted.order_by(column.sequence).limit(limit))]


def _stored(row: Row[Any]) -> StoredHead:
    return StoredHead(
        row.note, proof_from_text(json.loads(row.proof)), row.received, row.sequence, row.created
    )


def find(
    connection: Connection, tenant_id: str, commitment_id: str, provider_id: str | None = None
) -> KeptCommitment:
    """One commitment, of this provider if one is named.

    Raises:
        NotFoundError: the tenant has no such commitment, or it is another provider's.
    """
    wanted = _commitments(tenant_id, provider_id).where(commitment_table.c.id == commitment_id)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFoundError("no such commitment")
    return _commitment(row)


def listed(
    connection: Connection,
    tenant_id: str,
    *,
    after: tuple[int, str] | None,
    limit: int,
    provider_id: str | None = None,
    request: str | None = None,
) -> list[KeptCommitment]:
    """A tenant's commitments, newest first, after the (created, id) of another."""
    column = commitment_table.c
    wanted = _commitments(tenant_id, provider_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) < after)
    if request is not None:
        wanted = wanted.where(column.request == request)
    rows = connection.execute(wanted.order_by(column.created.desc(), column.id.desc()).limit(limit))
    return [_commitment(row) for row in rows]


def heads(
    connection: Connection,
    tenant_id: str,
    commitment_id: str,
    *,
    after: int,
    limit: int,
    provider_id: str | None = None,
) -> list[StoredHead]:
    """Heads in order, those numbered above `after`.

    Raises:
        NotFoundError: see `find`.
    """
    find(connection, tenant_id, commitment_id, provider_id)
    return _stored_heads(connection, tenant_id, commitment_id, after=after, limit=limit)


def whole(connection: Connection, kept: KeptCommitment) -> Commitment:
    """All heads and proofs, as a trace carries them.

    Raises:
        NotFinishedError: the final head has not come.
    """
    if kept.finished is None:
        raise NotFinishedError("the response is not complete: its final head has not come")
    found = _stored_heads(connection, kept.tenant_id, kept.id)
    sent = tuple(SentHead(head.note, head.received) for head in found)
    return Commitment(sent, tuple(head.proof for head in found[1:]))


def _commitments(tenant_id: str, provider_id: str | None) -> Select[Any]:
    column = commitment_table.c
    other = head_table.alias()
    last = select(func.max(other.c.sequence)).where(other.c.commitment_id == column.id)
    newest = last.correlate(commitment_table).scalar_subquery()
    place = and_(head_table.c.commitment_id == column.id, head_table.c.sequence == newest)
    wanted = select(commitment_table, head_table.c.note).select_from(commitment_table).join(head_table, place)
    wanted = wanted.where(column.tenant_id == tenant_id)
    return wanted if provider_id is None else wanted.where(column.provider_id == provider_id)


def _commitment(row: Row[Any]) -> KeptCommitment:
    return KeptCommitment(
        row.id,
        row.tenant_id,
        row.provider_id,
        row.request,
        row.created,
        row.finished,
        parse_head_text(head_text(row.note)),
    )
