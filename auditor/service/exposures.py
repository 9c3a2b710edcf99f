"""How much of a response's hidden tokens its auditor has seen, all challenges together.

Counted are the blocks of challenges that an opening ended (`held` or `failed`: there the tokens lie before
us), and apart from them those that are still asked for. What was withheld was not seen.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from auditor.merkle.token_openings import exposure
from auditor.store_commitments import challenge as challenge_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.service.commitments import KeptCommitment


@dataclass(frozen=True, slots=True)
class ResponseExposure:
    """What is known of one response's hidden tokens.

    Attributes:
        blocks: numbers of the blocks that were opened.
        seen: hidden tokens in them.
        asked: hidden tokens in blocks that are asked for now and were not opened before.
        hidden: hidden tokens in all.
    """

    blocks: frozenset[int]
    seen: int
    asked: int
    hidden: int

    @property
    def share(self) -> float:
        """Seen part of all hidden tokens, 0 to 1."""
        return self.seen / self.hidden if self.hidden else 0.0


def tokens_of(response: KeptCommitment, blocks: Collection[int]) -> int:
    """Hidden tokens in blocks of a response."""
    return exposure(response.head, blocks).seen


def exposures(
    connection: Connection, tenant_id: str, responses: Collection[KeptCommitment]
) -> Mapping[str, ResponseExposure]:
    """Commitment id -> what was seen of it."""
    column = challenge_table.c
    wanted = select(column.commitment_id, column.state, column.body).where(
        column.tenant_id == tenant_id,
        column.commitment_id.in_({kept.id for kept in responses}),
        column.state != "withheld",
    )
    opened: dict[str, set[int]] = {}
    asked: dict[str, set[int]] = {}
    for row in connection.execute(wanted):
        into = asked if row.state == "open" else opened
        into.setdefault(row.commitment_id, set()).update(json.loads(bytes(row.body))["blocks"])
    found = {}
    for kept in responses:
        blocks = opened.get(kept.id, set())
        further = asked.get(kept.id, set()) - blocks
        found[kept.id] = ResponseExposure(
            frozenset(blocks),
            tokens_of(kept, blocks),
            tokens_of(kept, further),
            kept.head.hidden,
        )
    return found
