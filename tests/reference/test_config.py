"""`read_config`: what it takes from a config.json, and everything it must refuse."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from auditor.errors import (
    ModelCorruptError,
    ModelNotFoundError,
    ModelUnsafeError,
    ModelUnsupportedError,
)
from auditor.reference.architecture import Norm, Rope
from auditor.reference.config import read_config

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


def mixers(config):
    return [plan.mixer for plan in config.layers]


def windows(config):
    return [mixer.window for mixer in mixers(config)]


def test_absent_fields_mean_what_transformers_assumes(read):
    llama = read()
    attention = llama.layers[0].mixer
    assert (attention.heads, attention.key_value_heads, attention.head_dim) == (4, 4, 8)
    assert llama.norm == Norm(1e-6)
    assert (llama.num_hidden_layers, llama.context_length) == (3, 128)
    assert not llama.tie_word_embeddings
    assert windows(llama) == [None] * 3
    assert attention.rope == Rope()
    mistral = read(model_type="mistral", num_attention_heads=8)
    assert mistral.layers[0].mixer.key_value_heads == 8
    assert windows(mistral) == [4096] * 3
    assert read(model_type="qwen3", num_attention_heads=32).layers[0].mixer.head_dim == 128


def test_biases_and_norms_follow_the_architecture(read):
    def of(config):
        (mixer, *_), mlp = mixers(config), config.layers[0].feed_forward
        return mixer.qkv_bias, mixer.output_bias, mlp.bias, mixer.qk_norm

    assert of(read(model_type="qwen2", num_key_value_heads=2)) == (True, False, False, None)
    qwen3 = read(model_type="qwen3", num_key_value_heads=2, attention_bias=True)
    assert of(qwen3) == (True, True, False, "head")
    assert of(read(attention_bias=True, mlp_bias=True)) == (True, True, True, None)


LLAMA3 = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
BAND = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_theta": 5e5}, Rope(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 9.0}, Rope(7.0)),
        (
            {"rope_theta": 3.0, "rope_scaling": {"type": "linear", "factor": 4}},
            Rope(3.0, "linear", factor=4.0),
        ),
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
            },
            Rope(10_000.0, "linear", factor=2.0),
        ),
        (
            {
                "rope_parameters": {
                    **LLAMA3,
                    "rope_type": "llama3",
                    "rope_theta": 5e5,
                    "original_max_position_embeddings": 32,
                }
            },
            Rope(5e5, "llama3", **BAND, original_context_length=32),
        ),
        (
            {"rope_scaling": {**LLAMA3, "type": "llama3"}},
            Rope(10_000.0, "llama3", **BAND, original_context_length=128),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 0.5, "truncate": False}},
            Rope(
                10_000.0,
                "yarn",
                factor=4.0,
                original_context_length=128,
                beta_fast=32.0,
                beta_slow=1.0,
                truncate=False,
                attention_factor=0.5,
            ),
        ),
    ],
)
def test_old_and_new_rotary_fields(read, fields, rope):
    assert mixers(read(**fields)) == [dataclasses.replace(mixers(read())[0], rope=rope)] * 3


def test_yarn_says_how_long_the_context_is(read):
    yarn = {"rope_type": "yarn", "factor": 4.0}
    assert read(rope_scaling=yarn).context_length == 512
    assert read(rope_scaling=yarn | {"original_max_position_embeddings": 16}).context_length == 128
    assert read(rope_scaling={"rope_type": "linear", "factor": 4.0}).context_length == 128


def test_yarn_strengthens_attention_by_its_factor_or_its_two_scales(read):
    yarn = {"rope_type": "yarn", "factor": 4.0}

    def attention_factor(**more):
        return read(rope_scaling=yarn | more).layers[0].mixer.rope.attention_factor

    assert attention_factor() == pytest.approx(0.1 * math.log(4) + 1)
    assert attention_factor(mscale=1.0) == attention_factor(mscale_all_dim=1.0) == attention_factor()
    assert attention_factor(mscale=1.0, mscale_all_dim=1.0) == 1.0
    assert attention_factor(factor=1.0) == 1.0


def test_sliding_windows_per_layer(read):
    qwen2 = {"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 16}
    assert windows(read(**qwen2)) == [None, None, None]
    assert windows(read(**qwen2, use_sliding_window=True, max_window_layers=1)) == [None, 16, 16]
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(read(**qwen2, use_sliding_window=True, layer_types=types)) == [16, None, 16]
    mistral = {"model_type": "mistral", "num_key_value_heads": 4}
    assert windows(read(**mistral, sliding_window=None)) == [None, None, None]
    assert windows(read(**mistral, sliding_window=8)) == [8, 8, 8]


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gemma"},
        {"model_type": None},
        {"hidden_act": "gelu"},
        {"model_type": "mixtral", "quantization_config": {"bits": 4}},
        {"sliding_window": 16},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"rope_parameters": {"rope_type": "default", "attention_factor": 2.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "low_freq_factor": 1.0}},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"original_max_position_embeddings": 64},
        {"model_type": "mistral", "num_key_value_heads": 4, "attention_bias": True},
        {"model_type": "qwen2", "num_key_value_heads": 4, "layer_types": ["linear_attention"] * 3},
        {"attention_temperature_tuning": True},
        {"some_new_multiplier": 1.5},
        {"final_logit_softcapping": 30.0},
    ],
)
def test_what_is_not_implemented_exactly_is_refused(read, fields, tmp_path):
    with pytest.raises(ModelUnsupportedError) as caught:
        read(**fields)
    assert caught.value.where == str(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_what_is_off_or_moves_no_logit_is_not_refused(read):
    plain = read()
    assert read(some_new_multiplier=None, some_new_switch=False, some_new_list=[]) == plain
    assert read(torch_dtype="bfloat16", eos_token_id=[1, 2], _name_or_path="x", unsloth_version="1") == plain
    assert read(architectures=["LlamaForCausalLM"], initializer_range=0.1, pretraining_tp=1) == plain


def test_an_unknown_option_is_named(read):
    with pytest.raises(ModelUnsupportedError, match="field some_new_multiplier in a llama configuration"):
        read(some_new_multiplier=1.5)


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
        {"rope_scaling": {"rope_type": "yarn"}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": "32"}},
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
