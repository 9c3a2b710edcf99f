"""gpt-oss: attention sinks, windows in every other layer, clamped experts with biases."""

from __future__ import annotations

import dataclasses

from auditor.reference.architecture import LayerPlan, ModelConfig, Norm, Rope
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.layers.experts import ExpertsPlan
from auditor.reference.layers.mlp import ClampedGated
from auditor.reference.layers.router import RouterPlan
from auditor.reference.layers.self_attention import AttentionPlan

# What transformers assumes when the file has no such field.
DEFAULT_KEY_VALUE_HEADS = 8
DEFAULT_HEAD_DIM = 64
DEFAULT_SLIDING_WINDOW = 128
DEFAULT_EPS = 1e-5
DEFAULT_THETA = 150_000.0
DEFAULT_ALPHA, DEFAULT_LIMIT = 1.702, 7.0


def describe(fields: Fields) -> ModelConfig:
    """Read a `gpt_oss` configuration; the published weights in mxfp4 are quantized, and refused as such."""
    fields.refuse("quantization_config", because="experts are read dense; dequantize the checkpoint first")
    fields.text("hidden_act", "silu", ("silu",))
    hidden = fields.integer("hidden_size")
    plan, window = attention(fields), common.sliding_window(fields, DEFAULT_SLIDING_WINDOW)
    kinds = common.layer_types(fields, lambda index: common.FULL if index % 2 else common.SLIDING)
    layers = [dataclasses.replace(plan, window=window if kind == common.SLIDING else None) for kind in kinds]
    mixture = experts(fields, hidden)
    norm = Norm(fields.number("rms_norm_eps", DEFAULT_EPS), late_cast=True)
    return common.decoder(fields, lambda index: LayerPlan(layers[index], mixture), norm=norm)


def attention(fields: Fields) -> AttentionPlan:
    """Read what all layers share."""
    heads, key_value_heads = common.heads(fields, DEFAULT_KEY_VALUE_HEADS)
    bias = fields.boolean("attention_bias", default=True)
    return AttentionPlan(
        hidden_size=fields.integer("hidden_size"),
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=common.head_dim(fields, heads, DEFAULT_HEAD_DIM),
        rope=rope(fields),
        qkv_bias=bias,
        output_bias=bias,
        sinks=True,
    )


def rope(fields: Fields) -> Rope:
    """Read the rotary parameters, which must be there: the default is YaRN of certain numbers."""
    if not rotary.stored(fields):
        fields.corrupt("rope_parameters are missing")
    found = rotary.rope(fields, theta=DEFAULT_THETA)
    if fields.raw.get("initial_context_length") not in (None, found.original_context_length):
        fields.corrupt("initial_context_length contradicts the rotary parameters")
    return found


def experts(fields: Fields, hidden: int) -> ExpertsPlan:
    """Read the mixture; old files name the experts of a token twice."""
    chosen = fields.either("num_experts_per_tok", "experts_per_token")
    count, _ = common.experts(fields, "num_local_experts", "num_experts")
    gated = ClampedGated(
        fields.number("swiglu_alpha", DEFAULT_ALPHA), fields.number("swiglu_limit", DEFAULT_LIMIT)
    )
    router = RouterPlan(hidden, count, chosen, "mlp.router", scoring="chosen_softmax", bias=True)
    return ExpertsPlan(hidden, fields.integer("intermediate_size"), router, listed=None, clamped=gated)
