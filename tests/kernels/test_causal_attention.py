"""Attention over earlier positions: the compiled loop against NumPy and the definition, and cuts that change no bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.kernels.causal_attention import KEYS, TILE, causal_attention

# Query heads, key/value heads, dim, value dim.
SHAPES = st.sampled_from([(4, 2, 64, 64), (3, 3, 16, 16), (6, 1, 8, 12), (14, 2, 5, 33), (1, 1, 1, 1)])
WINDOWS = st.sampled_from([None, 1, 5, TILE, 70, KEYS + 1])


def inputs(rows, positions, shape, seed, scale=1.0):
    heads, shared, dim, width = shape
    generator = np.random.default_rng(seed)

    def normal(*sizes):
        return (scale * generator.standard_normal(sizes)).astype(np.float32)

    return normal(rows, heads, dim), normal(positions, shared, dim), normal(positions, shared, width)


def attended(queries, keys, values, window=None, sinks=None, backend="compiled", scale=0.3):
    out = np.full((len(queries), queries.shape[1], values.shape[2]), np.nan, np.float32)
    causal_attention(queries, keys, values, scale, window, sinks, out, backend=backend)
    return out


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 2 * KEYS + 30),
    past=st.integers(0, 2 * KEYS),
    shape=SHAPES,
    window=WINDOWS,
    with_sinks=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 12.0]),
    seed=st.integers(0, 99),
)
def test_the_loop_is_the_definition(rows, past, shape, window, with_sinks, scale, seed):
    queries, keys, values = inputs(rows, past + rows, shape, seed, scale)
    sinks = np.linspace(-3, 3, shape[0]).astype(np.float32) if with_sinks else None
    got = attended(queries, keys, values, window, sinks)
    exact = attended(*(x.astype(np.float64) for x in (queries, keys, values)), window, sinks, "reference")
    # The scores of `scale` 12 are thousands: what a float32 product of them is off by is a share of a weight.
    tolerance = 3e-6 if scale <= 1 else 2e-2
    assert np.abs(got - exact).max() <= tolerance * max(scale, 1)
    assert np.abs(got - attended(queries, keys, values, window, sinks, "reference")).max() <= tolerance * max(
        scale, 1
    )


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 3 * KEYS),
    first=st.integers(0, 600),
    last=st.integers(1, 600),
    shape=SHAPES,
    window=WINDOWS,
    seed=st.integers(0, 99),
)
def test_neither_a_cut_nor_other_heads_change_a_bit(length, first, last, shape, window, seed):
    queries, keys, values = inputs(length, length, shape, seed)
    whole = attended(queries, keys, values, window)
    first = min(first, length - 1)
    last = max(min(last, length), first + 1)
    part = attended(queries[first:last], keys[:last], values[:last], window)
    assert np.array_equal(part, whole[first:last])
    group = shape[0] // shape[1]
    alone = attended(queries[:, :group], keys[:, :1], values[:, :1], window)
    assert np.array_equal(alone, whole[:, :group])


def test_it_reads_what_lies_between_other_columns_and_writes_nothing_else():
    heads, shared, dim = 4, 2, 16
    wide = np.random.default_rng(0).standard_normal((100, (heads + 2 * shared) * dim)).astype(np.float32)
    split = np.split(wide, [heads * dim, (heads + shared) * dim], axis=1)
    views = [
        np.lib.stride_tricks.as_strided(x, (100, x.shape[1] // dim, dim), (*wide.strides[:1], 4 * dim, 4))
        for x in split
    ]
    room = np.full((100, heads + 2, dim), 7, np.float32)
    causal_attention(*views, 0.3, None, None, room[:, 1:-1])
    assert np.array_equal(room[:, 1:-1], attended(*(view.copy() for view in views)))
    assert (room[:, 0] == 7).all()
    assert (room[:, -1] == 7).all()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_a_number_shows_in_every_row_that_sees_it(which):
    parts = inputs(KEYS + 40, KEYS + 40, (4, 2, 8, 8), 0)
    clean = attended(*parts)
    parts[which][KEYS + 2, 0] = np.nan
    got = attended(*parts)
    assert np.array_equal(got[:KEYS], clean[:KEYS])
    assert np.isnan(got[KEYS + 2, 0] if which == 0 else got[KEYS + 2 :, :2]).all()
    assert np.array_equal(got[:, 2:], clean[:, 2:])


def test_a_large_score_takes_all_the_weight_and_overflows_nothing():
    queries, keys, values = inputs(300, 300, (1, 1, 4, 4), 1)
    queries[:], keys[:] = 0, 0
    queries[:, 0, 0], keys[7, 0, 0] = 1e4, 1e4
    got = attended(queries, keys, values)
    assert np.array_equal(got[7:], np.broadcast_to(values[7], got[7:].shape))
    assert np.allclose(got[:7, 0], np.cumsum(values[:7, 0], 0) / np.arange(1, 8)[:, None], atol=1e-6)
