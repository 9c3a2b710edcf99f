"""What is told to the transparency log: rows written with what they tell of, placed later (`log_placing.py`).

Digests and random identifiers only: the log is public, and what they stand for is the tenant's to publish.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from sqlalchemy import insert, select

from auditor.store_schema import log_entry as log_entry_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

ENTRY_SCHEMA = "auditor.entry/v1"
Subject = Literal["audit", "commitment", "challenge"]


def enter(
    connection: Connection,
    tenant_id: str,
    subject: Subject,
    subject_id: str,
    kind: str,
    more: Mapping[str, str],
) -> None:
    """Tell the log something about a thing, once for each kind."""
    entry = {"schema": ENTRY_SCHEMA, "kind": kind, subject: subject_id, "tenant": tenant_id, **more}
    body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    values = {f"{subject}_id": subject_id, "kind": kind, "body": body}
    connection.execute(insert(log_entry_table).values(values))


def find(
    connection: Connection, subject: Subject, subject_id: str, kind: str
) -> tuple[int | None, bytes] | None:
    """The place in the log, once it has one, and the bytes of an entry; None where nothing was told.

    The caller has made sure that the thing is the tenant's.
    """
    column = log_entry_table.c
    wanted = select(column.position, column.body)
    wanted = wanted.where(column[f"{subject}_id"] == subject_id, column.kind == kind)
    row = connection.execute(wanted).one_or_none()
    return None if row is None else (row.position, bytes(row.body))
