"""Qwen 3 with a mixture of experts in all layers but those that the file names."""

from __future__ import annotations

from auditor.reference.architecture import LayerPlan, ModelConfig
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.layers.experts import ExpertsPlan
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.router import RouterPlan
from auditor.reference.layers.self_attention import AttentionPlan

DEFAULT_KEY_VALUE_HEADS = 4  # what transformers assumes when the file has no such field


def describe(fields: Fields) -> ModelConfig:
    """Read a `qwen3_moe` configuration."""
    fields.refuse("quantization_config", because="experts are read dense; dequantize the checkpoint first")
    fields.text("hidden_act", "silu", ("silu",))
    fields.refuse("use_sliding_window", "layer_types", "mlp_bias", "shared_expert_intermediate_size")
    fields.skip("sliding_window", "max_window_layers")
    heads, key_value_heads = common.heads(fields, DEFAULT_KEY_VALUE_HEADS)
    hidden, bias = fields.integer("hidden_size"), fields.boolean("attention_bias")
    attention = AttentionPlan(
        hidden_size=hidden,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=common.head_dim(fields, heads),
        rope=rotary.rope(fields),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
    )
    dense = MlpPlan(hidden, fields.integer("intermediate_size"))
    mixture = experts(fields, hidden)
    sparse = sparse_layers(fields)
    return common.decoder(fields, lambda index: LayerPlan(attention, mixture if sparse[index] else dense))


def experts(fields: Fields, hidden: int) -> ExpertsPlan:
    """Read the mixture."""
    count, chosen = common.experts(fields, "num_experts", "num_local_experts")
    normalised = fields.boolean("norm_topk_prob")
    router = RouterPlan(hidden, count, chosen, "mlp.gate", normalised=normalised)
    return ExpertsPlan(hidden, fields.integer("moe_intermediate_size"), router)


def sparse_layers(fields: Fields) -> list[bool]:
    """Whether each layer is a mixture."""
    step = fields.integer("decoder_sparse_step", 1)
    dense = fields.raw.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        fields.corrupt("mlp_only_layers must list layer numbers")
    return [i not in dense and (i + 1) % step == 0 for i in range(fields.integer("num_hidden_layers"))]
