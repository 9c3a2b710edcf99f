"""Committed traces of a log with what was opened of them through the service, so that they can be replayed.

A log that a client kept has the heads as they were streamed, and nothing opened. What a challenge of those
very heads brought by the time of the audit's submission is put into the trace, where the replay looks for it
and checks it anew. An opening whose content contradicts what was signed goes first: it convicts.

What was opened of a log's responses is erased with the log (`forget`), whatever other log has them, too: the
opening's digest, the challenge's result and its log entry stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from auditor.errors import AuditError
from auditor.hidden_tokens.providing import head_text
from auditor.hidden_tokens.wire import (
    Commitment,
    challenge_from_json,
    commitment_from_json,
    opening_from_json,
)
from auditor.merkle.token_heads import parse_head_text
from auditor.merkle.token_openings import head_digest
from auditor.service.clock import now as time_now
from auditor.store_commitments import challenge as challenge_table
from auditor.store_commitments import commitment as commitment_table
from auditor.store_commitments import opening as opening_table
from auditor.trace import Trace

if TYPE_CHECKING:
    from auditor.service.audits import Audit
    from auditor.store import Store


def with_openings(
    store: Store, audit: Audit, traces: Iterable[Trace | AuditError]
) -> Iterator[Trace | AuditError]:
    """The same, committed traces with the opening that says most."""
    for item in traces:
        committed = _committed(item)
        if committed is None or not isinstance(item, Trace):  # the replay says what is wrong with it
            yield item
            continue
        found, head = committed
        opened = None if found.challenge is not None else _opened(store, audit, item.id, head, found)
        yield item if opened is None else replace(item, commitment=opened.to_json(item.id))


def forget(store: Store, tenant_id: str, traces: Iterable[Trace | AuditError]) -> None:
    """Erase what was opened of these responses; what is opened of them later will not be kept.

    Args:
        traces: read only where the tenant has drawn any challenge.
    """
    column, owner = challenge_table.c, commitment_table.c
    wanted = (
        select(column.id, column.body, owner.request)
        .join(commitment_table, owner.id == column.commitment_id)
        .where(column.tenant_id == tenant_id, column.erased.is_(None))
    )
    with store.transaction() as connection:
        if connection.execute(wanted.limit(1)).first() is None:
            return
    known = ((item.id, _committed(item)) for item in traces if isinstance(item, Trace))
    heads = {(name, committed[1]) for name, committed in known if committed is not None}
    with store.transaction(writes=True) as connection:
        rows = connection.execute(wanted.with_for_update(of=challenge_table)).all()
        gone = [row.id for row in rows if (row.request, _head_of(row.body)) in heads]
        if gone:
            values = {"erased": time_now(connection)}
            connection.execute(update(challenge_table).where(column.id.in_(gone)).values(values))
            same = opening_table.c.challenge_id.in_(gone)
            connection.execute(update(opening_table).where(same).values(body=b""))


def _head_of(body: bytes) -> bytes:
    """Digest of the head that a challenge was drawn from."""
    return challenge_from_json(json.loads(bytes(body)), "challenge")[1].head


def _committed(item: Trace | AuditError) -> tuple[Commitment, bytes] | None:
    """A trace's commitment, and the digest of its last head."""
    if not isinstance(item, Trace) or item.commitment is None:
        return None
    try:
        found = commitment_from_json(item.commitment, item.id, item.where)
        return found, head_digest(parse_head_text(head_text(found.heads[-1].note)))
    except AuditError:
        return None


def _opened(store: Store, audit: Audit, request: str, head: bytes, found: Commitment) -> Commitment | None:
    challenge, owner = challenge_table.c, commitment_table.c
    wanted = (
        select(challenge.state, challenge.body, opening_table.c.body.label("opening"))
        .select_from(challenge_table)
        .join(commitment_table, owner.id == challenge.commitment_id)
        .join(opening_table, opening_table.c.challenge_id == challenge.id)
        .where(challenge.tenant_id == audit.tenant_id, owner.request == request)
        .where(challenge.finished <= audit.created, challenge.erased.is_(None))
        .order_by(challenge.id)
    )
    if audit.provider_id is not None:
        wanted = wanted.where(owner.provider_id == audit.provider_id)
    with store.transaction() as connection:
        rows = connection.execute(wanted).all()
    ranked = []
    for row in rows:
        _, asked = challenge_from_json(json.loads(bytes(row.body)), "challenge")
        if asked.head == head:
            ranked.append((row.state == "failed", asked.prefix, len(asked.blocks), asked, row.opening))
    if not ranked:
        return None
    *_, asked, raw = max(ranked, key=lambda rank: rank[:3])
    _, opening = opening_from_json(json.loads(bytes(raw)), "opening")
    return replace(found, challenge=asked, opening=opening)
