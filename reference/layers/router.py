"""Which experts a row goes to, and what each of them counts.

Sources: transformers 5.19's `*TopKRouter` of the families named below; DeepSeek-V3, arXiv 2412.19437, 2.1.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from auditor.reference.layers.elementwise import sigmoid
from auditor.reference.layers.linear import Linear, Product

if TYPE_CHECKING:
    from auditor.reference.layers.parameters import Parameters


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """A row's experts are the `chosen` with the largest scores, ranked by them.

    Attributes:
        module: its name under the layer.
        scoring: weights are the chosen ones' share in a softmax over all experts (`softmax`), a softmax over
            the chosen alone (`chosen_softmax`: gpt-oss, Granite), or sigmoids computed from float32 products
            (`sigmoid`: DeepSeek-V3).
        normalised: the chosen weights are divided by their sum.
        rounded: the weights are rounded to the compute dtype.
        bias: the product has one.
        groups, chosen_groups: only experts of the groups with the largest sums of two scores are eligible.
        scale: of the weights, after everything else.
    """

    hidden_size: int
    experts: int
    chosen: int
    module: str
    scoring: Literal["softmax", "chosen_softmax", "sigmoid"] = "softmax"
    normalised: bool = False
    rounded: bool = True
    bias: bool = False
    groups: int = 1
    chosen_groups: int = 1
    scale: float = 1.0

    def build(self, parameters: Parameters, prefix: str) -> Router:
        """Read `prefix`.`module`."""
        own = f"{prefix}.{self.module}"
        if self.scoring != "sigmoid":
            return Router(self, parameters.linear(own, self.experts, self.hidden_size, bias=self.bias))
        weight = parameters.matrix(f"{own}.weight", self.experts, self.hidden_size)
        offsets = parameters.float_vector(f"{own}.e_score_correction_bias", self.experts)
        return Router(self, Linear(weight.float()), offsets)


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """One layer's router; `offsets` shift scores when experts are chosen, not when they are weighted."""

    plan: RouterPlan
    product: Product
    offsets: Tensor | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, hidden] -> experts int64 [rows, chosen], best first, and their weights [rows, chosen]."""
        if self.plan.scoring == "sigmoid":
            experts, weights = self._by_sigmoid(x)
        elif self.plan.scoring == "softmax":
            weights, experts = self.product(x).float().softmax(-1).topk(self.plan.chosen)
        else:
            weights, experts = self.product(x).float().topk(self.plan.chosen)
            weights = weights.softmax(-1)
        if self.plan.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + (1e-20 if self.offsets is not None else 0.0))
        if self.plan.scale != 1.0:
            weights = weights * self.plan.scale
        return experts, weights.to(x.dtype) if self.plan.rounded else weights

    def _by_sigmoid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        plan = self.plan
        scores = sigmoid(self.product(x.float()))
        shifted = scores if self.offsets is None else scores + self.offsets
        grouped = torch.unflatten(shifted, 1, (plan.groups, -1))
        best = grouped.topk(2)[0].sum(-1).topk(plan.chosen_groups)[1]
        closed = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(1, best, value=False)
        experts = grouped.masked_fill(closed[..., None], -torch.inf).flatten(1).topk(plan.chosen)[1]
        return experts, scores.gather(1, experts)
