"""The projection is orthonormal, the same bits everywhere, and its codes are cells that hold what was coded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.kernels.projection_codes import code_projections
from auditor.kernels.sign_projection import matrix, project, sign_basis, signs
from auditor.kernels.value_codes import CODES, SCALES, Coded, cells, has_non_finite, quantize

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "sign_projection.json").read_text())
MASK = 2**64 - 1
GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
runs_kernels = pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU or Triton's interpreter")


def splitmix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def plain_sign(key, row, column, width):
    """The first attempt's sign in whole numbers, apart from the code under test."""
    golden = 0x9E3779B97F4A7C15

    def word(row, place):
        row_key = splitmix((key + (row * 64 + 1) * golden) & MASK)
        return splitmix((row_key + (place + 1) * golden) & MASK)

    own = word(row, column // 64)
    if width > 256:
        own = word(row, column // 64 % 4) ^ word(128, column // 64)
    return -1 if own >> (column % 64) & 1 else 1


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: f"{c['rows']}x{c['width']}")
def test_the_matrix_is_the_golden_one_to_the_bit(case):
    basis = sign_basis(int(case["key"]), case["rows"], case["width"])
    assert [str(k) for k in basis.row_keys.tolist()] == case["row_keys"]
    bits = np.packbits(signs(basis) < 0, axis=1, bitorder="little")
    assert [row.tobytes().hex() for row in bits] == case["signs"]
    assert [[float(v).hex() for v in row[: i + 1]] for i, row in enumerate(basis.mixer)] == case["mixer"]


@pytest.mark.parametrize("width", [130, 256, 257, 700])
def test_signs_are_those_of_whole_number_arithmetic(width):
    drawn = signs(sign_basis(99, 3, width))
    assert drawn.tolist() == [[plain_sign(99, r, c, width) for c in range(width)] for r in range(3)]


@pytest.mark.parametrize(
    ("rows", "width"), [(1, 1), (2, 2), (3, 3), (16, 256), (64, 100), (5, 4100), (128, 300)]
)
def test_rows_are_orthonormal(rows, width):
    p = matrix(sign_basis(5, rows, width))
    np.testing.assert_allclose(p @ p.T, np.eye(rows), atol=1e-11)


def test_a_smaller_projection_is_the_beginning_of_a_larger_one():
    assert np.array_equal(matrix(sign_basis(1, 4, 300)), matrix(sign_basis(1, 9, 300))[:4])


@pytest.mark.parametrize(
    ("key", "rows", "width"), [(0, 0, 5), (0, 6, 5), (0, 129, 500), (2**64, 1, 5), (-1, 1, 5)]
)
def test_what_cannot_be_drawn_is_refused(key, rows, width):
    with pytest.raises(ValueError):
        sign_basis(key, rows, width)


def hidden_of(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(("n", "k", "d"), [(3, 5, 70), (2, 16, 4100), (1, 1, 64), (4, 7, 257), (3, 128, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_fast_projection_is_the_plain_one(n, k, d, dtype):
    h, basis = hidden_of(n, d).to(dtype), sign_basis(3, k, d)
    truth = h.double().numpy() @ matrix(basis).T
    np.testing.assert_allclose(project(h, basis, backend="reference"), truth, atol=1e-10)
    np.testing.assert_allclose(project(h, basis), truth, atol=3e-5)
    wide = torch.cat([h, h], dim=1)[:, :d]  # rows that do not follow one another in memory
    assert np.array_equal(project(wide, basis), project(h, basis))


def test_folding_keeps_the_length_of_a_difference_and_hides_no_direction():
    """Over many seeds, k features of any difference have its mean square, a single column's among them."""
    lone, spread = torch.zeros(2, 1024).split(1)
    lone[0, 700] = 32.0
    for x in (lone, spread + 1.0, hidden_of(1, 1024)):
        seen = [(project(x, sign_basis(key, 8, 1024)) ** 2).mean() for key in range(300)]
        assert np.mean(seen) == pytest.approx(float((x**2).mean()), rel=0.12)


@pytest.mark.parametrize("code", CODES)
@given(values=st.lists(st.floats(-3e5, 3e5, width=32), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_a_value_lies_in_its_cell_and_cells_are_as_fine_as_the_code(code, values):
    features = np.array([values], np.float64)
    coded = quantize(features, code)
    low, high = cells(coded)
    slack = 1e-9 * np.abs(features) + 1e-30
    assert (low - slack <= features).all()
    assert (features <= high + slack).all()
    assert not has_non_finite(coded)
    widest = {"int4": 2**0.125 / 7, "int8": 2**0.125 / 127, "fp8": 1 / 7, "bf16": 1 / 127}[code]
    largest = np.abs(features).max()
    assert ((high - low) <= np.maximum(widest * largest, 2.0**-15) * 1.0001).all()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_a_code_cannot_hold_is_refused(code, bad):
    with pytest.raises(ValueError):
        quantize(np.array([[1.0, bad]]), code)


def test_scales_are_powers_of_the_eighth_root_of_two():
    np.testing.assert_allclose(SCALES, 2.0 ** ((np.arange(256) - 128) / 8), rtol=1e-15)


def test_fp8_and_bf16_codes_are_those_of_torch():
    x = hidden_of(40, 20).double().numpy()
    coded = quantize(x, "fp8")
    scaled = torch.from_numpy(x / SCALES[coded.scale][:, None])
    theirs = scaled.float().to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(coded.levels, theirs)
    bits = torch.from_numpy(x).float().bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(quantize(x, "bf16").levels, bits)


def test_every_float_level_is_read_as_torch_reads_it():
    levels = np.array([[b for b in range(256) if b & 0x7F != 0x7F]], np.uint8)
    low, high = cells(Coded("fp8", np.array([128], np.uint8), levels))
    theirs = torch.from_numpy(levels).view(torch.float8_e4m3fn).double().numpy()
    assert ((low <= theirs) & (theirs <= high)).all()


@pytest.mark.skipif(GPU or INTERPRETED, reason="the tests below run in this process")
@needs_triton
def test_the_kernels_agree_with_the_reference_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "kernel_"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout


@runs_kernels
@needs_triton
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 64), (17, 5, 130), (3, 33, 200), (2, 6, 400)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_features_are_the_references(n, k, d, dtype):
    h, basis = hidden_of(n, d).to(dtype), sign_basis(8, k, d)
    ours = project(h.to(DEVICE), basis, backend="triton")
    np.testing.assert_allclose(ours, project(h, basis, backend="reference"), atol=3e-5)


@runs_kernels
@needs_triton
@pytest.mark.parametrize("code", CODES)
def test_kernel_codes_are_the_references_but_for_edges(code):
    h, basis = hidden_of(18, 130), sign_basis(8, 5, 130)
    ours = code_projections(h.to(DEVICE), basis, code, backend="triton")
    low, high = cells(ours)
    features = project(h, basis, backend="reference")
    assert (low - 3e-5 <= features).all()
    assert (features <= high + 3e-5).all()
    plain = code_projections(h, basis, code, backend="reference")
    assert (ours.scale == plain.scale).mean() > 0.9


@runs_kernels
@needs_triton
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_kernel_refuses_what_it_cannot_code(bad):
    h = hidden_of(3, 64)
    h[1, 5] = bad
    with pytest.raises(ValueError):
        code_projections(h.to(DEVICE), sign_basis(8, 5, 64), "int8", backend="triton")


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from auditor.kernels import sign_projection_triton as kernels
common = dict(hidden="*bf16", row_keys="*i64", shared_key="*i64", mixer="*fp32", rows="i32")
shape = dict(WIDTH=4096, FEATURES=20, ROWS=16, PADDED=32, WORDS=4)
sources = [
    (kernels._features, dict(out="*fp32", **common), shape),
    (kernels._codes, dict(scales="*fp32", places="*u8", levels="*i8", largest="*i32", **common), dict(TOP=127.0, **shape)),
]
for kernel, types, constants in sources:
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    built = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert len(built.asm["cubin"]) > 0
"""


@pytest.mark.skipif(GPU or INTERPRETED or sys.platform != "linux", reason="the kernels themselves run")
@needs_triton
def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
