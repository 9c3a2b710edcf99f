"""Cheaper KV cache: keys and values rounded before they are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from auditor.reference.deviations.base import Deviation
from auditor.reference.deviations.weights import integers


def float8_cache(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """float8 e4m3 with scale 1, vLLM's `kv_cache_dtype=fp8` without calibrated scales."""
    del layer
    return (
        keys.to(torch.float8_e4m3fn).to(keys.dtype),
        values.to(torch.float8_e4m3fn).to(values.dtype),
    )


def rounded(x: Tensor, *, bits: int) -> Tensor:
    """Symmetric integers, one scale for each token and head of [tokens, heads, dim]."""
    rows = x.float().reshape(-1, x.shape[-1])
    return integers(rows, bits=bits, group=x.shape[-1]).reshape(x.shape).to(x.dtype)


def int4_cache(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int4 with one scale for each token and head."""
    del layer
    return rounded(keys, bits=4), rounded(values, bits=4)


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
