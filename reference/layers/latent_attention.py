"""Multi-head latent attention: keys and values expanded from one low-rank vector a position.

Kept per position are the expanded keys and values, not the vector: simpler, the same numbers, more memory.
Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; transformers 5.19's `DeepseekV3Attention`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auditor.reference.architecture import Norm, Rope
from auditor.reference.attention import Softmax
from auditor.reference.layers.linear import Product
from auditor.reference.layers.norm import RmsNorm
from auditor.reference.layers.rotary import rotate

if TYPE_CHECKING:
    from auditor.reference.batch import Run
    from auditor.reference.layers.parameters import Parameters


@dataclass(frozen=True, slots=True)
class LatentAttentionPlan:
    """Attention of one layer.

    Attributes:
        query_rank: of the queries' own low-rank vector, 0 for queries projected directly.
        key_value_rank: of the vector that keys and values share.
        still_dim, turned_dim: a query's or key's dimensions without and with positions; the turned ones of a
            key are the same for all heads.
        value_dim: a value's dimensions.
        scale: of the scores.
        bias: the projections from and to the hidden size have biases.
        norm: of the low-rank vectors.
    """

    hidden_size: int
    heads: int
    query_rank: int
    key_value_rank: int
    still_dim: int
    turned_dim: int
    value_dim: int
    rope: Rope
    scale: float
    bias: bool
    norm: Norm

    @property
    def key_value_shape(self) -> tuple[int, int, int]:
        """Heads, key dim and value dim of what is kept per position."""
        return self.heads, self.still_dim + self.turned_dim, self.value_dim

    def build(self, parameters: Parameters, prefix: str, index: int) -> LatentAttention:
        """Read `prefix`.self_attn."""
        own, hidden = f"{prefix}.self_attn", self.hidden_size
        queries = self.heads * (self.still_dim + self.turned_dim)
        down = [(f"{own}.kv_a_proj_with_mqa", self.key_value_rank + self.turned_dim)]
        if self.query_rank:
            down = [(f"{own}.q_a_proj", self.query_rank), *down]
        query_norm, query = None, f"{own}.q_proj"
        if self.query_rank:
            query_norm, query = (
                parameters.norm(f"{own}.q_a_layernorm", self.query_rank, self.norm),
                f"{own}.q_b_proj",
            )
        expanded = self.heads * (self.still_dim + self.value_dim)
        return LatentAttention(
            self,
            index,
            down=parameters.stacked(down, hidden, bias=self.bias),
            query_norm=query_norm,
            query=parameters.linear(query, queries, self.query_rank or hidden),
            key_value_norm=parameters.norm(f"{own}.kv_a_layernorm", self.key_value_rank, self.norm),
            key_value=parameters.linear(f"{own}.kv_b_proj", expanded, self.key_value_rank),
            output=parameters.linear(f"{own}.o_proj", hidden, self.heads * self.value_dim, bias=self.bias),
            softmax=Softmax(self.scale),
        )


@dataclass(frozen=True, slots=True, eq=False)
class LatentAttention:
    """One layer's attention with its parameters."""

    plan: LatentAttentionPlan
    index: int
    down: Product
    query_norm: RmsNorm | None
    query: Product
    key_value_norm: RmsNorm
    key_value: Product
    output: Product
    softmax: Softmax

    def inputs(self, x: Tensor, run: Run, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [n, heads, still + turned], and values [n, heads, value dim]."""
        plan = self.plan
        low, latent, turned = torch.split(
            self.down(x), [plan.query_rank, plan.key_value_rank, plan.turned_dim], dim=1
        )
        queries = self.query(x if self.query_norm is None else self.query_norm(low))
        queries = torch.unflatten(queries, 1, (plan.heads, -1))
        still, turning = torch.split(queries, [plan.still_dim, plan.turned_dim], dim=2)
        cos, sin = run.angles(plan.rope, plan.turned_dim, rows)
        turning, turned = (
            rotate(part, cos, sin, interleaved=plan.rope.interleaved) for part in (turning, turned[:, None])
        )
        expanded = self.key_value(self.key_value_norm(latent))
        expanded = torch.unflatten(expanded, 1, (plan.heads, -1))
        keys, values = torch.split(expanded, [plan.still_dim, plan.value_dim], dim=2)
        keys = torch.cat([keys, turned.expand(-1, plan.heads, -1)], dim=2)
        return torch.cat([still, turning], dim=2), keys, values

    def mix(self, parts: tuple[Tensor, ...], run: Run) -> Tensor:
        """What every row gathers, [rows, heads * value dim]."""
        queries, keys, values = parts
        return run.attend(self.index, queries, keys, values, self.softmax).flatten(1)

    def outputs(self, mixed: Tensor) -> Tensor:
        """Project back, [n, hidden]."""
        return self.output(mixed)
