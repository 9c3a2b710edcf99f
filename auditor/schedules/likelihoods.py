"""What the margins of a scheduled audit said, kept so that later periods can be added to them.

Calibration and sums are stored together: a standing is made from the database alone, whatever became of the
profile. Grids are float64, little-endian, [S, PI] of `noise_model.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import insert, select

from auditor.evidence import Calibration
from auditor.noise_model import F64, GROSS_RATES, SCALES, log_likelihoods
from auditor.schedules.standing import Margins
from auditor.store_schedules import likelihood as likelihood_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from auditor.verdict import Verdict

_SHAPE = (len(SCALES), len(GROSS_RATES))


def record(connection: Connection, audit_id: str, verdicts: Sequence[Verdict]) -> None:
    """Keep the margins of an audit that a slot ordered, in the transaction that ends its job."""
    rows = []
    for number, verdict in enumerate(verdicts):
        counts = [t.scored.counts for t in verdict.traces if t.scored.counts is not None]
        if verdict.profile is None or not counts:
            continue
        calibration = verdict.profile.calibration
        row = {"audit_id": audit_id, "number": number, "profile_id": verdict.profile.id}
        row |= {"prior": _bytes(calibration.prior), "calibration": _bytes(calibration.grid)}
        rows.append({**row, "audited": _bytes(log_likelihoods(counts).sum(axis=0))})
    if rows:
        connection.execute(insert(likelihood_table), rows)


def margins(connection: Connection, audit_ids: Sequence[str]) -> dict[str, tuple[Margins, ...]]:
    """The margins of audits, by audit."""
    found: dict[str, tuple[Margins, ...]] = {}
    column = likelihood_table.c
    wanted = select(likelihood_table).where(column.audit_id.in_(audit_ids))
    for row in connection.execute(wanted.order_by(column.audit_id, column.number)):
        calibration = Calibration(_grid(row.prior), _grid(row.calibration))
        own = Margins(row.profile_id, calibration, _grid(row.audited))
        found[row.audit_id] = (*found.get(row.audit_id, ()), own)
    return found


def _bytes(grid: F64) -> bytes:
    return np.ascontiguousarray(grid, dtype="<f8").tobytes()


def _grid(raw: bytes) -> F64:
    return np.frombuffer(bytes(raw), dtype="<f8").reshape(_SHAPE).astype(np.float64)
