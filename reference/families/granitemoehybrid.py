"""Granite 4: Mamba-2 and attention layers, experts beside one expert for all, and multipliers everywhere."""

from __future__ import annotations

from auditor.reference.architecture import FeedForwardPlan, LayerPlan, MixerPlan, ModelConfig, Norm
from auditor.reference.config import Fields
from auditor.reference.families import common, recurrent, rotary
from auditor.reference.layers.experts import ExpertsPlan
from auditor.reference.layers.mamba2 import Mamba2Plan
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.router import RouterPlan
from auditor.reference.layers.self_attention import AttentionPlan

LINEAR = "linear_attention"
OLD_KINDS = {"mamba": LINEAR, "attention": common.FULL}
MODULE = "block_sparse_moe"


def describe(fields: Fields) -> ModelConfig:
    """Read a `granitemoehybrid` configuration."""
    fields.refuse("quantization_config", because="experts are read dense; dequantize the checkpoint first")
    fields.text("hidden_act", "silu", ("silu",))
    fields.skip(*recurrent.UNUSED, "normalization_function", "init_method")
    norm = Norm(fields.number("rms_norm_eps", 1e-6))
    mixers: dict[str, MixerPlan] = {LINEAR: mixer(fields, norm), common.FULL: attention(fields)}
    plan, scale = feed_forward(fields), fields.number("residual_multiplier", 1.0)
    kinds = layer_kinds(fields)
    return common.decoder(
        fields,
        lambda index: LayerPlan(mixers[kinds[index]], plan, scale=scale),
        norm=norm,
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        round_embedding_scale=False,
        logits_divisor=fields.number("logits_scaling", 1.0),
    )


def layer_kinds(fields: Fields) -> list[str]:
    """What mixes in each layer, under its new or its old name."""
    layers = fields.integer("num_hidden_layers")
    listed = fields.raw.get("layers_block_type")
    kinds = fields.raw.get("layer_types") or listed or [LINEAR] * layers
    if not isinstance(kinds, list) or len(kinds) != layers:
        fields.corrupt(f"layer_types must list {layers} layers")
    kinds = [OLD_KINDS.get(kind, kind) for kind in kinds if isinstance(kind, str)]
    for kind in kinds:
        if kind not in (LINEAR, common.FULL):
            fields.unsupported(f"layer type {kind!r}", f"implemented: {LINEAR}, {common.FULL}")
    return kinds


def attention(fields: Fields) -> AttentionPlan:
    """Read the attention of those layers that have it; without positions unless the file asks for them."""
    heads, key_value_heads = common.heads(fields)
    bias = fields.boolean("attention_bias")
    if fields.raw.get("position_embedding_type") is not None:
        fields.text("position_embedding_type", "rope", ("rope", "nope"))
    rope = rotary.rope(fields)
    return AttentionPlan(
        hidden_size=fields.integer("hidden_size"),
        heads=heads,
        key_value_heads=key_value_heads,
        head_dim=common.head_dim(fields, heads),
        rope=rope if fields.raw.get("position_embedding_type") == "rope" else None,
        scale=fields.number("attention_multiplier", 1.0),
        qkv_bias=bias,
        output_bias=bias,
    )


def mixer(fields: Fields, norm: Norm) -> Mamba2Plan:
    """Read the recurrent layers' mixer."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("mamba_n_heads", 128)
    width = hidden * fields.integer("mamba_expand", 2)
    least, most = recurrent.time_steps(fields)
    return Mamba2Plan(
        hidden_size=hidden,
        heads=heads,
        head_dim=recurrent.head_dim(fields, width, heads, "mamba_d_head"),
        groups=recurrent.groups(fields, heads, "mamba_n_groups", 1),
        state_dim=fields.integer("mamba_d_state", 256),
        taps=fields.integer("mamba_d_conv", 4),
        taps_bias=fields.boolean("mamba_conv_bias", default=True),
        bias=fields.boolean("mamba_proj_bias"),
        least_step=least,
        most_step=most,
        norm=norm,
        module="mamba",
    )


def feed_forward(fields: Fields) -> FeedForwardPlan:
    """Read the shared expert, and the others where there are any."""
    hidden = fields.integer("hidden_size")
    shared = MlpPlan(
        hidden,
        fields.integer("shared_intermediate_size"),
        module="shared_mlp",
        names=("", "", "output_linear"),
        fused="input_linear",
    )
    if fields.integer("num_local_experts", least=0) == 0:
        fields.skip("intermediate_size", "num_experts_per_tok")
        return shared
    count, chosen = common.experts(fields, "num_local_experts")
    return ExpertsPlan(
        hidden,
        fields.integer("intermediate_size"),
        RouterPlan(hidden, count, chosen, f"{MODULE}.router.layer", scoring="chosen_softmax"),
        module=MODULE,
        listed=None,
        fused=("input_linear.weight", "output_linear.weight"),
        shared=shared,
    )
