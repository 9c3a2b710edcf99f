"""Cheaper KV cache: keys and values rounded before they are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from auditor.reference.deviations.base import Deviation


def float8_cache(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """float8 e4m3 with scale 1, vLLM's `kv_cache_dtype=fp8` without calibrated scales."""
    del layer
    return (
        keys.to(torch.float8_e4m3fn).to(keys.dtype),
        values.to(torch.float8_e4m3fn).to(values.dtype),
    )


def int4_cache(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int4 with one scale for each token and head."""
    del layer

    def rounded(x: Tensor) -> Tensor:
        scale = (x.float().abs().amax(dim=-1, keepdim=True) / 7).clamp_min(1e-8)
        return ((x.float() / scale).round().clamp(-8, 7) * scale).to(x.dtype)

    return rounded(keys), rounded(values)


DEVIATIONS = (
    Deviation(
        name="kv/fp8",
        gain="half the cache memory: twice the concurrent requests",
        source="vLLM kv_cache_dtype=fp8",
        model=lambda model, _other: model.replace(key_value=float8_cache),
    ),
    Deviation(
        name="kv/int4",
        gain="a quarter of the cache memory",
        source="Liu et al., KIVI, arXiv 2402.02750 (per-token variant)",
        model=lambda model, _other: model.replace(key_value=int4_cache),
    ),
)
