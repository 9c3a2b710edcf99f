"""OLMo 2: Llama with norms after each part instead of before it, and normalised queries and keys."""

from __future__ import annotations

import dataclasses

from auditor.reference.architecture import LayerPlan, ModelConfig, Norm
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.self_attention import AttentionPlan

DEFAULT_EPS = 1e-5  # what transformers assumes when the file has no such field


def describe(fields: Fields) -> ModelConfig:
    """Read an `olmo2` configuration."""
    fields.text("hidden_act", "silu", ("silu",))
    heads, key_value_heads = common.heads(fields)
    hidden, bias = fields.integer("hidden_size"), fields.boolean("attention_bias")
    attention = AttentionPlan(
        hidden_size=hidden,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=common.head_dim(fields, heads),
        rope=dataclasses.replace(rotary.rope(fields), float32=True),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="projection",
    )
    plan = LayerPlan(
        attention,
        MlpPlan(hidden, fields.integer("intermediate_size")),
        mixer_norm=None,
        feed_forward_norm=None,
        mixer_post_norm="post_attention_layernorm",
        feed_forward_post_norm="post_feedforward_layernorm",
    )
    norm = Norm(fields.number("rms_norm_eps", DEFAULT_EPS), late_cast=True)
    return common.decoder(fields, lambda _: plan, norm=norm)
