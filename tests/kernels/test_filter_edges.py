"""Edge costs and filtered races: the compiled paths and the plain ones agree on any heads and filters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.kernels.filter_edges import Filters, claimed_edges, cut_heads, filter_edges
from auditor.kernels.filtered_race import FilteredRows, filtered_race
from auditor.kernels.keyed_noise import KeyedNoise
from auditor.kernels.row_head import RowHeads, row_heads
from auditor.kernels.splitmix import mix

FILTERS = st.builds(
    Filters,
    vocabulary=st.just(0),
    top_k=st.sampled_from([0, 1, 7, 40, 10**6]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.3, 1e-6]),
    min_p=st.sampled_from([0.0, 0.01, 0.4, 1.0]),
    min_p_first=st.booleans(),
    scale=st.sampled_from([0.4, 1.0, 1.7]),
)


def rows_of(seed, vocabulary, spread, ties):
    z = np.random.default_rng(seed).standard_normal((4, vocabulary)) * spread
    return (z.round(1) if ties else z).astype(np.float32)


def whole(z, scale):
    """Every row sorted to its end."""
    return row_heads(z, (z.shape[1],), temperature=scale, backend="reference")


def head_of(heads, r):
    return slice(heads.start[r], heads.start[r + 1])


# The mass after the last tokens is lost in rounding beside the mass before them.
@example(filters=Filters(0, 40, 0.999, 0.0, False, 0.4), seed=0, vocabulary=41, spread=5.0, ties=False)
@given(
    filters=FILTERS,
    seed=st.integers(0, 2**20),
    vocabulary=st.sampled_from([1, 2, 41, 300]),
    spread=st.sampled_from([0.01, 1.0, 5.0]),
    ties=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_compiled_edge_costs_are_the_plain_ones(filters, seed, vocabulary, spread, ties):
    filters = filters._replace(vocabulary=vocabulary)
    heads = whole(rows_of(seed, vocabulary, spread, ties), filters.scale)
    kept, plain = filter_edges(heads, filters, backend="reference")
    ours_kept, ours = filter_edges(heads, filters)
    # Which side of the nucleus' edge a token is on can hang on the last place of a sum.
    exact = np.array([np.abs(plain[head_of(heads, r)]).min() > 1e-12 for r in range(4)])
    assert ours_kept[exact].tolist() == kept[exact].tolist()
    for r in np.flatnonzero(exact):
        np.testing.assert_allclose(ours[head_of(heads, r)], plain[head_of(heads, r)], rtol=1e-6, atol=1e-9)
    claimed = heads.ids[heads.start[:-1] + seed % vocabulary]
    column, cost = claimed_edges(heads, cut_heads(heads, filters), filters, claimed)
    assert column.tolist() == [seed % vocabulary] * 4
    assert np.array_equal(cost, ours[heads.start[:-1] + seed % vocabulary])


def test_a_claim_that_the_head_lacks_has_no_cost():
    z = rows_of(0, 50, 1.0, ties=False)
    heads = row_heads(z, (9,))
    filters = Filters(50, 4, 1.0, 0.0, True, 1.0)
    column, cost = claimed_edges(heads, cut_heads(heads, filters), filters, z.argmin(axis=1))
    assert column.tolist() == [-1] * 4
    assert np.isnan(cost).all()


@given(
    filters=FILTERS,
    seed=st.integers(0, 2**20),
    vocabulary=st.sampled_from([2, 41, 300]),
    spread=st.sampled_from([0.01, 1.0, 5.0]),
    beyond=st.integers(0, 60),
    claim=st.integers(0, 2**20),
    tail_safe=st.booleans(),
    dense=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_compiled_race_finds_what_the_plain_one_finds(
    filters, seed, vocabulary, spread, beyond, claim, tail_safe, dense
):
    filters = filters._replace(vocabulary=vocabulary)
    z = rows_of(seed, vocabulary, spread, ties=False)
    heads = whole(z, filters.scale)
    cuts = cut_heads(heads, filters)
    claimed = np.full(4, claim % vocabulary)
    columns = np.minimum(cuts.kept + beyond, vocabulary)
    rows = FilteredRows(heads, filters, cuts, columns, claimed, z[:, claim % vocabulary])
    draws = mix(np.arange(4, dtype=np.uint64) + np.uint64(seed))
    if dense:
        draws = np.random.default_rng(seed).gumbel(size=z.shape)
    plain = filtered_race(rows, filters.scale, draws, noise=KeyedNoise(tail_safe), backend="reference")
    ours = filtered_race(rows, filters.scale, draws, noise=KeyedNoise(tail_safe))
    assert ours.winner.tolist() == plain.winner.tolist()
    assert ours.rank.tolist() == plain.rank.tolist()
    np.testing.assert_allclose(ours.margin, plain.margin, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.slack, plain.slack, rtol=1e-6, atol=1e-9)


def sorted_rows(z):
    order = np.argsort(-z, axis=1, kind="stable")
    return order, np.take_along_axis(z, order, axis=1)


@given(
    seed=st.integers(0, 2**20),
    vocabulary=st.sampled_from([100, 2999, 6000]),
    spread=st.sampled_from([0.01, 0.5, 2.0, 6.0]),
    mass=st.sampled_from([0.0, 0.3, 0.95, 0.9999, 1.0]),
    reach=st.sampled_from([-1.0, 0.5, 4.0, 50.0]),
    ties=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_head_longer_than_the_fixed_lengths_holds_all_that_is_needed(
    seed, vocabulary, spread, mass, reach, ties
):
    z = rows_of(seed, vocabulary, spread, ties)
    options = {"mass": mass, "reach": reach, "beyond": 8, "margin": 0.25, "temperature": 0.8}
    ours = row_heads(z, (10, 60), **options)
    plain = row_heads(z, (10, 60), **options, backend="reference")
    order, values = sorted_rows(z)
    for r in range(4):
        mine = head_of(ours, r)
        length, theirs = mine.stop - mine.start, plain.start[r + 1] - plain.start[r]
        assert ours.ids[mine].tolist() == order[r, :length].tolist()
        assert np.array_equal(ours.logits[mine], values[r, :length])
        # Which token a nucleus ends with may differ by rounding, in flat rows by more than one.
        assert abs(length - theirs) <= max(2, 0.01 * theirs) or ties


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("options", [{"mass": 0.95}, {"reach": 3.0}], ids=str)
def test_a_flat_row_of_a_real_vocabulary_is_cut_where_it_should_be(options, spread):
    z = (np.random.default_rng(3).standard_normal((2, 128_256)) * spread).astype(np.float32)
    heads = row_heads(z, (96, 1024), **options, beyond=8)
    order, values = sorted_rows(z)
    for r in range(2):
        mine = head_of(heads, r)
        x = values[r].astype(np.float64)
        p = np.exp(x - x[0])
        before = (np.cumsum(p) - p) / p.sum()
        needed = int((before < options["mass"]).sum() if "mass" in options else (x >= x[0] - 3.0).sum()) + 8
        expected = next((n for n in (96, 1024) if n >= needed), needed)
        assert abs((mine.stop - mine.start) - expected) <= 3
        assert ours_is_prefix(heads, mine, order[r])


def ours_is_prefix(heads: RowHeads, mine: slice, order):
    return np.array_equal(heads.ids[mine], order[: mine.stop - mine.start])


def test_a_row_with_a_nan_has_no_normaliser():
    z = rows_of(1, 3000, 1.0, ties=False)
    z[0, 7], z[1, 2500] = np.nan, -np.nan
    heads = row_heads(z, (20, 100), mass=0.5, beyond=8)
    assert np.isnan(heads.log_normaliser).tolist() == [True, True, False, False]
