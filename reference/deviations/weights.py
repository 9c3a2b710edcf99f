"""Cheaper weights: every projection matrix rounded to a coarser grid, stored back in the model's dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from auditor.reference.deviations.base import Deviation
from auditor.reference.loading import ReferenceModel


def int8_rows(weight: Tensor) -> Tensor:
    """Symmetric int8, one scale an output row (the usual W8 recipe)."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-8)
    return (weight / scale).round().clamp(-127, 127) * scale


def int4_groups(weight: Tensor, group: int = 64) -> Tensor:
    """Symmetric int4, one scale for `group` inputs (compressed-tensors `pack-quantized`: [-8, 7])."""
    rows, columns = weight.shape
    size = group if columns % group == 0 else columns
    grouped = weight.view(rows, -1, size)
    scale = (grouped.abs().amax(dim=2, keepdim=True) / 7).clamp_min(1e-8)
    return ((grouped / scale).round().clamp(-8, 7) * scale).view(rows, columns)


def float8_rows(weight: Tensor) -> Tensor:
    """float8 e4m3, one scale an output row."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max).clamp_min(1e-12)
    return (weight / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale


def projections(
    quantize: Callable[[Tensor], Tensor],
) -> Callable[[ReferenceModel, ReferenceModel | None], ReferenceModel]:
    """A model whose projection matrices are what `quantize` makes of them."""

    def change(name: str, tensor: Tensor) -> Tensor:
        if not name.endswith("_proj.weight"):
            return tensor
        return quantize(tensor.float()).to(tensor.dtype)

    return lambda model, _other: model.replace(weights=change)


DEVIATIONS = (
    Deviation(
        name="weights/int8",
        gain="half the weight memory and bandwidth of bf16, about twice the batch",
        source="engines.md 4.5; Dettmers et al., LLM.int8(), arXiv 2208.07339",
        model=projections(int8_rows),
    ),
    Deviation(
        name="weights/int4",
        gain="a quarter of the weight memory of bf16",
        source="round to nearest, group 64; Frantar et al., GPTQ, arXiv 2210.17323 (baseline)",
        model=projections(int4_groups),
    ),
    Deviation(
        name="weights/fp8",
        gain="half the weight memory, and the tensor cores' fp8 rate",
        source="e4m3, a scale for each output row; Micikevicius et al., arXiv 2209.05433",
        model=projections(float8_rows),
    ),
)
