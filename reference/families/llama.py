"""Llama 2 and 3, and everything that calls itself one."""

from __future__ import annotations

from auditor.reference.architecture import LayerPlan, ModelConfig
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.self_attention import AttentionPlan


def describe(fields: Fields) -> ModelConfig:
    """Read a `llama` configuration."""
    fields.text("hidden_act", "silu", ("silu",))
    # transformers ignores these here while other engines obey them: the checkpoint does not say one thing.
    fields.refuse("sliding_window", "layer_types")
    heads, key_value_heads = common.heads(fields)
    bias = fields.boolean("attention_bias")
    hidden = fields.integer("hidden_size")
    attention = AttentionPlan(
        hidden_size=hidden,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=common.head_dim(fields, heads),
        rope=rotary.rope(fields),
        qkv_bias=bias,
        output_bias=bias,
    )
    mlp = MlpPlan(hidden, fields.integer("intermediate_size"), bias=fields.boolean("mlp_bias"))
    return common.decoder(fields, lambda _: LayerPlan(attention, mlp))
