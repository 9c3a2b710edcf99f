"""Norm, gate and rotation: compiled loops against NumPy, and the same bits whatever rows come along."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.kernels.row_parts import rms_norm, rotate_heads, silu_gate

SHAPES = {"rows": st.integers(1, 40), "width": st.sampled_from([1, 2, 7, 16, 63, 80, 640, 2049])}


def normal(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@settings(deadline=None)
@given(**SHAPES, seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_the_gate_is_numpys(rows, width, seed, scale):
    x = normal(seed, rows, 2 * width, scale=scale)
    gate, up = x[:, :width].astype(np.float64), x[:, width:]
    exact = gate / (1 + np.exp(-gate)) * up
    for backend in ("compiled", "reference"):
        assert np.allclose(silu_gate(x, backend=backend), exact, rtol=1e-6, atol=1e-30)


def test_the_gate_at_the_ends_of_float32():
    gate = np.array([[-3e38, -100, -87, -0.0, 0.0, 87, 100, 3e38, np.inf, np.nan]], np.float32)
    got = silu_gate(np.concatenate([gate, np.ones_like(gate)], axis=1))[0]
    assert np.array_equal(got[5:9], gate[0, 5:9])
    assert np.all(np.abs(got[:5]) < 1e-3)
    assert np.isnan(got[9])


@settings(deadline=None)
@given(**SHAPES, seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_the_norm_is_numpys(rows, width, seed, scale):
    x, weight = normal(seed, rows, width, scale=scale), normal(seed + 1, width)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt(np.square(wide).mean(axis=1, keepdims=True) + 1e-5) * weight
    for backend in ("compiled", "reference"):
        assert np.allclose(rms_norm(x, weight, 1e-5, backend=backend), exact, rtol=2e-6, atol=1e-30)


@settings(deadline=None)
@given(
    rows=st.integers(1, 40),
    heads=st.integers(1, 6),
    others=st.integers(0, 3),
    half=st.sampled_from([1, 3, 8, 32]),
    rest=st.sampled_from([0, 5]),
    seed=st.integers(0, 99),
)
def test_the_rotation_is_numpys_and_leaves_what_does_not_turn(rows, heads, others, half, rest, seed):
    dim = 2 * half + rest
    x, cos, sin = normal(seed, rows, (heads + others) * dim), normal(1, rows, half), normal(2, rows, half)
    got, expected = x.copy(), x.copy()
    rotate_heads(got, cos, sin, heads=heads, head_dim=dim)
    rotate_heads(expected, cos, sin, heads=heads, head_dim=dim, backend="reference")
    assert np.allclose(got, expected, rtol=1e-5, atol=1e-6)
    kept = x.reshape(rows, heads + others, dim)
    assert np.array_equal(got.reshape(kept.shape)[:, heads:], kept[:, heads:])
    assert np.array_equal(got.reshape(kept.shape)[:, :, 2 * half :], kept[:, :, 2 * half :])


@pytest.mark.parametrize("width", [5, 80, 640, 2049])
def test_a_row_has_the_same_bits_whatever_rows_come_along(width):
    x, weight = normal(0, 300, 2 * width), normal(1, 2 * width)
    cos, sin = normal(2, 300, width), normal(3, 300, width)
    gate, norm, turned = silu_gate(x), rms_norm(x, weight, 1e-6), x.copy()
    rotate_heads(turned, cos, sin, heads=1, head_dim=2 * width)
    for first, last in ((7, 8), (7, 9), (13, 30), (0, 150), (299, 300)):
        part = x[first:last].copy()
        assert np.array_equal(silu_gate(part), gate[first:last])
        assert np.array_equal(rms_norm(part, weight, 1e-6), norm[first:last])
        rotate_heads(part, cos[first:last].copy(), sin[first:last].copy(), heads=1, head_dim=2 * width)
        assert np.array_equal(part, turned[first:last])
