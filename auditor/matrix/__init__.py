"""The deviation matrix: every lossy trick simulated on honest logs, and what it takes to catch it."""

from __future__ import annotations

from auditor.matrix.memory import Memory, Settings
from auditor.matrix.power import Curve, Honest, detection_curve
from auditor.matrix.provider import HonestProvider, Pool
from auditor.matrix.rows import Row, measure_row
from auditor.matrix.run import Run, chosen

__all__ = [
    "Curve",
    "Honest",
    "HonestProvider",
    "Memory",
    "Pool",
    "Row",
    "Run",
    "Settings",
    "chosen",
    "detection_curve",
    "measure_row",
]
