"""Cheaper weights: every projection matrix rounded to a coarser grid, stored back in the model's dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from auditor.reference.deviations.base import Deviation
from auditor.reference.loading import ReferenceModel
from auditor.reference.quantizer import integers


def symmetric(weight: Tensor, *, bits: int, group: int | None = 64) -> Tensor:
    """Symmetric integers as the field rounds weights: a group's largest entry is 2^(bits - 1) - 1/2 steps.

    So do compressed-tensors (`calculate_qparams`), torchao (`MappingType.SYMMETRIC`) and GPTQ (`sym`): half
    of the whole range, so that both ends lose half a step. By the largest positive integer instead, one of
    the 16 values of int4 would never be used, and one of the four of int2.
    """
    return integers(weight, bits=bits, group=group, steps=2 ** (bits - 1) - 0.5)


def int8_rows(weight: Tensor) -> Tensor:
    """Symmetric int8, one scale an output row (the usual W8 recipe)."""
    return symmetric(weight, bits=8, group=weight.shape[1])


def int4_groups(weight: Tensor, group: int = 64) -> Tensor:
    """Symmetric int4, one scale for `group` inputs (compressed-tensors `pack-quantized`: [-8, 7])."""
    return symmetric(weight, bits=4, group=group)


def float8_rows(weight: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """float8, one scale an output row."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / torch.finfo(dtype).max).clamp_min(1e-12)
    return (weight / scale).to(dtype).to(weight.dtype) * scale


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
