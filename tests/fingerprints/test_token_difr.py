"""Token-DiFR per trace: every token counts, and no miss is lost from an average."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.fingerprints.token_difr import token_scores

FLOAT = st.floats(0, 50)
ROW = st.tuples(FLOAT, FLOAT, st.booleans(), st.booleans(), st.integers(0, 100), st.floats(-30, 0))


def scores_of(rows):
    margin, slack, missed, outside, rank, log_probability = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return token_scores(
        margin=np.where(missed, margin, 0.0),
        slack=slack,
        matched=~missed,
        outside=outside & missed,
        filtered=np.ones(len(rows), np.bool_),
        rank=np.where(missed, rank, 0),
        log_probability=log_probability,
    )


@given(st.lists(ROW, min_size=1, max_size=40))
def test_counts_cover_every_token(rows):
    scores = scores_of(rows)
    assert scores.tokens == scores.filtered == len(rows)
    assert scores.matched + len(scores.misses) == scores.tokens
    assert scores.outside == sum(1 for row in rows if row[2] and row[3])
    assert scores.match_rate == pytest.approx(sum(not row[2] for row in rows) / len(rows))
    assert scores.mean_log_probability == pytest.approx(np.mean([row[5] for row in rows]))
    for position, margin, slack in scores.misses:
        assert rows[position][2]
        assert (margin, slack) == (rows[position][0], rows[position][1])


@given(st.lists(ROW, min_size=1, max_size=40), st.floats(0.01, 20))
def test_the_mean_margin_is_winsorised_over_all_tokens(rows, clip):
    scores = scores_of(rows)
    by_hand = [min(row[0], clip) if row[2] else 0.0 for row in rows]
    assert scores.mean_margin(clip) == pytest.approx(np.mean(by_hand))
    assert scores.mean_margin(clip) <= scores.mean_margin(clip + 1) <= scores.mean_margin(math.inf)


def test_an_enormous_miss_raises_the_mean_instead_of_leaving_it():
    """difr.md R3: the release dropped what it called infinite."""
    mild = scores_of([(0.1, 0.1, True, False, 1, -1.0)] + [(0.0, 1.0, False, False, 0, -1.0)] * 9)
    gross = scores_of(
        [(0.1, 0.1, True, False, 1, -1.0), (1e9, 0.1, True, True, 9, -1.0)]
        + [(0.0, 1.0, False, False, 0, -1.0)] * 8
    )
    assert gross.mean_margin(4.0) > mild.mean_margin(4.0)
    assert gross.mean_margin(4.0) == pytest.approx((0.1 + 4.0) / 10)
    assert gross.outside == 1


def test_misses_stand_in_order_of_position():
    scores = scores_of([(1.0, 0.5, n % 3 == 0, False, 0, -1.0) for n in range(12)])
    assert [position for position, _, _ in scores.misses] == [0, 3, 6, 9]


def test_a_perfect_trace_has_no_miss_and_margin_zero():
    scores = scores_of([(0.0, 2.0, False, False, 0, -0.5)] * 5)
    assert (scores.match_rate, scores.misses, scores.mean_margin(1.0), scores.mean_rank) == (
        1.0,
        (),
        0.0,
        0.0,
    )


def test_the_mean_rank_of_an_inverse_cdf_is_no_number_rather_than_a_wrong_one():
    none = np.zeros(3, np.bool_)
    scores = token_scores(
        margin=np.zeros(3),
        slack=np.ones(3),
        matched=~none,
        outside=none,
        filtered=none,
        rank=np.full(3, -1),
        log_probability=np.zeros(3),
    )
    assert math.isnan(scores.mean_rank)
