"""E-values: honest providers are almost never accused, dishonest ones are, and a thin null caps the claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.evidence import Calibration, margin_log_e, outside_log_e, smallest_alpha
from auditor.noise_model import GROSS_RATES, SCALES, count_request, log_likelihoods

STEP = 10**0.1  # the grid's: ten scales a decade
PAIRS = 300
POOL = 900
SHAPE = (len(SCALES), len(GROSS_RATES))


def simulated(generator, scale, tokens=150, gross=0.0, lowest=-4.0):
    """One honest request of the documented model: logistic noise, log-normal scale, accidents anywhere."""
    own = scale * np.exp(generator.normal(0, 0.3))
    slack = 10.0 ** generator.uniform(lowest, 1.2, tokens)
    by_noise = generator.random(tokens) < 1 / (1 + np.exp(np.minimum(slack / own, 500)))
    by_accident = generator.random(tokens) < gross
    elsewhere = generator.random(tokens) < 0.1  # a miss by noise that lands beyond the nearest alternative
    margin = slack + np.where(elsewhere, own * generator.exponential(1.0, tokens), 0.0)
    margin = np.where(by_accident, np.maximum(slack, 10.0 ** generator.uniform(-1, 1.5, tokens)), margin)
    return count_request(slack, margin, ~(by_noise | by_accident))


def pool_of(seed, scale=0.01, count=POOL, **options):
    generator = np.random.default_rng(seed)
    return log_likelihoods(simulated(generator, scale, **options) for _ in range(count))


def mixed_pool(seed):
    """Requests of unequal length, some of nothing but close calls, some nearly greedy."""
    generator = np.random.default_rng(seed)
    return log_likelihoods(
        simulated(
            generator,
            0.01,
            tokens=int(generator.integers(3, 400)),
            lowest=float(generator.choice([-5, -2, 0])),
        )
        for _ in range(POOL)
    )


@pytest.fixture(scope="module")
def honest():
    return pool_of(1)


def e_values(calibration_pool, audited_pool, *, calibration=40, audited=15, pairs=PAIRS, seed=0):
    """Log e-values of `pairs` simulated audits; calibration and audit never share a request."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(pairs):
        order = generator.permutation(len(calibration_pool))
        others = (
            order[calibration:]
            if audited_pool is calibration_pool
            else generator.permutation(len(audited_pool))
        )
        null = Calibration.of_grids(calibration_pool[order[:calibration]])
        found.append(float(margin_log_e(null, audited_pool[others[:audited]].sum(axis=0))))
    return np.array(found)


def assert_null(log_e):
    assert (log_e >= math.log(20)).mean() <= 1 / 20
    assert np.exp(log_e).mean() <= 1.0


# --- honest providers ---------------------------------------------------------------------------------


def test_an_honest_provider_is_almost_never_accused(honest):
    assert_null(e_values(honest, honest))


def test_an_honest_provider_with_the_tolerated_noise_is_almost_never_accused(honest):
    assert_null(e_values(honest, pool_of(2, 0.01 * STEP)))


def test_an_honest_provider_with_less_noise_is_almost_never_accused(honest):
    assert_null(e_values(honest, pool_of(3, 0.002)))


def test_an_honest_mixture_of_requests_is_almost_never_accused():
    pool = mixed_pool(4)
    assert_null(e_values(pool, pool))


def test_other_traffic_than_the_calibrations_is_almost_never_accused(honest):
    """The null is stated given the slacks, so it carries over: here most audited tokens are close calls."""
    assert_null(e_values(honest, pool_of(5, lowest=-5.0, tokens=40)))
    assert_null(e_values(mixed_pool(6), honest))


@pytest.mark.parametrize(("calibration", "audited"), [(1, 15), (3, 3), (5, 200), (200, 1)])
def test_a_thin_or_lopsided_sample_accuses_no_honest_provider(honest, calibration, audited):
    assert_null(e_values(honest, honest, calibration=calibration, audited=audited, pairs=150))


def test_honest_accidents_seen_in_the_calibration_are_excused():
    pool = pool_of(7, gross=0.003)
    assert_null(e_values(pool, pool))


def test_a_perfect_log_is_not_evidence_against_anyone(honest):
    perfect = pool_of(8, 1e-9, count=100)
    assert (e_values(honest, perfect, pairs=30) < 0).all()
    assert_null(e_values(perfect, perfect, calibration=20, audited=20, pairs=30))


def test_an_empty_log_is_no_evidence(honest):
    assert margin_log_e(Calibration.of_grids(honest[:40]), np.zeros(SHAPE)) <= 0


# --- dishonest providers ------------------------------------------------------------------------------


def test_five_times_the_noise_convicts_and_more_tokens_convict_more(honest):
    cheating = pool_of(20, 0.05, count=120)
    means = [e_values(honest, cheating, audited=n, pairs=40).mean() for n in (2, 8, 30)]
    assert means == sorted(means)
    assert (e_values(honest, cheating, audited=30, pairs=40) > math.log(1000)).mean() > 0.9


def test_gross_misses_at_one_token_in_fifty_convict(honest):
    cheating = pool_of(21, gross=0.02, count=120)
    assert (e_values(honest, cheating, pairs=40) > math.log(1e6)).all()


def test_gross_evidence_convicts_on_a_small_calibration_and_subtle_evidence_cannot(honest):
    """Three calibrated requests leave open that honest noise is a little larger, however long the log."""
    null = Calibration.of_grids(honest[:3])
    subtle = pool_of(22, 0.01 * STEP**3, count=300).sum(axis=0)
    gross = pool_of(23, gross=0.1, count=100).sum(axis=0)
    much = Calibration.of_grids(honest)
    assert margin_log_e(null, subtle) < margin_log_e(much, subtle)
    assert margin_log_e(null, subtle) < math.log(1e4)
    assert margin_log_e(much, subtle) > math.log(1e6)
    assert margin_log_e(null, gross) > math.log(1e6)


@pytest.mark.parametrize("calibration", [2, 10, 50])
@pytest.mark.parametrize("steps", [3, 5, 10])
def test_no_log_however_long_gets_below_the_smallest_alpha(honest, calibration, steps):
    """With the audited log repeated without end the e-value stops at the bound that the calibration sets."""
    null = Calibration.of_grids(honest[:calibration])
    once = pool_of(30 + steps, 0.01 * STEP**steps, count=100).sum(axis=0)
    known = int(np.unravel_index(null.grid.argmax(), SHAPE)[0])
    seen = int(np.unravel_index(once.argmax(), SHAPE)[0])
    cap = -math.log(smallest_alpha(null, seen - known))
    found = [float(margin_log_e(null, once * times)) for times in (1, 10, 1000)]
    assert max(found) <= cap + 1e-6
    if steps == 3 and calibration == 2:
        assert cap < math.log(1e4)


def test_more_calibration_and_larger_factors_allow_a_smaller_alpha(honest):
    alphas = [smallest_alpha(Calibration.of_grids(honest[:n]), 3) for n in (2, 20, 200)]
    assert alphas == sorted(alphas, reverse=True)
    null = Calibration.of_grids(honest[:30])
    by_factor = [smallest_alpha(null, steps) for steps in (3, 5, 10)]
    assert by_factor == sorted(by_factor, reverse=True)
    assert all(0 <= alpha <= 1 for alpha in alphas + by_factor)


def test_several_logs_at_once_are_judged_as_one_by_one(honest):
    null = Calibration.of_grids(honest[:40])
    logs = np.stack([pool_of(40, 0.05, count=20).sum(axis=0), honest[50:80].sum(axis=0), np.zeros(SHAPE)])
    together = margin_log_e(null, logs)
    assert together.shape == (3,)
    assert together.tolist() == pytest.approx([float(margin_log_e(null, log)) for log in logs])


# --- tokens outside the filters -----------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 1e-4, 1e-3, 0.02])
@pytest.mark.parametrize(("calibrated", "audited"), [(20_000, 5_000), (500, 5_000), (20_000, 50)])
def test_outside_tokens_at_the_calibrated_rate_accuse_nobody(rate, calibrated, audited):
    generator = np.random.default_rng(int(rate * 1e6) + calibrated + audited)
    log_e = np.array(
        [
            outside_log_e(int(c), calibrated, int(a), audited)
            for c, a in zip(
                generator.binomial(calibrated, rate, 1500),
                generator.binomial(audited, rate, 1500),
                strict=True,
            )
        ]
    )
    assert np.exp(log_e).mean() <= 1.0
    assert (log_e >= math.log(20)).mean() <= 1 / 20


@given(st.integers(0, 50), st.integers(1, 10_000), st.integers(0, 50), st.integers(1, 10_000))
def test_fewer_outside_tokens_than_calibrated_are_never_evidence(c, calibrated, a, audited):
    c, a = min(c, calibrated), min(a, audited)
    log_e = outside_log_e(c, calibrated, a, audited)
    assert math.isfinite(log_e)
    if a / audited <= c / calibrated:
        assert log_e <= 0


def test_outside_evidence_grows_with_the_count_and_convicts_an_ignored_filter():
    found = [outside_log_e(2, 20_000, a, 5_000) for a in (1, 5, 20, 60)]
    assert found == sorted(found)
    assert found[0] < math.log(20)
    assert found[-1] > math.log(1e6)  # 92 of 7,801 in the recorded log of an ignored top-p


@pytest.mark.parametrize("counts", [(0, 0, 5, 100), (5, 100, 0, 0), (0, 0, 0, 0)])
def test_without_filtered_tokens_on_both_sides_nothing_is_said(counts):
    assert outside_log_e(*counts) == 0.0


def test_a_small_calibration_caps_what_outside_tokens_can_say():
    assert outside_log_e(0, 20, 5, 500) < outside_log_e(0, 20_000, 5, 500)
