"""Grouped-query attention: projections, head norms, rotary positions, and the kept keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from auditor.kernels.row_parts import rotate_heads
from auditor.reference.architecture import Rope
from auditor.reference.attention import Softmax
from auditor.reference.layers.elementwise import compiled
from auditor.reference.layers.linear import Product
from auditor.reference.layers.norm import RmsNorm
from auditor.reference.layers.rotary import rotate

if TYPE_CHECKING:
    from auditor.reference.batch import Run
    from auditor.reference.layers.parameters import Parameters


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Attention of one layer.

    Attributes:
        heads, key_value_heads, head_dim: query heads share key/value heads in groups.
        window: newest positions seen, one's own included; None for all.
        rope: None for a layer without positions.
        scale: of the scores, None for head_dim ** -0.5.
        qkv_bias, output_bias: which projections have biases.
        qk_norm: RMS norm of every query and key head (`head`: Qwen 3, Gemma 3), or of the whole projection
            (`projection`: OLMo 2).
        softcap, sinks: as `attention.Softmax`.
        fused: the checkpoint has one `qkv_proj` (Phi-3).
    """

    hidden_size: int
    heads: int
    key_value_heads: int
    head_dim: int
    rope: Rope | None
    window: int | None = None
    scale: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["head", "projection"] | None = None
    softcap: float = 0.0
    sinks: bool = False
    fused: bool = False

    @property
    def key_value_shape(self) -> tuple[int, int, int]:
        """Heads, key dim and value dim of what is kept per position."""
        return self.key_value_heads, self.head_dim, self.head_dim

    def build(self, parameters: Parameters, prefix: str, index: int) -> SelfAttention:
        """Read `prefix`.self_attn."""
        own = f"{prefix}.self_attn"
        query, key = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        if self.fused:
            qkv = parameters.linear(f"{own}.qkv_proj", query + 2 * key, self.hidden_size, bias=self.qkv_bias)
        else:
            modules = [(f"{own}.q_proj", query), (f"{own}.k_proj", key), (f"{own}.v_proj", key)]
            qkv = parameters.stacked(modules, self.hidden_size, bias=self.qkv_bias)
        norms = None
        if self.qk_norm is not None:
            sizes = (query, key) if self.qk_norm == "projection" else (self.head_dim,) * 2
            norms = (
                parameters.norm(f"{own}.q_norm", sizes[0]),
                parameters.norm(f"{own}.k_norm", sizes[1]),
            )
        output = parameters.linear(f"{own}.o_proj", self.hidden_size, query, bias=self.output_bias)
        sinks = parameters.vector(f"{own}.sinks", self.heads) if self.sinks else None
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        return SelfAttention(
            self, index, qkv, norms, output, Softmax(scale, self.window, self.softcap, sinks)
        )


@dataclass(frozen=True, slots=True, eq=False)
class SelfAttention:
    """One layer's attention with its parameters."""

    plan: AttentionPlan
    index: int
    qkv: Product
    norms: tuple[RmsNorm, RmsNorm] | None
    output: Product
    softmax: Softmax

    def inputs(self, x: Tensor, run: Run, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each [n, heads, head_dim]."""
        plan = self.plan
        heads = (plan.heads, plan.key_value_heads, plan.key_value_heads)
        qkv = self.qkv(x).contiguous()
        rope = plan.rope
        in_place = rope is not None and self.norms is None and not rope.interleaved and compiled(qkv)
        if rope is not None:
            cos, sin = run.angles(rope, rope.rotary_dim or plan.head_dim, rows)
        if in_place:
            angles = cos[:, 0].numpy(), sin[:, 0].numpy()
            rotate_heads(qkv.numpy(), *angles, heads=sum(heads[:2]), head_dim=plan.head_dim)
        queries, keys, values = torch.split(qkv, [n * plan.head_dim for n in heads], dim=1)
        if self.norms is not None and plan.qk_norm == "projection":
            queries, keys = self.norms[0](queries), self.norms[1](keys)
        queries, keys, values = (
            torch.unflatten(part, 1, (n, plan.head_dim))
            for part, n in zip((queries, keys, values), heads, strict=True)
        )
        if self.norms is not None and plan.qk_norm == "head":
            queries, keys = self.norms[0](queries), self.norms[1](keys)
        if rope is not None and not in_place:
            turn = rope.interleaved
            queries, keys = (rotate(part, cos, sin, interleaved=turn) for part in (queries, keys))
        return queries, keys, values

    def mix(self, parts: tuple[Tensor, ...], run: Run) -> Tensor:
        """What every row gathers, [rows, heads * head_dim]."""
        queries, keys, values = parts
        return run.attend(self.index, queries, keys, values, self.softmax).flatten(1)

    def outputs(self, mixed: Tensor) -> Tensor:
        """Project back, [n, hidden]."""
        return self.output(mixed)
