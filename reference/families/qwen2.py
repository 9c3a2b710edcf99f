"""Qwen 2 and 2.5: biases on queries, keys and values; some layers may slide."""

from __future__ import annotations

import dataclasses

from auditor.reference.architecture import LayerPlan, ModelConfig
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.self_attention import AttentionPlan

# What transformers assumes when the file has no such field.
DEFAULT_KEY_VALUE_HEADS = 32
DEFAULT_SLIDING_WINDOW = 4096
DEFAULT_MAX_WINDOW_LAYERS = 28


def describe(fields: Fields) -> ModelConfig:
    """Read a `qwen2` configuration."""
    fields.text("hidden_act", "silu", ("silu",))
    fields.refuse("mlp_bias")
    heads, key_value_heads = common.heads(fields, DEFAULT_KEY_VALUE_HEADS)
    hidden = fields.integer("hidden_size")
    attention = AttentionPlan(
        hidden_size=hidden,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=common.head_dim(fields, heads),
        rope=rotary.rope(fields),
        qkv_bias=True,
    )
    mlp = MlpPlan(hidden, fields.integer("intermediate_size"))
    windows = sliding_layers(fields)
    return common.decoder(
        fields, lambda index: LayerPlan(dataclasses.replace(attention, window=windows[index]), mlp)
    )


def sliding_layers(fields: Fields) -> list[int | None]:
    """Each layer's window; layers from `max_window_layers` on slide when `use_sliding_window` is set."""
    window = common.sliding_window(fields, DEFAULT_SLIDING_WINDOW)
    if not fields.boolean("use_sliding_window"):
        window = None
    first = fields.integer("max_window_layers", DEFAULT_MAX_WINDOW_LAYERS, least=0)

    def by_rule(index: int) -> str:
        return common.SLIDING if window is not None and index >= first else common.FULL

    types = common.layer_types(fields, by_rule)
    if window is None and common.SLIDING in types:
        fields.corrupt("layer_types has sliding_attention but no sliding window is in use")
    return [window if kind == common.SLIDING else None for kind in types]
