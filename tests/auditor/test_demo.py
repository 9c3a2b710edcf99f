"""`audit demo` from end to end, on small logs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from auditor import demonstration as module
from auditor.commands import cli
from auditor.commands.demo import print_demonstration
from auditor.demonstration import (
    POWER_TOKENS,
    REALLY_RAN,
    Sizes,
    conclusion,
    demo,
    demonstration_to_json,
    evidence_text,
)
from auditor.errors import OptionError
from auditor.reference.deviations import DEVIATIONS

SMALL = Sizes(calibration_requests=10, honest_requests=6, dishonest_requests=4, shadow_tokens=150)
CAUSES = ("honest", "weights/int8", "seed/wrong")


@pytest.fixture(scope="module")
def run():
    steps = []
    shown = demo(seed=3, sizes=SMALL, causes=CAUSES, progress=lambda *step: steps.append(step))
    return shown, steps


@pytest.fixture(scope="module")
def shown(run):
    return run[0]


def by_cause(shown):
    return {audit.cause: audit for audit in shown.audits}


def test_the_honest_provider_is_not_convicted_and_the_wrong_seed_is(shown):
    audits = by_cause(shown)
    assert audits["honest"].result.outcome != "inconsistent"
    assert audits["honest"].tokens_to_convict is None
    assert audits["weights/int8"].result.outcome != "inconsistent"
    assert audits["seed/wrong"].result.outcome == "inconsistent"
    assert audits["seed/wrong"].match_rate < 0.95 < audits["honest"].match_rate


def test_the_evidence_curve_ends_at_the_verdict(shown):
    for audit in shown.audits:
        assert audit.curve_log_e[-1] == pytest.approx(audit.result.log_e)
        assert audit.curve_tokens[-1] == audit.result.tokens
        assert (np.diff(audit.curve_tokens) > 0).all()


def test_conviction_falls_where_the_curve_first_reaches_the_line(shown):
    audit = by_cause(shown)["seed/wrong"]
    place = audit.curve_tokens.index(audit.tokens_to_convict)
    assert audit.curve_log_e[place] >= -math.log(shown.alpha)
    assert all(value < -math.log(shown.alpha) for value in audit.curve_log_e[:place])


def test_no_two_logs_share_a_seed(shown):
    seeds = [t.scored.trace.seed for audit in shown.audits for t in audit.verdict.traces]
    stage = module._Stage.load(3)
    seeds += [trace.seed for trace in stage.serve("honest", 0, 3)]
    assert len(seeds) == len(set(seeds))


def test_dishonest_logs_declare_what_honest_ones_do(shown):
    declared = {
        (t.scored.trace.model_digest, t.scored.trace.engine, t.scored.trace.sampling)
        for audit in shown.audits
        for t in audit.verdict.traces
    }
    assert len(declared) == 1


def test_progress_rises_to_its_total(run):
    _, steps = run
    done = [step[1] for step in steps]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(steps[-1][2])
    assert len({step[2] for step in steps}) == 1


def test_every_member_of_the_cast_exists():
    assert set(REALLY_RAN) - {"honest"} <= set(DEVIATIONS)
    assert len(REALLY_RAN) >= 8


def test_the_table_speaks_of_every_provider_and_says_what_comes_next(shown, tmp_path):
    console = Console(width=120, record=True, file=(tmp_path / "screen").open("w"))
    print_demonstration(shown, tmp_path / "demo.html", console)
    text = console.export_text()
    for audit in shown.audits:
        assert audit.cause in text
        assert audit.really_ran in text
    assert "too subtle for" in text
    assert text.count("\n  audit ") == 3


def test_what_was_missed_is_explained_by_its_power(shown):
    audits = by_cause(shown)
    assert conclusion(audits["honest"]) == "never convicted"
    subtle = audits["weights/int8"]
    assert conclusion(subtle) == f"too subtle for {subtle.result.tokens:,} tokens: power {subtle.power:.2f}"


def test_json_holds_the_table_and_is_finite(shown):
    data = json.loads(json.dumps(demonstration_to_json(shown), allow_nan=False))
    assert data["schema"] == "auditor.demo/v1"
    assert [p["provider"] for p in data["providers"]] == list(CAUSES)
    assert all(len(row) == len(POWER_TOKENS) for row in data["power"].values())


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (0.25, "0.25"), (1e-5, "10^-5"), (2e40, "10^40"), (50.0, "50")]
)
def test_e_values_are_written_for_people(value, text):
    assert evidence_text(math.log(value)) == text


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, float("nan")])
def test_an_impossible_alpha_is_refused_before_the_work(alpha):
    with pytest.raises(OptionError):
        demo(alpha=alpha)


def test_an_unknown_cause_is_refused_before_the_work():
    with pytest.raises(OptionError):
        demo(causes=("honest", "weights/imaginary"))


def test_the_command_writes_the_page_and_prints_json(tmp_path, monkeypatch, shown):
    monkeypatch.setattr(module, "demo", lambda **_options: shown)
    page = tmp_path / "page.html"
    outcome = CliRunner().invoke(cli, ["demo", "--out", str(page), "--format", "json"])
    assert outcome.exit_code == 0, outcome.output
    data = json.loads(outcome.stdout)
    assert data["page"] == str(page)
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_the_command_refuses_to_overwrite_a_stranger(tmp_path):
    stranger = tmp_path / "page.html"
    stranger.write_text("not ours")
    outcome = CliRunner().invoke(cli, ["demo", "--out", str(stranger)])
    assert outcome.exit_code != 0
    assert stranger.read_text() == "not ours"
