"""Mixture of experts: each row through the few experts that its router names.

Invariant: a row's result does not depend on its company. Rows are grouped by expert for the products, whose
rows are independent (`linear.py`); a row's outputs are summed in float32 by rank, best expert first, as
transformers 5.19 does on its default path, and the sum is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auditor.reference.layers.linear import Linear
from auditor.reference.layers.mlp import ClampedGated, Gated, Mlp, MlpPlan
from auditor.reference.layers.router import Router, RouterPlan

if TYPE_CHECKING:
    from auditor.reference.layers.build import RowWise
    from auditor.reference.layers.parameters import Parameters


@dataclass(frozen=True, slots=True)
class ExpertsPlan:
    """Experts of one layer, and what they are stored as.

    Attributes:
        width: an expert's inner size.
        listed: an expert's projections under `module`, with `{}` for its number: gate, other and last.
        fused: names under `module` of two tensors that hold all experts, [experts, 2 * width, hidden] and
            [experts, hidden, width]; looked for first. transformers writes either form.
        clamped: the experts of gpt-oss, whose fused tensors are transposed and have biases `{name}_bias`.
        shared: an expert that every row goes through, added last.
    """

    hidden_size: int
    width: int
    router: RouterPlan
    module: str = "mlp"
    listed: tuple[str, str, str] | None = (
        "experts.{}.gate_proj",
        "experts.{}.up_proj",
        "experts.{}.down_proj",
    )
    fused: tuple[str, str] = ("experts.gate_up_proj", "experts.down_proj")
    clamped: ClampedGated | None = None
    shared: MlpPlan | None = None

    def build(self, parameters: Parameters, prefix: str) -> Experts:
        """Read the experts and their router."""
        own = f"{prefix}.{self.module}"
        if self.listed is None or f"{own}.{self.fused[0]}" in parameters:
            experts = self._fused(parameters, own)
        else:
            gate, up, down = self.listed
            names = [(gate.format(i), up.format(i), down.format(i)) for i in range(self.router.experts)]
            plans = [MlpPlan(self.hidden_size, self.width, module=self.module, names=own) for own in names]
            experts = tuple(plan.build(parameters, prefix) for plan in plans)
        shared = None if self.shared is None else self.shared.build(parameters, prefix)
        return Experts(self.router.build(parameters, prefix), experts, shared)

    def _fused(self, parameters: Parameters, own: str) -> tuple[Mlp, ...]:
        count, (first, last) = self.router.experts, (f"{own}.{name}" for name in self.fused)
        sizes = (2 * self.width, self.hidden_size), (self.hidden_size, self.width)
        if self.clamped is None:
            gate_up, down = (
                [Linear(weight) for weight in parameters.matrix(name, count, *size)]
                for name, size in zip((first, last), sizes, strict=True)
            )
        else:
            gate_up, down = (
                _transposed(parameters, name, count, *size)
                for name, size in zip((first, last), sizes, strict=True)
            )
        gated: Callable[[Tensor], Tensor] = self.clamped or Gated()
        return tuple(
            Mlp(own_gate_up, own_down, gated) for own_gate_up, own_down in zip(gate_up, down, strict=True)
        )


def _transposed(parameters: Parameters, name: str, count: int, outputs: int, inputs: int) -> list[Linear]:
    weights = parameters.matrix(name, count, inputs, outputs)
    biases = parameters.matrix(f"{name}_bias", count, outputs)
    return [Linear(weight.T, bias) for weight, bias in zip(weights, biases, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """One layer's mixture with its parameters."""

    router: Router
    experts: tuple[RowWise, ...]
    shared: RowWise | None

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        chosen, weights = self.router(x)
        count = chosen.shape[1]
        outputs = x.new_empty(chosen.numel(), x.shape[1])
        sizes = torch.bincount(chosen.flatten(), minlength=len(self.experts)).cpu().tolist()
        by_expert = torch.split(chosen.flatten().argsort(stable=True), sizes)
        for expert, own in zip(self.experts, by_expert, strict=True):
            if len(own):
                outputs[own] = expert(x[own // count])
        weighted = torch.unflatten(outputs, 0, (-1, count)) * weights[..., None]
        total = weighted[:, 0].float()
        for rank in range(1, count):
            total = total + weighted[:, rank]
        mixed = total.to(x.dtype)
        return mixed if self.shared is None else mixed + self.shared(x)
