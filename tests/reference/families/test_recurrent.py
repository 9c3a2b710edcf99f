"""Mamba-2 and Granite 4: what their files say, and what becomes of the state that sequences carry."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from auditor.errors import ModelCorruptError, ModelUnsupportedError, OptionError
from auditor.reference.batch import Span, extend
from auditor.reference.drafters import DraftTree
from auditor.reference.layers.mamba2 import Mamba2Plan
from auditor.reference.layers.self_attention import AttentionPlan
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence
from tests.reference.drafters.identity import same_as_plain

# As published for 780 million parameters.
MAMBA2 = {
    "model_type": "mamba2",
    "architectures": ["Mamba2ForCausalLM"],
    "num_hidden_layers": 48,
    "hidden_size": 1536,
    "vocab_size": 50288,
    "state_size": 128,
    "num_heads": 48,
    "head_dim": 64,
    "expand": 2,
    "conv_kernel": 4,
    "n_groups": 1,
    "chunk_size": 256,
    "time_step_limit": [0.0, math.inf],
    "time_step_rank": 96,
    "time_step_min": 0.001,
    "rms_norm": True,
    "norm_before_gate": True,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": True,
    "tie_word_embeddings": True,
}
GRANITE = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "attention_bias": False,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12,
    "hidden_act": "silu",
    "hidden_size": 512,
    "initializer_range": 0.1,
    "intermediate_size": 1024,
    "layer_types": ["mamba", "attention", "mamba", "attention"],
    "logits_scaling": 2,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 128,
    "mamba_d_state": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 8,
    "mamba_proj_bias": False,
    "max_position_embeddings": 4096,
    "model_type": "granitemoehybrid",
    "normalization_function": "rmsnorm",
    "num_attention_heads": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "position_embedding_type": "nope",
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000,
    "shared_intermediate_size": 512,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


def test_the_published_mamba2(read):
    config = read(MAMBA2)
    mixer = config.layers[0].mixer
    assert (mixer.width, mixer.channels, mixer.heads) == (3072, 3072 + 256, 48)
    assert (mixer.least_step, mixer.most_step) == (0.0, math.inf)
    assert (config.residual_float32, config.context_length > 2**30, config.shares_prefixes) == (
        True,
        True,
        False,
    )
    assert config.layers[0].feed_forward is None
    written = read(MAMBA2, time_step_limit=[0.0, {"__float__": "Infinity"}])
    assert written == config


def test_a_granite(read):
    config = read(GRANITE)
    assert [type(plan.mixer) for plan in config.layers] == [Mamba2Plan, AttentionPlan] * 2
    assert (config.embedding_scale, config.round_embedding_scale, config.logits_divisor) == (12.0, False, 2.0)
    assert {plan.scale for plan in config.layers} == {0.22}
    assert config.layers[1].mixer.rope is None
    assert read(GRANITE, position_embedding_type="rope").layers[1].mixer.rope is not None
    named = read(GRANITE, layer_types=["linear_attention", "full_attention"] * 2)
    assert named == config
    assert not config.shares_prefixes
    assert read(GRANITE, layer_types=["attention"] * 4).shares_prefixes


@pytest.mark.parametrize(
    ("base", "fields", "error"),
    [
        (MAMBA2, {"rms_norm": False}, ModelUnsupportedError),
        (MAMBA2, {"hidden_act": "gelu"}, ModelUnsupportedError),
        (MAMBA2, {"d_ssm": 12}, ModelUnsupportedError),
        (MAMBA2, {"num_heads": 50}, ModelCorruptError),
        (MAMBA2, {"head_dim": 32}, ModelCorruptError),
        (MAMBA2, {"n_groups": 5}, ModelCorruptError),
        (MAMBA2, {"time_step_limit": [0.0]}, ModelCorruptError),
        (MAMBA2, {"time_step_limit": [0.5, 0.1]}, ModelCorruptError),
        (MAMBA2, {"time_step_limit": [0.0, "x"]}, ModelCorruptError),
        (MAMBA2, {"layer_norm_epsilon": math.inf}, ModelCorruptError),
        (GRANITE, {"layer_types": ["mamba"] * 3}, ModelCorruptError),
        (GRANITE, {"layer_types": ["conv"] * 4}, ModelUnsupportedError),
        (GRANITE, {"position_embedding_type": "alibi"}, ModelUnsupportedError),
        (GRANITE, {"residual_multiplier": 0}, ModelCorruptError),
        (GRANITE, {"mamba_n_heads": 7}, ModelCorruptError),
        (GRANITE, {"some_multiplier": 3.0}, ModelUnsupportedError),
    ],
)
def test_what_is_refused(read, base, fields, error):
    with pytest.raises(error):
        read(base, **fields)


def test_nan_is_not_a_number(read, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MAMBA2 | {"time_step_limit": [0.0, math.nan]}))
    with pytest.raises(ModelCorruptError):
        Model.load(tmp_path)


def tokens_of(length, seed=0):
    return torch.randint(0, 128, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model(checkpoint_of):
    return Model.load(checkpoint_of("granitemoehybrid"))


def test_states_are_replaced_not_written_to(model):
    cache, sequence = model.new_cache(), Sequence()
    tokens = tokens_of(80)
    model.forward([extend(cache, sequence, tokens[:70])], cache)
    sequence.length = 70
    before = dict(sequence.state)
    drafted = model.forward([extend(cache, sequence, tokens[70:])], cache, exact=False)
    sequence.state.update(before)  # the draft is dropped
    again = model.forward([extend(cache, sequence, tokens[70:])], cache, exact=False)
    assert torch.equal(drafted, again)


def test_a_fork_goes_its_own_way(model):
    cache, parent = model.new_cache(), Sequence()
    first, second = tokens_of(90), tokens_of(90, seed=1)
    second[:66] = first[:66]
    model.forward([extend(cache, parent, first[:66])], cache)
    parent.length = 66
    child = cache.fork(parent)
    spans = [extend(cache, parent, first[66:]), extend(cache, child, second[66:])]
    hidden = model.forward(spans, cache)
    assert torch.equal(hidden[:24], model.prefill([first])[66:])
    assert torch.equal(hidden[24:], model.prefill([second])[66:])


def test_what_a_recurrent_layer_cannot_follow_is_refused(model):
    cache, sequence = model.new_cache(), Sequence()
    model.forward([extend(cache, sequence, tokens_of(10))], cache)
    sequence.length = 10
    shorter = cache.fork(sequence, 5)
    for broken in (extend(cache, shorter, tokens_of(1)), Span(tokens_of(1), past=sequence.slots)):
        with pytest.raises(OptionError, match="recurrent state at position"):
            model.forward([broken], cache)
    sequence.length = 9  # as if one position had been taken back
    with pytest.raises(OptionError, match="recurrent state at position 9"):
        model.forward([extend(cache, sequence, tokens_of(1))], cache)


@pytest.mark.parametrize("kind", ["mamba2", "granitemoehybrid"])
@pytest.mark.parametrize("length", [1, 2, 30, 64, 70])
def test_a_row_of_a_tree_has_the_logits_of_its_own_path(checkpoint_of, kind, length):
    model = Model.load(checkpoint_of(kind))
    tree = DraftTree((3, 9, 4, 4, 7, 3, 5), (-1, 0, 0, -1, 3, 4, 2))
    text, cache, sequence = tokens_of(length + 1), model.new_cache(), Sequence()
    model.forward([extend(cache, sequence, text[:-1])], cache)
    sequence.length = length
    rows = torch.tensor([int(text[-1]), *tree.tokens])
    hidden = model.forward([extend(cache, sequence, rows, ancestors=tree.ancestors())], cache, exact=False)
    for node in range(-1, len(tree)):
        path = torch.tensor([*text.tolist(), *tree.path(node)])
        alone = model.prefill([path])[-1]
        assert (hidden[node + 1] - alone).abs().max() < 2e-4 * alone.abs().max()


@pytest.mark.parametrize("kind", ["mamba2", "granitemoehybrid"])
def test_guesses_change_no_token_of_a_recurrent_model(checkpoint_of, kind):
    """Trees, their rollback, preemption and chunks, against a plain loop."""
    folder = checkpoint_of(kind)
    for seed in range(3):
        for name in ("truth among lies", "recycling"):
            same_as_plain(folder, name, seed, count=9, longest=20, most=16, requests=4)


def test_a_runner_scores_the_same_bits_however_it_cuts(model):
    scheme = noise_scheme("gumbel-pos-v1")
    prompts = [tuple(tokens_of(length, seed=length).tolist()) for length in (3, 40, 90)]
    shared = (*prompts[2][:50], *prompts[1])
    requests = [
        Request(prompt, tuple(tokens_of(20, seed=n).tolist()), SamplingSpec(max_tokens=20), n, scheme)
        for n, prompt in enumerate([*prompts, shared])
    ]
    whole = list(Runner(model).score(requests))
    for budget in (30, 64, 200):
        runner = Runner(model, token_budget=budget)
        for one, other in zip(runner.score(requests), whole, strict=True):
            assert all(np.array_equal(getattr(one, n), getattr(other, n)) for n in type(one).__slots__)
        assert runner.prefixes.asked == 0
