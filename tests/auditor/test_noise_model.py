"""The honest null: a probability for every outcome, and a scale that data bring back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.noise_model import (
    BINS,
    BINS_PER_DECADE,
    GROSS_RATES,
    SCALES,
    RequestCounts,
    Slips,
    bin_centres,
    bin_of,
    count_request,
    log_likelihoods,
    request_log_likelihood,
    slip_log_likelihoods,
)

RATES = np.array([3e-3, 1e-2, 3e-2, 1e-1])
SHAPE = (len(SCALES), len(GROSS_RATES))


def one(slack_bin, margin_bin=None):
    """A request of one token."""
    if margin_bin is None:
        return RequestCounts(1, {slack_bin: 1}, {})
    return RequestCounts(1, {}, {(slack_bin, margin_bin): 1})


def simulated(generator, tokens, scale, gross=0.0, spread=0.0):
    """One request's counts under the documented model; misses land on the nearest alternative."""
    own = scale * np.exp(generator.normal(0, spread))
    slack = 10.0 ** generator.uniform(-4, 1.2, tokens)
    by_noise = generator.random(tokens) < 1 / (1 + np.exp(np.minimum(slack / own, 500)))
    by_accident = generator.random(tokens) < gross
    margin = np.where(by_accident, np.maximum(slack, 10.0 ** generator.uniform(-1, 1.5, tokens)), slack)
    return count_request(slack, margin, ~(by_noise | by_accident))


@pytest.mark.parametrize("slack_bin", range(BINS))
def test_outcomes_at_every_slack_have_total_probability_one(slack_bin):
    match = np.exp(request_log_likelihood(one(slack_bin)))
    misses = sum(np.exp(request_log_likelihood(one(slack_bin, m))) for m in range(slack_bin, BINS))
    assert match + misses == pytest.approx(np.ones(SHAPE), abs=1e-9)


def test_a_margin_below_its_slack_is_impossible_and_never_minus_infinity():
    grid = request_log_likelihood(one(20, 5))
    assert np.isfinite(grid).all()
    assert (grid < -700).all()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 0),
        (1e-300, 0),
        (0.999e-6, 0),
        (1.001e-6, 1),
        (1.001e-5, 1 + BINS_PER_DECADE),
        (1.001, 1 + 6 * BINS_PER_DECADE),
        (10 ** (2 - 1 / 6) * 1.001, BINS - 1),
        (1e30, BINS - 1),
        (np.inf, BINS - 1),
    ],
)
def test_bins_start_at_a_millionth_and_end_with_everything_else(value, expected):
    assert bin_of(np.array([value])).tolist() == [expected]


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_bins_keep_order(a, b):
    low, high = bin_of(np.array(sorted((a, b))))
    assert 0 <= low <= high < BINS


def test_every_bin_holds_its_own_centre():
    assert bin_of(bin_centres()).tolist() == list(range(BINS))


def test_every_token_is_counted_once():
    generator = np.random.default_rng(0)
    slack = np.concatenate([10.0 ** generator.uniform(-8, 3, 500), [0.0, np.inf]])
    margin = slack * 2
    matched = generator.random(502) < 0.7
    counts = count_request(slack, margin, matched)
    assert counts.tokens == 502
    assert sum(counts.matched.values()) == matched.sum()
    assert counts.mismatches == (~matched).sum()
    assert all(d <= m for d, m in counts.missed)


def test_a_margin_a_rounding_below_its_slack_counts_as_the_slack():
    counts = count_request(np.array([1.001e-3]), np.array([0.999e-3]), np.array([False]))
    ((d, m),) = counts.missed
    assert d == m


def test_a_likelihood_falls_with_every_token_and_a_gross_miss_costs_more_than_a_near_one():
    base = request_log_likelihood(RequestCounts(10, {30: 10}, {}))
    near = request_log_likelihood(RequestCounts(11, {30: 10}, {(5, 5): 1}))
    gross = request_log_likelihood(RequestCounts(11, {30: 10}, {(43, 44): 1}))
    small_noise = (slice(0, 30), slice(0, 4))
    assert (near < base).all()
    assert (gross[small_noise] < near[small_noise]).all()


def test_noise_of_one_request_may_differ_from_the_rest():
    """The random effect: twice the noise in one request is likelier than the same split over all tokens."""
    fixed = RequestCounts(400, {25: 200, 30: 200}, {})
    rough = RequestCounts(400, {25: 100, 30: 150}, {(25, 25): 100, (30, 30): 50})
    together = RequestCounts(800, {25: 300, 30: 350}, {(25, 25): 100, (30, 30): 50})
    apart = (request_log_likelihood(fixed) + request_log_likelihood(rough)).max()
    assert apart > request_log_likelihood(together).max() + 3


def test_no_requests_say_nothing():
    assert log_likelihoods([]).shape == (0, *SHAPE)
    assert request_log_likelihood(RequestCounts(0, {}, {})) == pytest.approx(np.zeros(SHAPE), abs=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_data_bring_the_noise_scale_back(scale, spread):
    generator = np.random.default_rng(11)
    grid = log_likelihoods(simulated(generator, 150, scale, 0.0, spread) for _ in range(60)).sum(axis=0)
    s, gross = np.unravel_index(grid.argmax(), SHAPE)
    assert abs(np.log10(SCALES[s] / scale)) <= 0.15
    assert GROSS_RATES[gross] <= 1e-4


def test_data_bring_the_rate_of_gross_misses_back():
    generator = np.random.default_rng(12)
    grid = log_likelihoods(simulated(generator, 150, 0.01, 0.01, 0.3) for _ in range(80)).sum(axis=0)
    s, gross = np.unravel_index(grid.argmax(), SHAPE)
    assert abs(np.log10(SCALES[s] / 0.01)) <= 0.15
    assert GROSS_RATES[gross] == 0.01


def test_a_perfect_log_says_that_noise_is_small():
    grid = log_likelihoods(simulated(np.random.default_rng(1), 150, 1e-9) for _ in range(30)).sum(axis=0)
    s, gross = np.unravel_index(grid.argmax(), SHAPE)
    assert SCALES[s] < 1e-4
    assert gross == 0


def test_slips_to_the_runner_up_are_told_from_noise_by_their_slack():
    """Misses far from the edge by exactly their slack: a slip at the right rate explains them best."""
    generator = np.random.default_rng(3)
    slack = generator.exponential(1.0, 4_000)
    slipped = generator.random(4_000) < 0.01
    request = count_request(slack, np.where(slipped, slack, 0.0), ~slipped)
    slips = slip_log_likelihoods([Slips.to_runner_up(request)], RATES)
    quiet = np.unravel_index(request_log_likelihood(request).argmax(), slips.shape[:2])
    scale = int(np.abs(np.log10(SCALES) + 2.0).argmin())
    assert RATES[slips[scale, 0].argmax()] == 0.01
    assert slips[scale, 0].max() > request_log_likelihood(request)[quiet] + 10.0
    by_noise = count_request(slack, np.where(slack < 0.01, slack, 0.0), slack >= 0.01)
    assert slip_log_likelihoods([Slips.to_runner_up(by_noise)], RATES)[scale, 0].argmax() == 0


def test_slips_to_a_guess_are_told_by_the_guess_and_not_by_their_margin():
    """Far misses that are the guess are explained by its rate; as far ones that are not, by nothing here."""
    generator = np.random.default_rng(4)
    slack, margin = generator.exponential(1.0, 4_000), 2.0 + generator.exponential(2.0, 4_000)
    other_guess = generator.random(4_000) < 0.3
    slipped = other_guess & (generator.random(4_000) < 0.1)
    guesses = ~other_guess | slipped
    at = (slack, np.where(slipped, margin, 0.0), ~slipped)
    scale = int(np.abs(np.log10(SCALES) + 2.0).argmin())
    to_guess = slip_log_likelihoods([Slips.of(*at, guesses)], RATES)[scale, 0]
    elsewhere = slip_log_likelihoods([Slips.of(*at, ~other_guess)], RATES)[scale, 0]
    assert RATES[to_guess.argmax()] == 0.1
    assert to_guess.max() > elsewhere.max() + 5 * slipped.sum()
