"""gpt-oss: the published configuration, and what is refused."""

from __future__ import annotations

import pytest
import torch

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.layers.mlp import ClampedGated

ROPE = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "truncate": False,
}
# The published file of the 20B model, but for `quantization_config` and the number of layers.
PUBLISHED = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": ROPE,
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}


def test_the_published_configuration(read):
    config = read(PUBLISHED)
    assert [plan.mixer.window for plan in config.layers] == [128, None, 128, None]
    attention, mixture = config.layers[0].mixer, config.layers[0].feed_forward
    assert (attention.heads, attention.key_value_heads, attention.sinks) == (64, 8, True)
    assert (attention.rope.truncate, attention.rope.theta) == (False, 150000)
    assert (mixture.router.experts, mixture.router.chosen) == (32, 4)
    assert mixture.clamped == ClampedGated(1.702, 7.0)
    assert config.context_length == 131072


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"quantization_config": {"quant_method": "mxfp4"}}, ModelUnsupportedError),
        ({"rope_scaling": ROPE | {"rope_type": "dynamic"}}, ModelUnsupportedError),
        ({"layer_types": ["chunked_attention"] * 4}, ModelUnsupportedError),
        ({"rope_scaling": ...}, ModelCorruptError),
        ({"initial_context_length": 2048}, ModelCorruptError),
        ({"experts_per_token": 3}, ModelCorruptError),
        ({"swiglu_limit": 0}, ModelCorruptError),
    ],
)
def test_what_is_refused(read, fields, error):
    with pytest.raises(error):
        read(PUBLISHED, **fields)


def test_gates_are_clamped_above_and_the_rest_on_both_sides():
    gate_up = torch.tensor([[100.0, 100.0, -100.0, -100.0, 1.0, 0.5]])
    expected = torch.tensor([7 * 8 / (1 + torch.exp(torch.tensor(-7 * 1.702))), 0.0, 1.5])
    expected[2] = 1.5 / (1 + torch.exp(torch.tensor(-1.702)))
    assert torch.allclose(ClampedGated(1.702, 7.0)(gate_up), expected[None], atol=1e-6)
