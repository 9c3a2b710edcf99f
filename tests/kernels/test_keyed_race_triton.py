"""The GPU kernels find what the plain race finds, to the tolerance of their dtype.

Without a GPU they run in Triton's interpreter, which must be chosen before Triton is first imported: then in a
process of their own, started by the one test that this process runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from auditor.kernels.keyed_noise import KeyedNoise
from auditor.kernels.keyed_race import race, race_head
from auditor.kernels.row_head import row_heads
from auditor.kernels.splitmix import mix
from auditor.reference.head import score_rows
from auditor.reference.noise import Draws, noise_scheme
from auditor.reference.sampling import SamplingSpec

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
runs_kernels = pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU or Triton's interpreter")

# Beside the float64 reference on the same logits; logits of 16 bits are exact in float32.
SCORES = {torch.float32: 1e-11, torch.bfloat16: 1e-11, torch.float16: 1e-11}
NORMALISER = {torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6}
# Beside float64 products: what summing in float32 loses, for logits of up to 20 and 200 terms.
PRODUCT = {torch.float32: 3e-5, torch.bfloat16: 3e-5, torch.float16: 3e-5}
SHAPES = [(1, 252), (3, 507), (17, 1023), (1, 5000), (2, 1)]


def keys_of(rows, seed):
    return mix(np.arange(seed * 1000, seed * 1000 + rows, dtype=np.uint64))


def logits_of(rows, vocabulary, spread, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=generator) * spread).to(dtype)


def assert_close(ours, plain, scores, normaliser):
    clear = plain.winner_score - plain.runner_up_score > 2 * scores
    assert ours.winner[clear].tolist() == plain.winner[clear].tolist()
    for name in ("winner_score", "runner_up_score", "claimed_score"):
        np.testing.assert_allclose(getattr(ours, name), getattr(plain, name), rtol=0, atol=scores)
    np.testing.assert_allclose(ours.log_normaliser, plain.log_normaliser, rtol=0, atol=normaliser)


def claims(z, keys, tail_safe):
    """The winner's, the unlikeliest token's, a random claim."""
    anything = np.random.default_rng(0).integers(0, z.shape[1], len(z))
    winner = race(z, keys, anything, noise=KeyedNoise(tail_safe), backend="reference").winner
    return winner, z.argmin(axis=1), anything


@pytest.mark.skipif(GPU or INTERPRETED, reason="the tests below run in this process")
def test_the_kernels_agree_with_the_reference_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout


@runs_kernels
@pytest.mark.parametrize("tail_safe", [True, False])
@pytest.mark.parametrize("dtype", SCORES, ids=str)
@pytest.mark.parametrize(("rows", "vocabulary"), SHAPES)
def test_a_tile_of_logits_is_raced_as_by_the_reference(rows, vocabulary, dtype, tail_safe):
    z = logits_of(rows, vocabulary, 3.0, dtype, vocabulary)
    plain_z, keys = z.float().numpy(), keys_of(rows, vocabulary)
    for claimed, temperature in zip(claims(plain_z, keys, tail_safe), (1.0, 0.7, 1.3), strict=True):
        options = {"noise": KeyedNoise(tail_safe), "temperature": temperature, "top": 5}
        ours = race(z.to(DEVICE), keys, claimed, **options, backend="triton")
        plain = race(plain_z, keys, claimed, **options, backend="reference")
        assert_close(ours, plain, SCORES[dtype], NORMALISER[dtype])
        assert ours.winner.tolist() == plain.winner.tolist()
        assert ours.rank.tolist() == plain.rank.tolist()
        assert np.array_equal(ours.top_logits, plain.top_logits)


@runs_kernels
@pytest.mark.parametrize("spread", [0.0, 0.01, 30.0, 300.0])
@pytest.mark.parametrize("tail_safe", [True, False])
def test_flat_rows_and_weights_that_underflow_are_raced_as_by_the_reference(spread, tail_safe):
    z = logits_of(3, 700, spread, torch.float32, 5).numpy()
    keys = keys_of(3, 9)
    for claimed in claims(z, keys, tail_safe):
        ours = race(z, keys, claimed, noise=KeyedNoise(tail_safe), backend="triton")
        plain = race(z, keys, claimed, noise=KeyedNoise(tail_safe), backend="reference")
        assert_close(ours, plain, 1e-10, 2e-4 if spread == 300.0 else 1e-5)
        assert ours.rank.tolist() == plain.rank.tolist()


@runs_kernels
def test_excluded_tokens_never_win_and_a_lone_one_has_no_runner_up():
    z = np.full((2, 400), -np.inf, np.float32)
    z[0, 333] = 1.0
    z[1, 100:300] = 0.0
    ours = race(z, keys_of(2, 1), np.array([3, 7]), noise=KeyedNoise.SPLITMIX_TAIL_SAFE, backend="triton")
    assert ours.winner[0] == 333
    assert np.isneginf(ours.runner_up_score[0])
    assert ours.rank.tolist() == [1, 200]
    assert 100 <= ours.winner[1] < 300


@runs_kernels
def test_an_exact_tie_goes_to_the_lowest_id_in_whichever_block_it_stands():
    z = np.full((1, 3000), -60.0, np.float32)
    for low, high in ((3, 5), (3, 2900), (1500, 2900)):
        tied = z.copy()
        tied[0, [low, high]] = 2.0**60  # so large that the noise is rounded away
        for claimed in (low, high, 0):
            ours = race(
                tied,
                keys_of(1, 2),
                np.array([claimed]),
                noise=KeyedNoise.SPLITMIX_TAIL_SAFE,
                backend="triton",
            )
            assert ours.winner[0] == low
            assert ours.runner_up_score[0] == ours.winner_score[0]


@runs_kernels
@pytest.mark.parametrize("tail_safe", [True, False])
@pytest.mark.parametrize("dtype", PRODUCT, ids=str)
@pytest.mark.parametrize(
    ("rows", "vocabulary", "width"), [(1, 252, 64), (3, 507, 96), (17, 1023, 200), (40, 300, 32)]
)
def test_few_rows_are_multiplied_and_raced_in_one_kernel(rows, vocabulary, width, dtype, tail_safe):
    hidden = logits_of(rows, width, 1.0, dtype, 1)
    head = logits_of(vocabulary, width, 3.0 / width**0.5, dtype, 2)
    z = (hidden.double() @ head.double().T).float().numpy()
    keys = keys_of(rows, 4)
    for claimed in claims(z, keys, tail_safe):
        options = {"noise": KeyedNoise(tail_safe), "temperature": 0.9}
        ours = race_head(hidden.to(DEVICE), head.to(DEVICE), keys, claimed, **options, backend="triton")
        plain = race(z, keys, claimed, **options, backend="reference")
        assert_close(ours, plain, PRODUCT[dtype], PRODUCT[dtype])
        # Only a token within rounding of the claimed one can change sides.
        assert (np.abs(ours.rank - plain.rank) <= 1).all()
        honest = ours.winner == claimed
        assert (ours.winner_score[honest] == ours.claimed_score[honest]).all()


def test_other_backends_take_hidden_states_too():
    hidden, head = logits_of(3, 32, 1.0, torch.float32, 1), logits_of(500, 32, 0.5, torch.float32, 2)
    claimed = np.array([1, 2, 3])
    ours, plain = (
        race_head(
            hidden, head, keys_of(3, 4), claimed, noise=KeyedNoise.SPLITMIX_TAIL_SAFE, top=4, backend=backend
        )
        for backend in ("compiled", "reference")
    )
    assert ours.winner.tolist() == plain.winner.tolist()
    assert ours.top_ids.tolist() == plain.top_ids.tolist()


@pytest.mark.parametrize(
    "options", [{}, {"mass": 0.9}, {"reach": 3.0}, {"mass": 0.99, "reach": 9.0}], ids=str
)
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_heads_of_rows_on_a_device_are_those_of_the_compiled_path(options, spread):
    """They need `torch.topk` only, so they run without a GPU or Triton."""
    z = logits_of(5, 3000, spread, torch.float32, 8)
    ours = row_heads(z.to(DEVICE), (20, 200), **options, beyond=8, margin=0.1, backend="triton")
    plain = row_heads(z.numpy(), (20, 200), **options, beyond=8, margin=0.1)
    assert ours.start.tolist() == plain.start.tolist()
    assert ours.ids.tolist() == plain.ids.tolist()
    np.testing.assert_allclose(ours.log_normaliser, plain.log_normaliser, rtol=0, atol=1e-6)


SPECS = [
    SamplingSpec(),
    SamplingSpec(temperature=0.0),
    SamplingSpec(top_k=9, top_p=0.9),
    SamplingSpec(top_p=0.97, temperature=0.8),
    SamplingSpec(min_p=0.02),
]


@runs_kernels
@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
@pytest.mark.parametrize("scheme", ["gumbel-pos-v1", "vllm-cpu-0.32/splitmix64", "torch-cpu-multinomial"])
def test_a_tile_on_the_device_is_scored_as_on_the_cpu(scheme, spec):
    z, noise = logits_of(6, 700, 2.0, torch.float32, 3), noise_scheme(scheme)
    claimed = np.random.default_rng(1).integers(0, 700, 6)
    first, second = (None if spec.greedy else Draws(noise, 5, 2, 700).take(6) for _ in range(2))
    ours = score_rows(z.to(DEVICE), claimed, spec, noise, first, top=3, backend="triton")
    plain = score_rows(z, claimed, spec, noise, second, top=3)
    for name in ("winner", "rank", "outside", "top_ids"):
        assert getattr(ours, name).tolist() == getattr(plain, name).tolist(), name
    for name in ("margin", "slack", "log_probability", "edge"):
        np.testing.assert_allclose(getattr(ours, name), getattr(plain, name), rtol=1e-5, atol=1e-5)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from auditor.kernels import keyed_race_triton as kernels
partials = ("*fp64", "*fp64", "*i64", "*i64", "*fp32", "*fp64")
common = dict(keys="*i64", claimed="*i64", scores="*fp64", partials=partials, vocabulary="i32", temperature="fp32")
sources = [
    (kernels._race_logits, dict(logits="*fp32", stride="i64", **common), dict(TAIL_SAFE=True, BLOCK=1024)),
    (kernels._race_product, dict(hidden="*bf16", head="*bf16", rows="i32", **common),
     dict(WIDTH=128, TAIL_SAFE=False, ROWS=16, TOKENS=128, STEP=64, UPCAST=False)),
]
for kernel, types, constants in sources:
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    built = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert len(built.asm["cubin"]) > 0
"""


@pytest.mark.skipif(GPU or INTERPRETED or sys.platform != "linux", reason="the kernels themselves run")
def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
