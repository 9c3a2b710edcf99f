"""Keys and values rounded before they are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from auditor.reference.batch import KeyValueHook
from auditor.reference.quantizer import integers


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


def integer_cache(keys_bits: int | None, values_bits: int | None) -> KeyValueHook:
    """Symmetric integers with one scale for each token and head; None leaves a part as it is."""

    def hook(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        del layer
        keys = keys if keys_bits is None else rounded(keys, bits=keys_bits)
        return keys, values if values_bits is None else rounded(values, bits=values_bits)

    return hook
