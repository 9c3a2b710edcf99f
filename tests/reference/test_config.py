"""`read_config`: what it takes from a config.json, and everything it must refuse."""

from __future__ import annotations

import dataclasses
import json

import pytest

from auditor.errors import (
    ModelCorruptError,
    ModelNotFoundError,
    ModelUnsafeError,
    ModelUnsupportedError,
)
from auditor.reference.config import Rope, read_config

PLAIN = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


@pytest.fixture
def read(tmp_path):
    def read_fields(**fields):
        (tmp_path / "config.json").write_text(json.dumps(PLAIN | fields))
        return read_config(tmp_path)

    return read_fields


def test_absent_fields_mean_what_transformers_assumes(read):
    llama = read()
    assert (llama.num_key_value_heads, llama.head_dim, llama.rms_norm_eps) == (4, 8, 1e-6)
    assert not llama.tie_word_embeddings
    assert llama.sliding_windows == (None, None, None)
    assert llama.rope == Rope()
    assert read(model_type="mistral", num_attention_heads=8).num_key_value_heads == 8
    assert read(model_type="mistral", num_attention_heads=8).sliding_windows == (4096,) * 3
    assert read(model_type="qwen3", num_attention_heads=32).head_dim == 128


def test_biases_and_norms_follow_the_architecture(read):
    qwen2 = read(model_type="qwen2", num_key_value_heads=2)
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.mlp_bias, qwen2.qk_norm) == (True, False, False, False)
    qwen3 = read(model_type="qwen3", num_key_value_heads=2, attention_bias=True)
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.qk_norm) == (True, True, True)
    llama = read(attention_bias=True, mlp_bias=True)
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_theta": 5e5}, Rope(theta=5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(theta=5e5)),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 9.0},
            Rope(theta=7.0),
        ),
        ({"rope_theta": 3.0, "rope_scaling": {"type": "linear", "factor": 4}}, Rope("linear", 3.0, 4.0)),
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
            },
            Rope("linear", 10_000.0, 2.0),
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 5e5,
                    "factor": 8,
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 32,
                }
            },
            Rope("llama3", 5e5, 8.0, 1.0, 4.0, 32),
        ),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}},
            Rope("llama3", 10_000.0, 8.0, 1.0, 4.0, 128),
        ),
    ],
)
def test_old_and_new_rotary_fields(read, fields, rope):
    assert read(**fields).rope == rope


def test_sliding_windows_per_layer(read):
    qwen2 = {"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 16}
    assert read(**qwen2).sliding_windows == (None, None, None)
    assert read(**qwen2, use_sliding_window=True, max_window_layers=1).sliding_windows == (None, 16, 16)
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read(**qwen2, use_sliding_window=True, layer_types=types).sliding_windows == (16, None, 16)
    mistral = {"model_type": "mistral", "num_key_value_heads": 4}
    assert read(**mistral, sliding_window=None).sliding_windows == (None, None, None)
    assert read(**mistral, sliding_window=8).sliding_windows == (8, 8, 8)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gemma2"},
        {"model_type": None},
        {"hidden_act": "gelu"},
        {"quantization_config": {"bits": 4}},
        {"sliding_window": 16},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"rope_parameters": {"rope_type": "default", "attention_factor": 2.0}},
        {"partial_rotary_factor": 0.5},
        {"original_max_position_embeddings": 64},
        {"model_type": "mistral", "num_key_value_heads": 4, "attention_bias": True},
        {"model_type": "qwen2", "num_key_value_heads": 4, "layer_types": ["linear_attention"] * 3},
    ],
)
def test_what_is_not_implemented_exactly_is_refused(read, fields, tmp_path):
    with pytest.raises(ModelUnsupportedError) as caught:
        read(**fields)
    assert caught.value.where == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": None},
        {"vocab_size": 64.0},
        {"vocab_size": True},
        {"hidden_size": 0},
        {"hidden_size": 30},
        {"head_dim": 7},
        {"num_key_value_heads": 3},
        {"rms_norm_eps": "1e-5"},
        {"rms_norm_eps": -1e-5},
        {"tie_word_embeddings": 1},
        {"rope_scaling": [1]},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
        {"model_type": "qwen2", "num_key_value_heads": 4, "layer_types": ["full_attention"]},
        {"model_type": "qwen2", "num_key_value_heads": 4, "layer_types": ["sliding_attention"] * 3},
    ],
)
def test_impossible_values_are_refused(read, fields):
    with pytest.raises(ModelCorruptError):
        read(**fields)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"model_type": "llama", "x": NaN}', "\xff", "[" * 100_000])
def test_what_is_not_a_json_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelCorruptError):
        read_config(tmp_path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(tmp_path, value):
    text = json.dumps(PLAIN | {"rms_norm_eps": "X"}).replace('"X"', value)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelCorruptError):
        read_config(tmp_path)


@pytest.mark.parametrize("field", ["auto_map", "trust_remote_code"])
def test_a_configuration_that_brings_code_is_unsafe(read, field):
    with pytest.raises(ModelUnsafeError):
        read(**{field: {"AutoModel": "modeling_evil.Evil"}})


def test_missing_directory_and_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError):
        read_config(tmp_path / "absent")
    with pytest.raises(ModelNotFoundError):
        read_config(tmp_path)


def test_the_configuration_is_frozen(read):
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().vocab_size = 1
