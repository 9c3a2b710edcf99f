"""DeepSeek-V3 and R1: latent attention, experts chosen by group, one expert for all, some layers dense."""

from __future__ import annotations

import dataclasses

from auditor.reference.architecture import LayerPlan, ModelConfig, Norm
from auditor.reference.config import Fields
from auditor.reference.families import common, rotary
from auditor.reference.layers.experts import ExpertsPlan
from auditor.reference.layers.latent_attention import LatentAttentionPlan
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.router import RouterPlan

LATENT_EPS = 1e-6  # of the latent norms, whatever the file says of the others
DEFAULT_DENSE_LAYERS = 3
DEFAULT_ROUTED_SCALE = 2.5


def describe(fields: Fields) -> ModelConfig:
    """Read a `deepseek_v3` configuration."""
    fields.refuse("quantization_config", because="experts are read dense; dequantize the checkpoint first")
    fields.text("hidden_act", "silu", ("silu",))
    fields.text("topk_method", "noaux_tc", ("noaux_tc",))
    fields.text("scoring_func", "sigmoid", ("sigmoid",))
    if fields.integer("moe_layer_freq", 1) != 1:
        fields.unsupported("moe_layer_freq", "every layer after the dense ones is a mixture")
    fields.skip("ep_size")
    attention = latent_attention(fields)
    hidden = fields.integer("hidden_size")
    dense = MlpPlan(hidden, fields.integer("intermediate_size"))
    mixture = experts(fields, hidden)
    first = fields.integer("first_k_dense_replace", DEFAULT_DENSE_LAYERS, least=0)
    layers = fields.integer("num_hidden_layers")
    # Layers that predict further tokens come after the last one and do not move its logits.
    more = fields.integer("num_nextn_predict_layers", 0, least=0)
    return common.decoder(
        fields,
        lambda index: LayerPlan(attention, mixture if index >= first else dense),
        ignored=tuple(f"model.layers.{index}." for index in range(layers, layers + more)),
    )


def latent_attention(fields: Fields) -> LatentAttentionPlan:
    """Read the attention that all layers share."""
    heads, key_value_heads = common.heads(fields)
    if heads != key_value_heads:
        fields.corrupt("latent attention has as many key/value heads as heads")
    still, turned = fields.integer("qk_nope_head_dim"), fields.integer("qk_rope_head_dim")
    for field, size in (("head_dim", turned), ("qk_head_dim", still + turned)):
        if fields.raw.get(field) not in (None, size):
            fields.corrupt(f"{field} must be {size}")
    if turned % 2:
        fields.corrupt(f"qk_rope_head_dim {turned}: rotary embeddings need an even size")
    rope = rotary.rope(fields, allowed=("default", "yarn"))
    return LatentAttentionPlan(
        hidden_size=fields.integer("hidden_size"),
        heads=heads,
        query_rank=fields.integer("q_lora_rank") if fields.raw.get("q_lora_rank") is not None else 0,
        key_value_rank=fields.integer("kv_lora_rank"),
        still_dim=still,
        turned_dim=turned,
        value_dim=fields.integer("v_head_dim"),
        rope=dataclasses.replace(rope, interleaved=fields.boolean("rope_interleave", default=True)),
        scale=(still + turned) ** -0.5 * growth(fields),
        bias=fields.boolean("attention_bias"),
        norm=Norm(LATENT_EPS),
    )


def growth(fields: Fields) -> float:
    """What YaRN multiplies scores by, besides what it does to cosine and sine."""
    raw = rotary.stored(fields)
    if rotary.rope_type(raw) == "default" or not raw.get("mscale_all_dim"):
        return 1.0
    factor, weight = (fields.number(name, holder=raw) for name in ("factor", "mscale_all_dim"))
    return rotary.magnitude(factor, weight) ** 2


def experts(fields: Fields, hidden: int) -> ExpertsPlan:
    """Read the mixture."""
    count, chosen = common.experts(fields, "n_routed_experts", "num_local_experts")
    groups, chosen_groups = fields.integer("n_group"), fields.integer("topk_group")
    if (
        count % groups
        or count < 2 * groups
        or chosen_groups > groups
        or chosen > count // groups * chosen_groups
    ):
        fields.corrupt(f"{chosen} of {count} experts cannot come from {chosen_groups} of {groups} groups")
    width = fields.integer("moe_intermediate_size")
    shared = MlpPlan(hidden, width * fields.integer("n_shared_experts"), module="mlp.shared_experts")
    router = RouterPlan(
        hidden,
        count,
        chosen,
        "mlp.gate",
        scoring="sigmoid",
        normalised=fields.boolean("norm_topk_prob", default=True),
        rounded=False,
        groups=groups,
        chosen_groups=chosen_groups,
        scale=fields.number("routed_scaling_factor", DEFAULT_ROUTED_SCALE),
    )
    return ExpertsPlan(hidden, width, router, shared=shared)
