"""Activations whose value at an element does not depend on where in a tensor the element lies.

torch's own silu, gelu, sigmoid and softplus compute the end of a buffer, or of a thread's share of it, by
other instructions than the rest, so their last bits depend on how many rows there are (torch 2.13 on CPU;
tests/reference/layers/test_elementwise.py). Its exp, tanh and log1p do not, and neither does arithmetic.
All are computed in float32 and rounded once. On a GPU, where a thread has an element, torch's own are taken.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from auditor.reference.device import on_gpu

SOFTPLUS_IS_LINEAR_FROM = 20.0


def compiled(x: Tensor) -> bool:
    """Whether the compiled loops of `kernels/row_parts.py` are its path: never a matter of how it lies."""
    return x.dtype == torch.float32 and x.device.type == "cpu"


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    if on_gpu(x.device):
        return torch.sigmoid(x)
    return _one_plus_exp(-x.float()).reciprocal_().to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """X * sigmoid(x)."""
    if on_gpu(x.device):
        return functional.silu(x)
    return (x / _one_plus_exp(-x.float())).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its approximation with tanh."""
    if on_gpu(x.device):
        return functional.gelu(x, approximate="tanh")
    wide = x.float()
    inner = (wide * wide * wide).mul_(0.044715).add_(wide).mul_(math.sqrt(2 / math.pi))
    return inner.tanh_().add_(1).mul_(0.5).mul_(wide).to(x.dtype)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), and x itself where the two are the same."""
    wide = x.float()
    return torch.where(wide > SOFTPLUS_IS_LINEAR_FROM, wide, torch.log1p(wide.exp())).to(x.dtype)


def _one_plus_exp(x: Tensor) -> Tensor:
    return x.exp_().add_(1)
