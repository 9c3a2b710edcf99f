"""Gemma 2 and 3: windows, caps, scales, and rotary parameters by kind of layer in old and new forms."""

from __future__ import annotations

import pytest

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.architecture import Norm, Rope

SIZES = {
    "vocab_size": 64,
    "hidden_size": 36,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GEMMA2 = SIZES | {"model_type": "gemma2", "num_hidden_layers": 4, "sliding_window_size": 4096}
GEMMA3 = SIZES | {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 10}


def windows(config):
    return [plan.mixer.window for plan in config.layers]


def test_gemma2_assumes_what_transformers_assumes(read):
    config = read(GEMMA2)
    attention = config.layers[0].mixer
    assert windows(config) == [4096, None, 4096, None]
    assert (attention.key_value_heads, attention.head_dim, attention.softcap) == (4, 256, 50.0)
    assert attention.scale == 256**-0.5
    assert (config.embedding_scale, config.logits_softcap) == (6.0, 30.0)
    assert config.norm == Norm(1e-6, offset=1.0, late_cast=True)
    assert config.tie_word_embeddings


def test_gemma2_options(read):
    config = read(
        GEMMA2,
        attn_logit_softcapping=None,
        final_logit_softcapping=5.0,
        query_pre_attn_scalar=64,
        layer_types=["full_attention"] * 3 + ["sliding_attention"],
        sliding_window=9,
    )
    assert windows(config) == [None, None, None, 9]
    assert (config.layers[0].mixer.softcap, config.logits_softcap) == (0.0, 5.0)
    assert config.layers[0].mixer.scale == 1 / 8


def test_gemma3_windows_follow_the_pattern(read):
    assert windows(read(GEMMA3)) == [10] * 5 + [None, 10]
    assert windows(read(GEMMA3, sliding_window_pattern=2)) == [10, None] * 3 + [10]
    assert read(GEMMA3).layers[0].mixer.softcap == read(GEMMA3).logits_softcap == 0.0


@pytest.mark.parametrize(
    ("fields", "local", "whole"),
    [
        ({}, Rope(1e4), Rope(1e6)),
        ({"rope_theta": 5.0, "rope_local_base_freq": 3.0}, Rope(3.0), Rope(5.0)),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            Rope(1e4),
            Rope(1e6, "linear", factor=8.0),
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 7.0}}},
            Rope(1e4),
            Rope(7.0),
        ),
    ],
)
def test_gemma3_turns_by_kind_of_layer(read, fields, local, whole):
    layers = read(GEMMA3, **fields).layers
    assert (layers[0].mixer.rope, layers[5].mixer.rope) == (local, whole)


@pytest.mark.parametrize(
    ("base", "fields", "error"),
    [
        (GEMMA2, {"use_bidirectional_attention": True}, ModelUnsupportedError),
        (GEMMA2, {"hidden_activation": "gelu"}, ModelUnsupportedError),
        (GEMMA2, {"hidden_act": "silu"}, ModelUnsupportedError),
        (GEMMA2, {"final_logit_softcapping": -1.0}, ModelCorruptError),
        (GEMMA2, {"query_pre_attn_scalar": 0}, ModelCorruptError),
        (GEMMA3, {"attn_logit_softcapping": 50.0}, ModelUnsupportedError),
        (GEMMA3, {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, ModelUnsupportedError),
        (GEMMA3, {"rope_parameters": {"full_attention": 3}}, ModelCorruptError),
        (GEMMA3, {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, ModelUnsupportedError),
        (GEMMA3, {"layer_types": ["linear_attention"] * 7}, ModelUnsupportedError),
        (GEMMA3, {"vision_config": {"hidden_size": 3}}, ModelUnsupportedError),
    ],
)
def test_what_is_refused(read, base, fields, error):
    with pytest.raises(error):
        read(base, **fields)
