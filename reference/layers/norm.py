"""Root-mean-square norms, rounded where each architecture rounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.reference.architecture import Norm


@dataclass(frozen=True, slots=True, eq=False)
class RmsNorm:
    """Normalise the last dimension; the weight is as stored, and broadcasts."""

    weight: Tensor
    plan: Norm

    def __call__(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim] in the dtype of `x`."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(self.plan.eps))
        weight = self.weight
        if self.plan.offset:
            weight = weight.float() + self.plan.offset
        if self.plan.late_cast:
            return (wide * weight.float()).to(x.dtype)
        return wide.to(x.dtype) * weight
