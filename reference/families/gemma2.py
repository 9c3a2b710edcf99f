"""Gemma 2: norms around both parts of a layer, soft caps, windows in every other layer."""

from __future__ import annotations

import dataclasses

from auditor.reference.architecture import LayerPlan, ModelConfig, Norm
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.self_attention import AttentionPlan

# What transformers assumes when the file has no such field.
DEFAULT_KEY_VALUE_HEADS = 4
DEFAULT_HEAD_DIM = 256
DEFAULT_QUERY_SCALAR = 256.0
DEFAULT_SLIDING_WINDOW = 4096
DEFAULT_ATTENTION_SOFTCAP = 50.0
DEFAULT_LOGITS_SOFTCAP = 30.0
GELU = "gelu_pytorch_tanh"


def describe(fields: Fields) -> ModelConfig:
    """Read a `gemma2` configuration."""
    fields.skip("sliding_window_size")
    plan = dataclasses.replace(
        attention(fields),
        rope=rotary.rope(fields),
        softcap=softcap(fields, "attn_logit_softcapping", DEFAULT_ATTENTION_SOFTCAP),
    )
    kinds = common.layer_types(fields, lambda index: common.FULL if index % 2 else common.SLIDING)
    layers = [dataclasses.replace(plan, window=window(fields, kind)) for kind in kinds]
    return decoder(fields, layers, softcap(fields, "final_logit_softcapping", DEFAULT_LOGITS_SOFTCAP))


def attention(fields: Fields) -> AttentionPlan:
    """Read what Gemma 2 and 3 have in common, without positions and windows."""
    heads, key_value_heads = common.heads(fields, DEFAULT_KEY_VALUE_HEADS)
    bias = fields.boolean("attention_bias")
    return AttentionPlan(
        hidden_size=fields.integer("hidden_size"),
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=common.head_dim(fields, heads, DEFAULT_HEAD_DIM),
        rope=None,
        scale=fields.number("query_pre_attn_scalar", DEFAULT_QUERY_SCALAR) ** -0.5,
        qkv_bias=bias,
        output_bias=bias,
    )


def window(fields: Fields, kind: str) -> int | None:
    """Read the window of a layer of that kind."""
    return common.sliding_window(fields, DEFAULT_SLIDING_WINDOW) if kind == common.SLIDING else None


def softcap(fields: Fields, field: str, default: float) -> float:
    """Read a soft cap, 0 where there is none."""
    return 0.0 if fields.raw.get(field, default) in (None, 0.0) else fields.number(field, default)


def decoder(fields: Fields, layers: list[AttentionPlan], logits_softcap: float) -> ModelConfig:
    """Build a decoder with Gemma's norms, feed-forward part and embeddings."""
    fields.text("hidden_act", GELU, (GELU,))
    fields.text("hidden_activation", GELU, (GELU,))
    fields.refuse("use_bidirectional_attention")
    hidden = fields.integer("hidden_size")
    mlp = MlpPlan(hidden, fields.integer("intermediate_size"), "gelu_tanh")
    return common.decoder(
        fields,
        lambda index: LayerPlan(
            layers[index],
            mlp,
            mixer_post_norm="post_attention_layernorm",
            feed_forward_norm="pre_feedforward_layernorm",
            feed_forward_post_norm="post_feedforward_layernorm",
        ),
        norm=Norm(fields.number("rms_norm_eps", 1e-6), offset=1.0, late_cast=True),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=True),
        embedding_scale=hidden**0.5,
        logits_softcap=logits_softcap,
    )
