"""Small random checkpoints of every family, as transformers saves them, and what transformers makes of them."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from auditor.reference.config import read_config

SMALL = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 40}
MSCALE = {"mscale": 1.2, "mscale_all_dim": 0.7, "beta_fast": 16.0, "truncate": False}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
    "partial_rotary_factor": 0.75,
}
DEEPSEEK = {
    "num_key_value_heads": 6,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
}
GRANITE = {
    "shared_intermediate_size": 40,
    "mamba_n_heads": 12,
    "mamba_d_state": 16,
    "embedding_multiplier": 2.3,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.7,
    "logits_scaling": 1.7,
}
MAMBA = {
    "vocab_size": 128,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_heads": 12,
    "head_dim": 8,
    "state_size": 16,
}
ARCHITECTURES = {
    "deepseek_v3": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SMALL | DEEPSEEK, rope_parameters=YARN | MSCALE, q_lora_rank=24, attention_bias=True
        )
    ),
    "deepseek_v3-direct-queries": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(**SMALL | DEEPSEEK, rope_interleave=False, q_lora_rank=None, norm_topk_prob=False)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SMALL, head_dim=16, sliding_window=20, query_pre_attn_scalar=10, attn_logit_softcapping=2.0
        )
    ),
    "gemma2-uncapped-untied": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SMALL,
            head_dim=8,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            tie_word_embeddings=False,
            attention_bias=True,
        )
    ),
    "gemma3_text": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SMALL,
            head_dim=8,
            sliding_window=20,
            query_pre_attn_scalar=10,
            final_logit_softcapping=3.0,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        )
    ),
    "gpt_oss": lambda: GptOssForCausalLM(
        GptOssConfig(
            **SMALL,
            head_dim=8,
            num_local_experts=5,
            num_experts_per_tok=2,
            sliding_window=20,
            swiglu_limit=1.5,
            rope_parameters=YARN | {"truncate": False},
        )
    ),
    "granitemoehybrid": lambda: GraniteMoeHybridForCausalLM(
        GraniteMoeHybridConfig(
            **SMALL,
            **GRANITE,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            position_embedding_type="rope",
            num_local_experts=5,
            mamba_n_groups=3,
        )
    ),
    "granitemoehybrid-dense-nope": lambda: GraniteMoeHybridForCausalLM(
        GraniteMoeHybridConfig(
            **SMALL,
            **GRANITE,
            layer_types=["linear_attention", "full_attention", "full_attention"],
            num_local_experts=0,
            mamba_conv_bias=False,
            mamba_proj_bias=True,
            tie_word_embeddings=True,
        )
    ),
    "llama-yarn": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=YARN)),
    "llama-yarn-mscale": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=YARN | MSCALE)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**SMALL)),
    "phi3-window": lambda: Phi3ForCausalLM(Phi3Config(**SMALL, sliding_window=30)),
    "phi3-longrope-short": lambda: Phi3ForCausalLM(
        Phi3Config(**SMALL, rope_parameters=LONGROPE | {"factor": 8.0}, original_max_position_embeddings=150)
    ),
    "mamba2": lambda: Mamba2ForCausalLM(Mamba2Config(**MAMBA, n_groups=2)),
    "mamba2-plain-residual": lambda: Mamba2ForCausalLM(
        Mamba2Config(
            **MAMBA,
            n_groups=1,
            residual_in_fp32=False,
            use_bias=True,
            use_conv_bias=False,
            time_step_limit=(0.05, 0.9),
            tie_word_embeddings=True,
        )
    ),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=5, sliding_window=50)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SMALL, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=3, head_dim=16)
    ),
    "qwen3_moe-some-dense": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SMALL,
            moe_intermediate_size=24,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            mlp_only_layers=[1],
        )
    ),
}


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", ARCHITECTURES)


def _saved(architecture, directory):
    torch.manual_seed(7)
    model = ARCHITECTURES[architecture]()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1 and "inv_freq" not in name:
                tensor.add_(torch.randn_like(tensor) * 0.3)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory):
    """A function from an architecture's name to the directory of its checkpoint; do not write there."""
    made = {}

    def directory(architecture):
        if architecture not in made:
            made[architecture] = _saved(architecture, tmp_path_factory.mktemp("families") / architecture)
        return made[architecture]

    return directory


@pytest.fixture(scope="session")
def transformers_logits():
    """A function from a directory and sequences to logits."""

    @torch.no_grad()
    def logits(directory, sequences, dtype=torch.float32):
        # transformers' default attention leaves soft caps out.
        options = {"attn_implementation": "eager"} if "gemma2" in directory.name else {}
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **options)
        return torch.cat([model(tokens[None], use_cache=False).logits[0].float() for tokens in sequences])

    return logits


@pytest.fixture
def read(tmp_path):
    """A function from configuration fields to what they describe; fields given as ... are left out."""

    def describe(base, **fields):
        values = {name: value for name, value in (base | fields).items() if value is not ...}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return read_config(tmp_path)

    return describe
