"""Reading what was told to the transparency log (`audits.log_fact` writes it, `log_placing.py` places it)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from auditor.store_schema import log_entry as log_entry_table

if TYPE_CHECKING:
    from sqlalchemy import Connection


def find(connection: Connection, subject: str, kind: str) -> tuple[int | None, bytes] | None:
    """The place in the log, once it has one, and the bytes of an entry; None where nothing was told.

    The caller has made sure that the thing is the tenant's.
    """
    column = log_entry_table.c
    wanted = select(column.position, column.body).where(column.subject == subject, column.kind == kind)
    row = connection.execute(wanted).one_or_none()
    return None if row is None else (row.position, bytes(row.body))
