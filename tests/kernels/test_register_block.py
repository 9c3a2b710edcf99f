"""A block of a product in registers: its definition, one fused multiply-add after another, wherever it lies."""

from __future__ import annotations

from fractions import Fraction

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.kernels.register_block import COLUMNS, ROWS, add_product, set_product


@numba.njit
def _set(a, b, out):
    set_product(a, b, out)


@numba.njit
def _add(a, b, out):
    add_product(a, b, out)


def fused(a, b, c):
    """a * b + c, rounded once: to the nearer neighbour of what float64 makes of it, and to even between two."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))


def placed(generator, rows, columns, gap):
    """A matrix inside a larger one."""
    room = generator.standard_normal((rows + 2, columns + gap)).astype(np.float32)
    return room, room[1 : rows + 1, :columns]


@settings(deadline=None, max_examples=15)
@given(count=st.sampled_from([1, 2, 3, 24, 65]), gap=st.integers(0, 5), seed=st.integers(0, 99))
@pytest.mark.parametrize("add", [False, True])
def test_every_sum_is_one_fused_step_after_another_and_nothing_else_is_written(count, gap, seed, add):
    generator = np.random.default_rng(seed)
    (_, a), (_, b) = placed(generator, ROWS, count, gap), placed(generator, count, COLUMNS, gap)
    room, out = placed(generator, ROWS, COLUMNS, gap)
    before = room.copy()
    (_add if add else _set)(a, b, out)
    row, column = generator.integers(ROWS), generator.integers(COLUMNS)
    expected = before[1 + row, column] if add else np.float32(0)
    for k in range(count):
        expected = fused(a[row, k], b[k, column], expected)
    assert out[row, column] == expected
    assert np.allclose(out, a @ b + (before[1 : 1 + ROWS, :COLUMNS] if add else 0), atol=1e-4)
    before[1 : 1 + ROWS, :COLUMNS] = out
    assert np.array_equal(room, before)
