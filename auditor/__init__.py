"""Did the LLM provider run what it sold? Trusted replay, evidence per token, verdict at a stated error rate.

Every `audit` command is one function of this package with the same name. They are imported when first
used: a program that needs only `auditor.merkle` must not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditor.calibration import calibrate
    from auditor.demonstration import demo
    from auditor.generation import generate
    from auditor.planning import plan
    from auditor.probing.run import probe
    from auditor.recording.record import record
    from auditor.token_counts.report import tokens
    from auditor.trace_files import read_traces, write_traces
    from auditor.verification import verify

__all__ = [
    "calibrate",
    "demo",
    "generate",
    "plan",
    "probe",
    "read_traces",
    "record",
    "tokens",
    "verify",
    "write_traces",
]

_HOMES = {
    "calibrate": "calibration",
    "demo": "demonstration",
    "generate": "generation",
    "plan": "planning",
    "probe": "probing.run",
    "read_traces": "trace_files",
    "record": "recording.record",
    "tokens": "token_counts.report",
    "verify": "verification",
    "write_traces": "trace_files",
}

# In a checkout the rooms lie beside this folder; in an installed wheel they lie inside it
# (docs/decisions/0001-one-import-name.md).
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "kernels").is_dir():
    __path__.append(str(_CHECKOUT))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"auditor.{_HOMES[name]}"), name)
