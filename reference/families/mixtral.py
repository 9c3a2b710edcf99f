"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from auditor.reference.architecture import LayerPlan, ModelConfig, Norm
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.layers.experts import ExpertsPlan
from auditor.reference.layers.router import RouterPlan
from auditor.reference.layers.self_attention import AttentionPlan

# What transformers assumes when the file has no such field.
DEFAULT_KEY_VALUE_HEADS = 8
DEFAULT_EPS = 1e-5
DEFAULT_THETA = 1_000_000.0
MODULE = "block_sparse_moe"


def describe(fields: Fields) -> ModelConfig:
    """Read a `mixtral` configuration."""
    fields.refuse("quantization_config", because="experts are read dense; dequantize the checkpoint first")
    fields.text("hidden_act", "silu", ("silu",))
    heads, key_value_heads = common.heads(fields, DEFAULT_KEY_VALUE_HEADS)
    hidden = fields.integer("hidden_size")
    attention = AttentionPlan(
        hidden_size=hidden,
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=common.head_dim(fields, heads),
        rope=rotary.rope(fields, theta=DEFAULT_THETA),
        window=common.sliding_window(fields, None),
    )
    experts, chosen = common.experts(fields, "num_local_experts")
    router = RouterPlan(hidden, experts, chosen, f"{MODULE}.gate", normalised=True, rounded=False)
    mixture = ExpertsPlan(
        hidden,
        fields.integer("intermediate_size"),
        router,
        module=MODULE,
        listed=("experts.{}.w1", "experts.{}.w3", "experts.{}.w2"),
    )
    norm = Norm(fields.number("rms_norm_eps", DEFAULT_EPS))
    return common.decoder(fields, lambda _: LayerPlan(attention, mixture), norm=norm)
