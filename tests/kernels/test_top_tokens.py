"""The largest logits, sorted: whatever the row looks like, they are those of a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from auditor.kernels.top_tokens import falling, gather_above, logit_of, sorted_head, unpack
from auditor.kernels.vector_loops import GROUP, LOWEST, exponentials, maxima, ordered, unordered


def group_maxima(row):
    out = np.empty(-(-len(row) // GROUP), np.int32)
    maxima(row, out)
    return out


def head_of(row, wanted):
    keys = sorted_head(row, group_maxima(row), wanted, np.empty(len(row) + 1, np.uint64))
    ids, logits = np.empty(len(keys), np.int64), np.empty(len(keys), np.float32)
    unpack(keys, ids, logits)
    return ids, logits


def assert_sorted(row, wanted):
    ids, logits = head_of(row, wanted)
    expected = np.argsort(-row, kind="stable")[:wanted]
    assert ids.tolist() == expected.tolist()
    assert np.array_equal(logits, row[expected])


FLOATS = st.floats(-300, 300, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, -np.inf])


@given(hnp.arrays(np.float32, st.integers(1, 400), elements=FLOATS), st.integers(0, 450))
@settings(max_examples=200, deadline=None)
def test_any_row_and_any_length(row, wanted):
    assert_sorted(row, wanted)


@pytest.mark.parametrize("wanted", [1, 2, 58, 96, 500, 1024, 1600, 5000, 128_256])
@pytest.mark.parametrize("kind", ["random", "rising", "falling", "equal", "ties", "excluded", "zeros"])
def test_a_real_vocabulary(kind, wanted):
    row = np.random.default_rng(1).standard_normal(128_256).astype(np.float32)
    if kind in {"rising", "falling"}:
        row = np.sort(row)[:: 1 if kind == "rising" else -1].copy()
    elif kind == "equal":
        row[:] = -2.5
    elif kind == "ties":
        row = row.round()
    elif kind == "excluded":
        row[row < 2.5] = -np.inf
    elif kind == "zeros":
        row = np.where(row > 0, np.float32(0), -np.float32(0))
    assert_sorted(row, wanted)


def test_integers_stand_as_their_floats_do_and_give_them_back():
    values = [-np.inf, -3e38, -1.5, -1e-40, 0.0, 1e-40, 1.0, 1.5, 3e38, np.inf]
    x = np.array(values, np.float32)
    keys = [int(ordered(v)) for v in x]
    assert keys == sorted(set(keys))
    assert ordered(np.float32(-0.0)) == ordered(np.float32(0.0))
    assert [unordered(np.int32(k)) for k in keys] == x.tolist()
    assert min(keys) > LOWEST


@pytest.mark.parametrize("length", [1, 63, 64, 65, 700, 1024])
def test_group_maxima_are_those_of_the_groups(length):
    row = (np.random.default_rng(length).standard_normal(length) * 9).astype(np.float32)
    expected = [row[g : g + GROUP].max() for g in range(0, length, GROUP)]
    assert [unordered(np.int32(k)) for k in group_maxima(row)] == expected


def test_a_bar_lets_all_above_it_pass_in_order_of_their_ids():
    row = np.random.default_rng(2).standard_normal(5000).astype(np.float32)
    keys = np.empty(5001, np.uint64)
    found = gather_above(row, group_maxima(row), np.int32(ordered(np.float32(0.5))), keys)
    assert found == (row > 0.5).sum()
    assert [logit_of(k) for k in keys[:found]] == row[row > 0.5].tolist()
    assert [logit_of(k) for k in falling(keys[:found])] == np.sort(row[row > 0.5])[::-1].tolist()


def test_float64_exponentials_are_exact_to_two_units():
    x = np.concatenate([np.linspace(-708, 30, 200_001), [0.0, -1e-300, -np.inf, np.nan]])
    out = np.empty_like(x)
    exponentials(x, out)
    expected = np.exp(np.maximum(x[:-1], -708))
    assert np.abs(out[:-1] / expected - 1).max() < 4.5e-16
    assert out[200_001] == 1.0
    assert np.isnan(out[-1])
