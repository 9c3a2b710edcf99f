"""The gated feed-forward part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from auditor.kernels.row_parts import silu_gate
from auditor.reference.layers.elementwise import compiled, gelu_tanh, sigmoid, silu
from auditor.reference.layers.linear import Product

if TYPE_CHECKING:
    from auditor.reference.layers.parameters import Parameters

Activation = Literal["silu", "gelu_tanh"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu_tanh": gelu_tanh,
}


@dataclass(frozen=True, slots=True)
class Gated:
    """activation(gate) * up, of rows that hold the gate's half and then the other."""

    activation: Activation = "silu"

    def __call__(self, gate_up: Tensor) -> Tensor:
        """[rows, 2 * width] -> [rows, width]."""
        if self.activation == "silu" and compiled(gate_up):
            return torch.from_numpy(silu_gate(gate_up.contiguous().numpy()))
        gate, up = torch.chunk(gate_up, 2, dim=1)
        return ACTIVATIONS[self.activation](gate) * up


@dataclass(frozen=True, slots=True)
class ClampedGated:
    """gate * sigmoid(alpha * gate) * (up + 1), both clamped, gate and up taking turns (gpt-oss)."""

    alpha: float
    limit: float

    def __call__(self, gate_up: Tensor) -> Tensor:
        """[rows, 2 * width] -> [rows, width]."""
        gate = gate_up[:, ::2].clamp(max=self.limit)
        up = gate_up[:, 1::2].clamp(min=-self.limit, max=self.limit)
        return (up + 1) * (gate * sigmoid(gate * self.alpha))


@dataclass(frozen=True, slots=True)
class MlpPlan:
    """down(activation(gate(x)) * up(x)).

    Attributes:
        module: its name under the layer.
        names: of the gate's, the other's and the last projection.
        fused: name of the one projection that the checkpoint has for the first two (Phi-3, Granite).
    """

    hidden_size: int
    width: int
    activation: Activation = "silu"
    bias: bool = False
    module: str = "mlp"
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    fused: str | None = None

    def build(self, parameters: Parameters, prefix: str) -> Mlp:
        """Read `prefix`.`module`."""
        own = f"{prefix}.{self.module}"
        gate, up, last = self.names
        if self.fused is not None:
            gate_up = parameters.linear(
                f"{own}.{self.fused}", 2 * self.width, self.hidden_size, bias=self.bias
            )
        else:
            modules = [(f"{own}.{gate}", self.width), (f"{own}.{up}", self.width)]
            gate_up = parameters.stacked(modules, self.hidden_size, bias=self.bias)
        down = parameters.linear(f"{own}.{last}", self.hidden_size, self.width, bias=self.bias)
        return Mlp(gate_up, down, Gated(self.activation))


@dataclass(frozen=True, slots=True, eq=False)
class Mlp:
    """One layer's feed-forward part, or one expert, with its parameters."""

    gate_up: Product
    down: Product
    gated: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        return self.down(self.gated(self.gate_up(x)))
