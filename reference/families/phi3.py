"""Phi-3 and Phi-4-mini: Llama with fused projections, heads that turn in part, longrope."""

from __future__ import annotations

import dataclasses

from auditor.reference.architecture import LayerPlan, ModelConfig, Norm, Rope
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.self_attention import AttentionPlan

# What transformers assumes when the file has no such field.
DEFAULT_EPS = 1e-5
DEFAULT_ORIGINAL = 4096


def describe(fields: Fields) -> ModelConfig:
    """Read a `phi3` configuration."""
    fields.text("hidden_act", "silu", ("silu",))
    fields.refuse("attention_bias", "mlp_bias", "layer_types")
    heads, key_value_heads = common.heads(fields)
    head_dim = common.head_dim(fields, heads)
    hidden = fields.integer("hidden_size")
    attention = AttentionPlan(
        hidden_size=hidden,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        rope=rope(fields, head_dim),
        window=common.sliding_window(fields, None),
        fused=True,
    )
    mlp = MlpPlan(hidden, fields.integer("intermediate_size"), fused="gate_up_proj")
    norm = Norm(fields.number("rms_norm_eps", DEFAULT_EPS))
    return common.decoder(fields, lambda _: LayerPlan(attention, mlp), norm=norm)


def rope(fields: Fields, head_dim: int) -> Rope:
    """Read the rotary parameters; the original context length and the part that turns may lie outside."""
    raw = rotary.stored(fields)
    share = raw.pop("partial_rotary_factor", fields.raw.get("partial_rotary_factor", 1.0))
    share = fields.number("partial_rotary_factor", holder={"partial_rotary_factor": share})
    original = fields.integer(rotary.ORIGINAL, DEFAULT_ORIGINAL)
    if rotary.rope_type(raw) == "su":
        raw["rope_type"] = "longrope"
    if rotary.rope_type(raw) == "longrope":
        raw[rotary.ORIGINAL] = original
    turned = int(head_dim * share)
    if turned > head_dim or turned % 2 or turned == 0:
        fields.corrupt(f"partial_rotary_factor {share} turns {turned} of {head_dim} dimensions")
    found = rotary.parsed(fields, raw, allowed=("default", "longrope"))
    if any(len(divisors) not in (0, turned // 2) for divisors in (found.short_factors, found.long_factors)):
        fields.corrupt(f"short_factor and long_factor must list {turned // 2} numbers")
    return dataclasses.replace(found, rotary_dim=turned)
