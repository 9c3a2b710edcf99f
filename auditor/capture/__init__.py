"""Provider capture: an engine writes `auditor.trace/v1` of what it served, by itself.

* vLLM: `vllm_plugin`, found through vLLM's entry points. It does nothing unless the environment variable
  `AUDITOR_CAPTURE` names the file that traces are appended to.
* transformers: `recorded_generate`, `model.generate` with a seed and a log.

Importing this package imports no engine. A log that could be wrong is worse than none, so what is not known
to be recorded rightly (an engine's release, a device, a setting) is refused at the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditor.capture.transformers_generate import recorded_generate

__all__ = ["recorded_generate"]


def __getattr__(name: str) -> Any:
    if name != "recorded_generate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from auditor.capture.transformers_generate import recorded_generate  # noqa: PLC0415

    return recorded_generate
