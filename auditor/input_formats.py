"""How a log may be read. A leaf, so that the command line can offer the choice before it loads anything."""

from __future__ import annotations

from typing import Literal

InputFormat = Literal["auto", "trace", "openai", "otel", "openinference", "langfuse", "litellm", "parquet"]
AdaptedFormat = Literal["otel", "openinference", "langfuse", "litellm"]
"""Formats of observability tools, which `auditor.adapters` reads."""
