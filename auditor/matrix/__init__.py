"""The deviation matrix: every lossy trick simulated on honest logs, and what it takes to catch it."""

from __future__ import annotations

from auditor.matrix.power import Curve, Honest, detection_curve
from auditor.matrix.provider import HonestProvider, Pool
from auditor.matrix.rows import Row, measure_row
from auditor.matrix.run import chosen, report, run_matrix

__all__ = [
    "Curve",
    "Honest",
    "HonestProvider",
    "Pool",
    "Row",
    "chosen",
    "detection_curve",
    "measure_row",
    "report",
    "run_matrix",
]
