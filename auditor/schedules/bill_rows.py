"""What the responses of a scheduled audit were billed, kept to hold later periods against it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from auditor.schedules.bills import Bills
from auditor.store_schedules import bill as bill_table
from auditor.token_counts.unaccounted import unaccounted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from auditor.reference.tokenizer import Tokenizer
    from auditor.verdict import Verdict


def bills_of(verdicts: Iterable[Verdict], tokenizer: Tokenizer) -> Bills:
    """Of the responses whose ids the replay scored, each once."""
    scored = [t.scored for verdict in verdicts for t in verdict.traces if t.scored.scores is not None]
    found = [unaccounted(one.trace, tokenizer) for one in scored]
    return Bills(tuple(math.inf if one.hidden else float(one.excess) for one in found if one is not None))


def record(connection: Connection, audit_id: str, bills: Bills) -> None:
    """Keep the bills of an audit that a slot ordered, in the transaction that ends its job."""
    plain = [None if math.isinf(excess) else int(excess) for excess in bills.excesses]
    connection.execute(insert(bill_table).values(audit_id=audit_id, excesses=json.dumps(plain)))


def bills(connection: Connection, audit_ids: Sequence[str]) -> dict[str, Bills]:
    """The bills of audits, by audit."""
    wanted = select(bill_table).where(bill_table.c.audit_id.in_(audit_ids))
    return {
        row.audit_id: Bills(tuple(math.inf if e is None else float(e) for e in json.loads(row.excesses)))
        for row in connection.execute(wanted)
    }
