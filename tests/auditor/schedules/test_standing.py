"""Standing: a change is flagged in its week, an honest provider hardly ever, and a look a week costs nothing."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from scipy.stats import beta

from auditor.evidence import Calibration, margin_log_e
from auditor.ledger import Ledger
from auditor.noise_model import log_likelihoods
from auditor.profiles import shipped_profiles
from auditor.schedules.shares import level, share
from auditor.schedules.standing import LEAST_LOG_E, Margins, PeriodEvidence, standing

RECIPE = "auditor-0.1/bfloat16-wide/decode-b32"
WEEKS = 52


@cache
def profile():
    return next(p for key, p in shipped_profiles().items() if key.provider_recipe == RECIPE)


@cache
def pool(cause=None):
    requests = profile().honest if cause is None else profile().deviations[cause].requests["sampled"]
    return log_likelihoods(requests)


def calibrated():
    return Calibration.of_grids(pool())


def period(number, grid, calibration, log_e=None, **options):
    own = float(margin_log_e(calibration, grid)) if log_e is None else log_e
    return PeriodEvidence(number, own, (Margins("p", calibration, grid),), **options)


def drawn(generator, grids, requests):
    return grids[generator.integers(0, len(grids), requests)].sum(axis=0)


def test_shares_are_the_alpha_ledgers_and_never_add_up_to_more_than_one():
    ledger = Ledger(0.01)
    for number in range(1, 6):
        ledger, entry = ledger.opened("")
        assert level(0.01, number) == pytest.approx(entry.alpha, rel=1e-12)
    assert math.fsum(share(n) for n in range(1, 100_000)) < 1.0


def test_a_provider_that_changes_in_week_seven_is_flagged_in_week_seven():
    generator, calibration = np.random.default_rng(0), calibrated()
    periods = []
    for week in range(1, 11):
        grids = pool("weights/int4") if week >= 7 else pool()
        periods.append(period(week, drawn(generator, grids, 8), calibration))
        assert standing(periods).accuses(0.001) == (week >= 7)
    assert standing(periods).since == 7


def test_evidence_too_weak_for_any_week_adds_up_over_weeks():
    generator, calibration = np.random.default_rng(1), calibrated()
    periods, weekly = [], []
    for week in range(1, 27):
        grids = pool("kv/fp8") if week >= 5 else pool()
        periods.append(period(week, drawn(generator, grids, 2), calibration))
        weekly.append(periods[-1].log_e)
        if standing(periods).accuses(0.001):
            break
    assert week < 26
    assert max(weekly) < -math.log(level(0.001, 5)), "no week would have convicted alone"


def test_a_void_period_takes_its_evidence_along_and_leaves_what_came_after():
    generator, calibration = np.random.default_rng(2), calibrated()
    grids = [drawn(generator, pool("weights/int4" if n == 3 else None), 8) for n in range(1, 6)]
    accused = standing([period(n, g, calibration) for n, g in enumerate(grids, 1)])
    cleared = standing([period(n, g, calibration, void=n == 3) for n, g in enumerate(grids, 1)])
    assert accused.accuses(0.001)
    assert not cleared.accuses(0.001)
    again = drawn(generator, pool("weights/int4"), 8)
    grids.append(again)
    relapsed = standing([period(n, g, calibration, void=n == 3) for n, g in enumerate(grids, 1)])
    assert relapsed.accuses(0.001)
    assert relapsed.since == 6


def test_voiding_never_raises_a_standing():
    generator, calibration = np.random.default_rng(3), calibrated()
    for _ in range(20):
        grids = [drawn(generator, pool(generator.choice(["weights/int8", None])), 3) for _ in range(6)]
        void = int(generator.integers(0, 6))
        before = standing([period(n, g, calibration) for n, g in enumerate(grids, 1)])
        after = standing([period(n, g, calibration, void=n - 1 == void) for n, g in enumerate(grids, 1)])
        assert after.log_e <= before.log_e + 1e-9


def test_without_any_evidence_nobody_stands_accused():
    assert standing([]).log_e == LEAST_LOG_E
    silent = [PeriodEvidence(n, None) for n in range(1, 5)]
    assert standing(silent).log_e == standing(silent, by_margins=False).log_e == LEAST_LOG_E


def test_bills_alone_can_accuse():
    quiet = [PeriodEvidence(n, -1.0) for n in range(1, 9)]
    padded = PeriodEvidence(9, math.log(1 / level(0.001, 9)) + 0.1)
    assert not standing(quiet, by_margins=False).accuses(0.001)
    assert standing([*quiet, padded], by_margins=False).accuses(0.001)


def test_another_calibration_begins_another_process():
    generator, calibration = np.random.default_rng(4), calibrated()
    half = Calibration.of_grids(pool()[: len(pool()) // 2])
    periods = [period(n, drawn(generator, pool(), 8), calibration) for n in range(1, 4)]
    grid = drawn(generator, pool("weights/int4"), 8)
    periods.append(PeriodEvidence(4, 0.0, (Margins("q", half, grid),)))
    assert standing(periods).accuses(0.001)


def false_accusations(providers, alpha, seed, weekly_requests=4, weeks=WEEKS):
    """Honest providers, a calibration drawn anew for each, and a look every week."""
    generator = np.random.default_rng(seed)
    accused = 0
    for _ in range(providers):
        order = generator.permutation(len(pool()))
        half = len(order) // 2
        calibration = Calibration.of_grids(pool()[order[:half]])
        fresh = pool()[order[half:]]
        periods = []
        for week in range(1, weeks + 1):
            periods.append(period(week, drawn(generator, fresh, weekly_requests), calibration))
            if standing(periods).accuses(alpha):
                accused += 1
                break
    return accused


def test_a_year_of_weekly_looks_accuses_honest_providers_no_more_often_than_alpha():
    providers, alpha = 40, 0.1
    accused = false_accusations(providers, alpha, seed=5)
    upper = beta.ppf(0.975, accused + 1, providers - accused)
    print(f"{accused} of {providers} honest providers accused in {WEEKS} weeks (95 % bound {upper:.3f})")
    assert accused <= alpha * providers
