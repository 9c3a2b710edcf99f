"""Closed-form sample sizes: published figures, limits, and agreement with simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.errors import OptionError
from auditor.noise_model import RequestCounts
from auditor.sample_size import (
    Effect,
    clustered_variance,
    design_effect,
    diluted,
    effect_of,
    pass_at_k,
    pass_hat_k,
    power_of_mean,
    requests_to_meet_a_cheat,
    runs_for_difference,
    sequential_tokens,
    tokens_for_any_mismatch,
    tokens_for_mean,
)


def test_runs_match_the_published_planner_example():
    # "On Randomness in Agentic Evals", arXiv 2602.07150: about 9 and 36 runs an arm at sigma 1.5
    assert runs_for_difference(1.5, 2.0, 0.05, 0.8) == pytest.approx(8.8, abs=0.05)
    assert runs_for_difference(1.5, 1.0, 0.05, 0.8) == pytest.approx(35.3, abs=0.05)


def test_any_mismatch_and_sequential_tokens_match_the_matrix_rules():
    assert [round(tokens_for_any_mismatch(q, 0.95)) for q in (0.06, 0.02, 0.004)] == [48, 148, 747]
    found = sequential_tokens(0.06, 0.004, 0.05, 0.95)
    assert found.e_process == pytest.approx(28, abs=0.5)
    assert sequential_tokens(0.02, 0.004, 0.05, 0.95).e_process == pytest.approx(184, abs=2)
    assert math.isinf(sequential_tokens(0.004, 0.004, 0.05, 0.95).accuse)


def test_sequential_test_takes_about_as_long_as_promised():
    generator = np.random.default_rng(3)
    q0, q, alpha, power = 0.004, 0.03, 0.01, 0.9
    promised = sequential_tokens(q, q0, alpha, power)
    steps = np.where(generator.random((3000, 1500)) < q, math.log(q / q0), math.log((1 - q) / (1 - q0)))
    total = steps.cumsum(axis=1)
    out = (total >= math.log(power / alpha)) | (total <= math.log((1 - power) / (1 - alpha)))
    assert out.any(axis=1).all()
    taken = out.argmax(axis=1) + 1
    convicted = total[np.arange(len(total)), taken - 1] > 0
    assert convicted.mean() == pytest.approx(power, abs=0.02)
    # Wald neglects the overshoot, which one mismatch worth two nats makes large
    assert promised.accuse < taken.mean() < 1.6 * promised.accuse


def test_mean_formula_is_kept_by_correlated_requests():
    generator = np.random.default_rng(5)
    length, requests = 40, 60
    rho = 0.2
    effect = Effect(0.0, 1.0, 0.35, 1.0, rho, length, rho)
    tokens = length * requests
    predicted = power_of_mean(effect, 0.01, tokens)
    between = generator.normal(size=(4000, requests)) * math.sqrt(rho)
    noise = generator.normal(size=(4000, requests)) * math.sqrt((1 - rho) / length)
    threshold = 2.3263 * math.sqrt(design_effect(length, rho) / tokens)
    assert ((between + noise).mean(axis=1) > threshold).mean() == pytest.approx(0.01, abs=0.005)
    realised = ((0.35 + between + noise).mean(axis=1) > threshold).mean()
    assert realised == pytest.approx(predicted, abs=0.02)
    assert tokens_for_mean(effect, 0.01, predicted) == pytest.approx(tokens)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine proves nothing
@given(
    st.floats(0.01, 1.0),
    st.floats(0.1, 3.0),
    st.floats(0.0, 0.9),
    st.floats(0.001, 0.2),
    st.floats(0.3, 0.99),
)
def test_size_and_power_are_inverse(gap, sd, rho, alpha, power):
    effect = Effect(0.1, 1.0, 0.1 + gap, sd, rho, 50.0, rho / 2)
    tokens = tokens_for_mean(effect, alpha, power)
    if tokens > 0.0:
        assert power_of_mean(effect, alpha, tokens) == pytest.approx(power, abs=1e-6)
    else:
        assert power_of_mean(effect, alpha, 1e-9) >= power - 1e-3


def test_cheating_on_a_fraction_shrinks_the_mean_and_adds_correlation():
    whole = Effect(0.0, 1.0, 2.0, 1.0, 0.0, 100.0, 0.0)
    part = diluted(whole, 0.1)
    assert part.mean == pytest.approx(0.2)
    assert part.sd**2 == pytest.approx(1.0 + 0.1 * 0.9 * 4.0)
    assert part.correlation == pytest.approx(0.36 / 1.36)
    assert diluted(whole, 1.0) == whole


def test_moments_see_that_misses_cluster_in_requests():
    spread = [RequestCounts(100, {}, {(20, 20): 2}) for _ in range(50)]
    lumped = [RequestCounts(100, {}, {(20, 20): 20} if i % 10 == 0 else {}) for i in range(50)]
    honest = [RequestCounts(100, {}, {}) for _ in range(50)]
    even, uneven = effect_of(honest, spread, 1e9), effect_of(honest, lumped, 1e9)
    assert even.mean == pytest.approx(uneven.mean)
    assert even.correlation < 0.0 < uneven.correlation
    assert tokens_for_mean(uneven, 0.001, 0.9) > 3 * tokens_for_mean(even, 0.001, 0.9)


def test_no_effect_is_out_of_reach_and_bad_levels_are_refused():
    assert math.isinf(tokens_for_mean(Effect(0.2, 1.0, 0.1, 1.0), 0.01, 0.9))
    assert math.isinf(requests_to_meet_a_cheat(0.1, 0.0, 0.9))
    for alpha, power in ((0.0, 0.9), (1.0, 0.9), (0.01, 1.0), (0.5, 0.4)):
        with pytest.raises(OptionError):
            tokens_for_mean(Effect(0, 1, 1, 1), alpha, power)


def test_spot_checks_of_a_rare_cheat():
    assert requests_to_meet_a_cheat(0.1, 1.0, 0.95) == pytest.approx(28.4, abs=0.1)
    assert requests_to_meet_a_cheat(1.0, 1.0, 0.95) == 1.0


def test_pass_at_k_and_pass_hat_k_are_unbiased():
    p, n, k = 0.3, 10, 3
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(weights)) == pytest.approx(1 - (1 - p) ** k)
    assert sum(w * pass_hat_k(n, c, k) for c, w in enumerate(weights)) == pytest.approx(p**k)
    with pytest.raises(OptionError):
        pass_at_k(5, 6, 1)
    with pytest.raises(OptionError):
        pass_hat_k(5, 3, 6)


def test_more_runs_cannot_mend_few_tasks():
    assert clustered_variance(2.0, 1.0, 10**9, 4) == pytest.approx(1.0)
