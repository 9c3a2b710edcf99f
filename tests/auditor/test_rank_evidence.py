"""The e-value of ranks: at most 1 on average for honest requests, whatever their distribution; it convicts few."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from auditor.rank_evidence import TOLERANCE, rank_log_e, rank_log_es


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (4, 2), (2, 4)])
def test_the_mean_over_all_orders_is_one(n, m):
    """Exact, not sampled: exchangeability makes every order of the pooled distances as likely as any other."""
    values = [np.array(order, float) + 1 for order in permutations(range(n + m))]
    mean = np.mean([np.exp(rank_log_e(v[:n], v[n:], tolerance=1.0)) for v in values])
    assert mean == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (4, 1), (3, 2), (1, 3)])
def test_one_may_look_after_each_request(n, m):
    """Exact: an honest request comes anywhere in the order so far, and on average leaves the e-value as it is."""
    for order in permutations(range(n + m)):
        so_far = np.array(order, float) + 1
        later = [
            rank_log_e(so_far[:n], np.append(so_far[n:], place + 0.5), tolerance=1.0)
            for place in range(n + m + 1)
        ]
        assert np.mean(np.exp(later)) == pytest.approx(
            np.exp(rank_log_e(so_far[:n], so_far[n:], tolerance=1.0))
        )


@pytest.mark.parametrize("draw", ["normal", "cauchy", "few values"])
def test_honest_requests_rarely_reach_a_small_alpha(draw):
    generator = np.random.default_rng(1)
    reached = 0
    for _ in range(2000):
        x = {
            "normal": generator.normal(10, 1, 30),
            "cauchy": np.abs(generator.standard_cauchy(30)),
            "few values": generator.integers(0, 3, 30).astype(float),
        }[draw]
        reached += rank_log_e(x[:20], x[20:], tolerance=1.0) >= np.log(20)
    assert reached / 2000 <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_an_honest_provider_may_differ_by_the_tolerance_in_every_request():
    x = np.random.default_rng(2).normal(10, 0.1, 60)
    assert rank_log_e(x[:40], x[40:] * TOLERANCE * 0.97) < 0
    assert rank_log_e(x[:40], x[40:] * TOLERANCE * 1.2) > np.log(1e6)


@pytest.mark.parametrize(("share", "requests"), [(0.9, 8), (0.3, 48)])
def test_a_provider_that_cheats_on_some_requests_is_convicted(share, requests):
    """Its other requests are honest ones, which no common factor explains: of 100 audits most convict at 0.01."""
    generator = np.random.default_rng(4)
    calibration = generator.lognormal(0, 0.3, 192)
    audited = generator.lognormal(0, 0.3, (100, requests))
    audited = np.where(generator.random(audited.shape) < share, 10 * audited, audited)
    assert (rank_log_es(calibration, audited) >= np.log(100)).sum() >= 95


def test_evidence_only_grows_with_a_distance():
    generator = np.random.default_rng(3)
    for _ in range(200):
        x = generator.integers(0, 12, 10).astype(float)
        larger = x.copy()
        larger[generator.integers(6, 10)] += generator.integers(1, 6)
        assert rank_log_e(x[:6], larger[6:], tolerance=1.0) >= rank_log_e(x[:6], x[6:], tolerance=1.0) - 1e-12


def test_a_tie_never_accuses():
    assert rank_log_e(np.zeros(20), np.zeros(20)) < 0
    assert rank_log_e(np.ones(20), np.ones(20), tolerance=1.0) < 0


def test_few_calibration_requests_cap_the_evidence_by_themselves():
    far = np.full(50, 1e9)
    assert rank_log_e(np.array([1.0]), far) <= np.log(51)
    assert rank_log_e(np.ones(48), far[:3]) > np.log(1000)


def test_nothing_on_one_side_says_nothing():
    assert rank_log_e(np.zeros(0), np.ones(3)) == 0.0
    assert rank_log_e(np.ones(3), np.zeros(0)) == 0.0


def test_several_audits_at_once_are_each_as_alone():
    generator = np.random.default_rng(5)
    calibration, audited = generator.integers(0, 20, 30) / 3.0, generator.integers(0, 40, (6, 7)) / 3.0
    together = rank_log_es(calibration, audited)
    assert together == pytest.approx([rank_log_e(calibration, one) for one in audited])
    assert rank_log_es(calibration, audited[:, :0]).tolist() == [0.0] * 6
