"""DeepSeek-V3: scales, groups, and the layers that predict further tokens."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.layers.experts import ExpertsPlan
from auditor.reference.model import Model

# The published file, but for `quantization_config`, `auto_map` and the number of layers.
PUBLISHED = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 5,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def test_the_published_configuration(read):
    config = read(PUBLISHED)
    assert [isinstance(plan.feed_forward, ExpertsPlan) for plan in config.layers] == [False] * 3 + [True] * 2
    attention, mixture = config.layers[0].mixer, config.layers[3].feed_forward
    assert attention.key_value_shape == (128, 192, 128)
    assert attention.scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)
    assert (attention.rope.interleaved, attention.rope.attention_factor) == (True, 1.0)
    assert (mixture.router.groups, mixture.router.chosen_groups, mixture.router.scale) == (8, 4, 2.5)
    assert (config.context_length, config.ignored) == (163840, ("model.layers.5.",))
    assert config.shares_prefixes


def test_without_yarn_nothing_is_scaled(read):
    attention = read(PUBLISHED, rope_scaling=None, q_lora_rank=None).layers[0].mixer
    assert (attention.scale, attention.query_rank) == (192**-0.5, 0)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"topk_method": "group_limited_greedy"}, ModelUnsupportedError),
        ({"scoring_func": "softmax"}, ModelUnsupportedError),
        ({"moe_layer_freq": 2}, ModelUnsupportedError),
        ({"index_topk": 2048}, ModelUnsupportedError),
        ({"quantization_config": {"quant_method": "fp8"}}, ModelUnsupportedError),
        ({"num_key_value_heads": 64}, ModelCorruptError),
        ({"head_dim": 128}, ModelCorruptError),
        ({"qk_rope_head_dim": 63}, ModelCorruptError),
        ({"n_group": 7}, ModelCorruptError),
        ({"n_group": 256}, ModelCorruptError),
        ({"topk_group": 9}, ModelCorruptError),
        ({"n_shared_experts": 0}, ModelCorruptError),
    ],
)
def test_what_is_refused(read, fields, error):
    with pytest.raises(error):
        read(PUBLISHED, **fields)


def test_further_layers_are_left_alone_and_offsets_stay_exact(checkpoint_of, tmp_path):
    source = checkpoint_of("deepseek_v3")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.3.eh_proj.weight"] = torch.full((2, 2), torch.nan)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    model = Model.load(tmp_path, dtype=torch.bfloat16)
    tokens = torch.arange(30)
    assert torch.equal(model.prefill([tokens]), Model.load(source, dtype=torch.bfloat16).prefill([tokens]))
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert torch.equal(model.parameters[name], tensors[name])
    assert not torch.equal(tensors[name], tensors[name].bfloat16().float())
    tensors["model.layers.4.eh_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnsupportedError, match=r"layers\.4"):
        Model.load(tmp_path)
