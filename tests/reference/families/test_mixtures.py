"""Mixtral and Qwen 3 MoE: which layers are mixtures, how rows are weighted, and both forms of storage."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.layers.experts import ExpertsPlan
from auditor.reference.model import Model

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
}
QWEN = SIZES | {"model_type": "qwen3_moe", "moe_intermediate_size": 8, "num_experts": 4}
MIXTRAL = SIZES | {"model_type": "mixtral", "num_local_experts": 4}


def sparse(config):
    return [isinstance(plan.feed_forward, ExpertsPlan) for plan in config.layers]


def test_which_layers_are_mixtures(read):
    assert sparse(read(QWEN)) == [True] * 4
    assert sparse(read(QWEN, decoder_sparse_step=2)) == [False, True, False, True]
    assert sparse(read(QWEN, decoder_sparse_step=2, mlp_only_layers=[3])) == [False, True, False, False]
    assert sparse(read(MIXTRAL)) == [True] * 4


def test_how_rows_are_weighted(read):
    def router(config):
        plan = config.layers[0].feed_forward.router
        return plan.experts, plan.chosen, plan.normalised, plan.rounded

    assert router(read(QWEN)) == (4, 2, False, True)
    assert router(read(QWEN, norm_topk_prob=True)) == (4, 2, True, True)
    assert router(read(QWEN, num_experts=..., num_local_experts=4)) == (4, 2, False, True)
    assert router(read(MIXTRAL)) == (4, 2, True, False)
    assert read(MIXTRAL).layers[0].mixer.rope.theta == 1e6


@pytest.mark.parametrize(
    ("base", "fields", "error"),
    [
        (QWEN, {"use_sliding_window": True}, ModelUnsupportedError),
        (QWEN, {"shared_expert_intermediate_size": 8}, ModelUnsupportedError),
        (QWEN, {"num_local_experts": 8}, ModelCorruptError),
        (QWEN, {"num_experts_per_tok": 5}, ModelCorruptError),
        (QWEN, {"num_experts": ...}, ModelCorruptError),
        (QWEN, {"mlp_only_layers": 3}, ModelCorruptError),
        (MIXTRAL, {"num_experts_per_tok": 5}, ModelCorruptError),
        (MIXTRAL, {"hidden_act": "gelu"}, ModelUnsupportedError),
        (MIXTRAL, {"n_shared_experts": 1}, ModelUnsupportedError),
    ],
)
def test_what_is_refused(read, base, fields, error):
    with pytest.raises(error):
        read(base, **fields)


@pytest.mark.parametrize(
    ("family", "module", "names"),
    [
        ("qwen3_moe", "mlp", ("gate_proj", "up_proj", "down_proj")),
        ("mixtral", "block_sparse_moe", ("w1", "w3", "w2")),
    ],
)
def test_experts_in_one_tensor_are_the_same_model(checkpoint_of, tmp_path, family, module, names):
    source = checkpoint_of(family)
    tensors = load_file(source / "model.safetensors")
    listed = Model.load(source)
    for layer in range(3):
        own = f"model.layers.{layer}.{module}.experts"
        count = listed.config.layers[layer].feed_forward.router.experts
        gate, up, down = (
            torch.stack([tensors.pop(f"{own}.{i}.{name}.weight") for i in range(count)]) for name in names
        )
        tensors |= {f"{own}.gate_up_proj": torch.cat([gate, up], dim=1), f"{own}.down_proj": down}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    tokens = torch.arange(60) % 128
    assert torch.equal(Model.load(tmp_path).prefill([tokens]), listed.prefill([tokens]))


def test_a_row_is_the_same_among_rows_that_go_elsewhere(checkpoint_of):
    mixture = Model.load(checkpoint_of("qwen3_moe"))._layers[0].feed_forward
    rows = torch.randn(300, 48, generator=torch.Generator().manual_seed(0))
    whole = mixture(rows)
    for some in (slice(7, 8), slice(7, 9), slice(0, 40), slice(250, 300)):
        assert torch.equal(mixture(rows[some]), whole[some])
