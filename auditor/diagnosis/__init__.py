"""Which cause explains a conviction best (`causes.py`): replayed, simulated, guessed or filled in."""

from auditor.diagnosis.causes import diagnose

__all__ = ["diagnose"]
