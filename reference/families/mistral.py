"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from auditor.reference.architecture import LayerPlan, ModelConfig
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.self_attention import AttentionPlan

# What transformers assumes when the file has no such field.
DEFAULT_KEY_VALUE_HEADS = 8
DEFAULT_SLIDING_WINDOW = 4096


def describe(fields: Fields) -> ModelConfig:
    """Read a `mistral` configuration."""
    fields.text("hidden_act", "silu", ("silu",))
    fields.refuse("layer_types", "attention_bias", "mlp_bias")
    heads, key_value_heads = common.heads(fields, DEFAULT_KEY_VALUE_HEADS)
    hidden = fields.integer("hidden_size")
    attention = AttentionPlan(
        hidden_size=hidden,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=common.head_dim(fields, heads),
        rope=rotary.rope(fields),
        window=common.sliding_window(fields, DEFAULT_SLIDING_WINDOW),
    )
    mlp = MlpPlan(hidden, fields.integer("intermediate_size"))
    return common.decoder(fields, lambda _: LayerPlan(attention, mlp))
