"""Root-mean-square norms, rounded where each architecture rounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.kernels.row_parts import rms_norm
from auditor.reference.architecture import Norm
from auditor.reference.layers.elementwise import compiled


@dataclass(frozen=True, slots=True, eq=False)
class RmsNorm:
    """Normalise the last dimension; the weight is as stored, and broadcasts."""

    weight: Tensor
    plan: Norm

    def __call__(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim] in the dtype of `x`."""
        if self.weight.dim() == 1 and self.weight.dtype == torch.float32 and compiled(x):
            weight = self.weight + self.plan.offset if self.plan.offset else self.weight
            rows = x.reshape(-1, x.shape[-1]).contiguous()
            return torch.from_numpy(rms_norm(rows.numpy(), weight.numpy(), self.plan.eps)).view(x.shape)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(self.plan.eps))
        weight = self.weight
        if self.plan.offset:
            weight = weight.float() + self.plan.offset
        if self.plan.late_cast:
            return (wide * weight.float()).to(x.dtype)
        return wide.to(x.dtype) * weight
