"""Challenges of commitments, and what came of them. The auditing side draws, the provider opens.

1. A challenge is drawn of a complete response whose final head a signed tree of the log holds already.
2. What is drawn follows from the head and a nonce: 32 random bytes of ours, then the SHA-256 of that signed
   checkpoint, so that neither side chose and the draw is later than the head.
3. An opening that answers this very challenge and leads to the signed root ends it: `held`, or `failed` where
   what was signed contradicts itself. One that does not is refused under its own code and changes nothing.
4. A challenge without such an opening by its deadline is `withheld`, which is a failure.
5. The result is told to the log, in the transaction that ends the challenge.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, tuple_, update

from auditor.commitment_errors import ExposureError
from auditor.hidden_tokens.checking import Committed
from auditor.hidden_tokens.wire import challenge_from_json, challenge_to_json, opening_from_json
from auditor.merkle.token_openings import draw_challenge, exposure
from auditor.service import audits, commitments, log_entries
from auditor.service.clock import SECOND, to_text
from auditor.service.clock import now as time_now
from auditor.service.errors import (
    ChallengeClosedError,
    ChallengeExpiredError,
    EvidenceErasedError,
    NotFinishedError,
    NotFoundError,
)
from auditor.service.identifiers import new_id
from auditor.service.opening_checks import OpeningChecker, Outcome
from auditor.store_commitments import challenge as challenge_table
from auditor.store_commitments import commitment as commitment_table
from auditor.store_commitments import opening as opening_table

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Select

    from auditor.service.commitments import KeptCommitment
    from auditor.store import Store

RESULT_SCHEMA = "auditor.challenge-result/v1"
SECRET_BYTES = 32
MOST_OPENED = 1 << 14
"""Tokens of one opening."""
GRACE = 60 * SECOND
"""An opening that came in time may take so long to check before its challenge counts as withheld."""


@dataclass(frozen=True, slots=True)
class KeptChallenge:
    """A challenge and where it stands: `open`, `held`, `failed` or `withheld`.

    Attributes:
        body: `auditor.token-challenge/v1`, canonical.
        checkpoint: the signed head of the log that it was drawn after.
        result: `auditor.challenge-result/v1`, the bytes whose digest was logged; None while it is open.
        erased: when the log of its response was, with what was opened; what is opened later is not kept.
    """

    id: str
    tenant_id: str
    commitment_id: str
    created: int
    deadline: int
    state: str
    body: bytes
    checkpoint: str
    finished: int | None
    result: bytes | None
    provider_id: str
    request: str
    erased: int | None


@dataclass(frozen=True, slots=True)
class Draw:
    """How much is drawn; see `draw_challenge`. `seconds` are given to answer."""

    blocks: int = 1
    prefix: bool = False
    max_share: float = 1.0
    seconds: int = 86_400


def draw(
    connection: Connection,
    commitment: KeptCommitment,
    checkpoint: bytes,
    logged: int,
    secret: bytes,
    how: Draw,
) -> str:
    """Draw a challenge; returns its id.

    Args:
        checkpoint: the log's newest signed note, of a tree of `logged` leaves.
        secret: `SECRET_BYTES` fresh random bytes.

    Raises:
        NotFinishedError: the response is not complete, or its final head is not in that tree.
        TreeSizeError: nothing is hidden.
        ExposureError: more would be seen than agreed, or than one opening may hold.
    """
    head = commitment.head
    kind = f"head-{head.sequence}"
    entry = log_entries.find(connection, commitment.id, kind) if head.final else None
    if entry is None:
        raise NotFinishedError("the response is not complete: its final head has not come")
    if entry[0] is None or entry[0] >= logged:
        raise NotFinishedError("the final head is not in a signed tree yet", retry_after=3)
    nonce = secret + hashlib.sha256(checkpoint).digest()
    seen = _asked_before(connection, commitment.tenant_id, commitment.id)
    drawn = draw_challenge(head, nonce, how.blocks, prefix=how.prefix, seen=seen, max_share=how.max_share)
    if exposure(head, drawn.blocks).seen > MOST_OPENED:
        raise ExposureError(f"more than {MOST_OPENED} tokens to open at once", fix="draw fewer blocks")
    body = _canonical(challenge_to_json(commitment.request, drawn))
    now = time_now(connection)
    made = {
        "id": new_id("chl"),
        "tenant_id": commitment.tenant_id,
        "commitment_id": commitment.id,
        "created": now,
        "deadline": now + how.seconds * SECOND,
        "state": "open",
        "body": body,
        "checkpoint": checkpoint.decode(),
    }
    connection.execute(insert(challenge_table).values(made))
    made_id = str(made["id"])
    told = {"challenge": made_id, "commitment": commitment.id, "challenge_digest": _digest(body)}
    audits.log_fact(connection, made_id, commitment.tenant_id, "challenge", told)
    return made_id


def _asked_before(connection: Connection, tenant_id: str, commitment_id: str) -> set[int]:
    column = challenge_table.c
    wanted = select(column.body).where(
        column.tenant_id == tenant_id, column.commitment_id == commitment_id, column.state != "withheld"
    )
    return {block for row in connection.execute(wanted) for block in json.loads(bytes(row.body))["blocks"]}


def find(
    connection: Connection,
    tenant_id: str,
    challenge_id: str,
    provider_id: str | None = None,
    *,
    lock: bool = False,
) -> KeptChallenge:
    """One challenge, of this provider if one is named.

    Raises:
        NotFoundError: the tenant has no such challenge, or it is another provider's.
    """
    wanted = _challenges(tenant_id, provider_id).where(challenge_table.c.id == challenge_id)
    row = connection.execute(wanted.with_for_update(of=challenge_table) if lock else wanted).one_or_none()
    if row is None:
        raise NotFoundError("no such challenge")
    return _challenge(row)


def listed(
    connection: Connection,
    tenant_id: str,
    *,
    after: tuple[int, str] | None,
    limit: int,
    provider_id: str | None = None,
    state: str | None = None,
    commitment_id: str | None = None,
) -> list[KeptChallenge]:
    """A tenant's challenges, newest first, after the (created, id) of another."""
    column = challenge_table.c
    wanted = _challenges(tenant_id, provider_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) < after)
    if state is not None:
        wanted = wanted.where(column.state == state)
    if commitment_id is not None:
        wanted = wanted.where(column.commitment_id == commitment_id)
    rows = connection.execute(wanted.order_by(column.created.desc(), column.id.desc()).limit(limit))
    return [_challenge(row) for row in rows]


def _challenges(tenant_id: str, provider_id: str | None) -> Select[Any]:
    owner = commitment_table.c
    wanted = select(challenge_table, owner.provider_id, owner.request).select_from(challenge_table)
    wanted = wanted.join(commitment_table, owner.id == challenge_table.c.commitment_id)
    wanted = wanted.where(challenge_table.c.tenant_id == tenant_id)
    return wanted if provider_id is None else wanted.where(owner.provider_id == provider_id)


def _challenge(row: Row[Any]) -> KeptChallenge:
    return KeptChallenge(
        row.id,
        row.tenant_id,
        row.commitment_id,
        row.created,
        row.deadline,
        row.state,
        bytes(row.body),
        row.checkpoint,
        row.finished,
        None if row.result is None else bytes(row.result),
        row.provider_id,
        row.request,
        row.erased,
    )


def answer(
    store: Store,
    checker: OpeningChecker,
    tenant_id: str,
    challenge_id: str,
    value: dict[str, Any],
    provider_id: str | None = None,
) -> None:
    """Take an opening; the same again is the same as once.

    Raises:
        NotFoundError: see `find`.
        ChallengeExpiredError: it comes too late.
        ChallengeClosedError: another opening ended it.
        OpeningSyntaxError: no opening.
        Otherwise as `check_opened`, where it is no answer to this challenge: it may be sent again.
    """
    body = _canonical(value)
    with store.transaction() as connection:
        came = time_now(connection)
        asked = find(connection, tenant_id, challenge_id, provider_id)
        if not _is_open(connection, asked, body, came):
            return
        kept = commitments.find(connection, tenant_id, asked.commitment_id)
        committed = Committed(commitments.whole(connection, kept), kept.head, timed=False)
    _, challenge = challenge_from_json(json.loads(asked.body), "challenge")
    request, opening = opening_from_json(value, "body")
    outcome = checker.check(committed, challenge, request, opening)
    with store.transaction(writes=True) as connection:
        asked = find(connection, tenant_id, challenge_id, provider_id, lock=True)
        if not _is_open(connection, asked, body, came):
            return
        now = time_now(connection)
        row = {"challenge_id": asked.id, "tenant_id": tenant_id, "created": now}
        kept_body = body if asked.erased is None else b""
        connection.execute(insert(opening_table).values(**row, digest=_digest(body), body=kept_body))
        _end(connection, asked, outcome, _digest(body), now)


def _is_open(connection: Connection, asked: KeptChallenge, body: bytes, came: int) -> bool:
    """Whether an opening may end it; False where this very one did.

    Raises:
        ChallengeExpiredError, ChallengeClosedError.
    """
    if asked.state in ("held", "failed"):
        column = opening_table.c
        wanted = select(column.digest).where(
            column.tenant_id == asked.tenant_id, column.challenge_id == asked.id
        )
        if connection.execute(wanted).scalar_one() == _digest(body):
            return False
        raise ChallengeClosedError("another opening answered the challenge")
    if asked.state == "withheld" or came > asked.deadline:
        raise ChallengeExpiredError("the deadline has passed: what was asked for counts as withheld")
    return True


def settle(connection: Connection) -> int:
    """End what was not answered by its deadline, of all tenants; returns how many."""
    now = time_now(connection)
    column = challenge_table.c
    owner = commitment_table.c
    wanted = select(challenge_table, owner.provider_id, owner.request).select_from(challenge_table)
    wanted = wanted.join(commitment_table, owner.id == column.commitment_id)
    wanted = wanted.where(column.state == "open", column.deadline < now - GRACE)
    due = [_challenge(row) for row in connection.execute(wanted.with_for_update(of=challenge_table))]
    for challenge in due:
        said = "no opening came by the deadline"
        withheld = Outcome("withheld", error={"code": "opening-incomplete", "detail": said})
        _end(connection, challenge, withheld, None, now)
    return len(due)


def _end(
    connection: Connection, asked: KeptChallenge, outcome: Outcome, opening: str | None, now: int
) -> None:
    result = {
        "schema": RESULT_SCHEMA,
        "challenge": asked.id,
        "commitment": asked.commitment_id,
        "provider": asked.provider_id,
        "request": asked.request,
        "challenge_digest": _digest(asked.body),
        "opening_digest": opening,
        "state": outcome.state,
        "found": outcome.found,
        "error": outcome.error,
    }
    body = _canonical(result)
    same = (challenge_table.c.tenant_id == asked.tenant_id, challenge_table.c.id == asked.id)
    values = {"state": outcome.state, "finished": now, "result": body}
    connection.execute(update(challenge_table).where(*same).values(values))
    told = {"challenge": asked.id, "result": _digest(body)}
    audits.log_fact(connection, asked.id, asked.tenant_id, "result", told)


def opening(connection: Connection, tenant_id: str, challenge_id: str) -> tuple[bytes, str]:
    """What was opened, `auditor.token-opening/v1`, and its digest.

    Raises:
        NotFoundError: see `find`.
        NotFinishedError: nothing was opened.
        EvidenceErasedError: it was erased.
    """
    asked = find(connection, tenant_id, challenge_id)
    column = opening_table.c
    wanted = select(column.body, column.digest).where(
        column.tenant_id == tenant_id, column.challenge_id == challenge_id
    )
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFinishedError(f"nothing was opened: the challenge is {asked.state}")
    if asked.erased is not None:
        raise EvidenceErasedError(f"was erased on {to_text(asked.erased)}", where=challenge_id)
    return bytes(row.body), row.digest


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
