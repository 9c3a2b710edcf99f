"""Qwen 3: Qwen 2 with normalised query and key heads."""

from __future__ import annotations

import dataclasses

from auditor.reference.architecture import LayerPlan, ModelConfig
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.families.qwen2 import DEFAULT_KEY_VALUE_HEADS, sliding_layers
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.self_attention import AttentionPlan

DEFAULT_HEAD_DIM = 128


def attention(fields: Fields) -> list[AttentionPlan]:
    """Each layer's attention."""
    heads, key_value_heads = common.heads(fields, DEFAULT_KEY_VALUE_HEADS)
    bias = fields.boolean("attention_bias")
    plan = AttentionPlan(
        hidden_size=fields.integer("hidden_size"),
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=common.head_dim(fields, heads, DEFAULT_HEAD_DIM),
        rope=rotary.rope(fields),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
    )
    return [dataclasses.replace(plan, window=window) for window in sliding_layers(fields)]


def describe(fields: Fields) -> ModelConfig:
    """Read a `qwen3` configuration."""
    fields.text("hidden_act", "silu", ("silu",))
    fields.refuse("mlp_bias")
    layers = attention(fields)
    mlp = MlpPlan(fields.integer("hidden_size"), fields.integer("intermediate_size"))
    return common.decoder(fields, lambda index: LayerPlan(layers[index], mlp))
