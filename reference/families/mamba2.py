"""Mamba-2: recurrent layers only."""

from __future__ import annotations

from auditor.reference.architecture import LayerPlan, ModelConfig, Norm
from auditor.reference.config import Fields
from auditor.reference.families import recurrent
from auditor.reference.layers.mamba2 import Mamba2Plan

DEFAULT_EPS = 1e-5  # what transformers assumes when the file has no such field
UNBOUNDED = 2**31 - 1  # positions; a recurrence has no end


def describe(fields: Fields) -> ModelConfig:
    """Read a `mamba2` configuration."""
    fields.text("hidden_act", "silu", ("silu",))
    fields.skip(*recurrent.UNUSED, "norm_before_gate")  # the gate comes first whatever the file says
    if not fields.boolean("rms_norm", default=True):
        fields.unsupported("rms_norm false", "the mixer has a norm")
    norm = Norm(fields.number("layer_norm_epsilon", DEFAULT_EPS))
    plan = LayerPlan(mixer(fields, norm), None, mixer_norm="norm", feed_forward_norm=None)
    return ModelConfig(
        model_type="mamba2",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        context_length=UNBOUNDED,
        norm=norm,
        tie_word_embeddings=fields.boolean("tie_word_embeddings"),
        layers=(plan,) * fields.integer("num_hidden_layers"),
        residual_float32=fields.boolean("residual_in_fp32", default=True),
        embedding="backbone.embeddings.weight",
        final_norm="backbone.norm_f.weight",
        layer_prefix="backbone.layers.{}",
    )


def mixer(fields: Fields, norm: Norm) -> Mamba2Plan:
    """Read what all layers share."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_heads")
    least, most = recurrent.time_steps(fields)
    return Mamba2Plan(
        hidden_size=hidden,
        heads=heads,
        head_dim=recurrent.head_dim(fields, hidden * fields.integer("expand", 2), heads, "head_dim"),
        groups=recurrent.groups(fields, heads, "n_groups", 8),
        state_dim=fields.integer("state_size", 128),
        taps=fields.integer("conv_kernel", 4),
        taps_bias=fields.boolean("use_conv_bias", default=True),
        bias=fields.boolean("use_bias"),
        least_step=least,
        most_step=most,
        norm=norm,
        module="mixer",
    )
