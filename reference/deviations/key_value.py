"""Cheaper KV cache: keys and values rounded before they are stored."""

from __future__ import annotations

from auditor.reference.deviations.base import Deviation
from auditor.reference.policies import Policy

DEVIATIONS = (
    Deviation(
        name="kv/fp8",
        gain="half the cache memory: twice the concurrent requests",
        source="vLLM kv_cache_dtype=fp8",
        model=lambda model, _other: Policy("kv/fp8").applied(model),
    ),
    Deviation(
        name="kv/int4",
        gain="a quarter of the cache memory",
        source="Liu et al., KIVI, arXiv 2402.02750 (per-token variant)",
        model=lambda model, _other: Policy("kv/int4").applied(model),
    ),
)
