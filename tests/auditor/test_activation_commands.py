"""`audit commit | challenge | open | check --kind activations`, from a log to an e-value."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from auditor.commands import cli
from auditor.errors import FingerprintError, FingerprintUncalibratedError, OptionError
from auditor.generation import Provider, generate
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import HONEST, deviation
from auditor.reference.sampling import SamplingSpec
from auditor.trace_files import write_traces


def run(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=True)


@pytest.fixture(scope="module")
def provider():
    torch.set_num_threads(1)
    return Provider.load(TARGET)


def log_of(provider, path, requests, seed):
    made = generate(
        provider,
        demo_conversations(requests, seed),
        deviation=HONEST,
        seed=seed,
        sampling=SamplingSpec(max_tokens=8),
    )
    write_traces(path, list(made))
    return path


def checked(folder, log, *more, layers=(-1, 2)):
    """All four commands on a log; the last one's result, and its files."""
    names = ("committed", "kept", "challenges", "opening")
    committed, kept, challenges, opening = (folder / name for name in names)
    kind = ("--kind", "activations")
    wanted = [part for layer in layers for part in ("--layer", layer)]
    for step in (
        ("commit", log, *kind, *wanted, "--out", committed, "--kept", kept),
        ("challenge", committed, *kind, "--positions", 4, "--out", challenges),
        ("open", challenges, *kind, "--kept", kept, "--committed", committed, "--out", opening),
    ):
        done = run(*step)
        assert done.exit_code == 0, done.output
    files = ("--challenge", challenges, "--opening", opening, "--log", log)
    return run("check", committed, *kind, *files, *more), files, committed


@pytest.fixture(scope="module")
def honest(provider, tmp_path_factory):
    folder = tmp_path_factory.mktemp("honest")
    log = log_of(provider, folder / "log.jsonl", 24, 71)
    done, _, _ = checked(folder, log, "--format", "json", layers=(2,))
    assert done.exit_code == 0
    path = folder / "honest.json"
    path.write_text(done.stdout)
    return path


def test_honest_states_hold_and_int4_states_do_not(provider, honest, tmp_path, monkeypatch):
    log = log_of(provider, tmp_path / "log.jsonl", 8, 72)
    done, _, _ = checked(tmp_path, log, "--honest", honest, "--format", "json", layers=(2,))
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert [one["problem"] for one in found["responses"]] == [None] * 8
    assert found["e_value"] < 1
    cheap = replace(provider, model=deviation("weights/int4").model(provider.model, None))
    monkeypatch.setattr(Provider, "load", lambda *_arguments, **_options: cheap)
    done, _, _ = checked(tmp_path / "..", log, "--honest", honest, "--format", "json", layers=(2,))
    assert done.exit_code == 1
    assert json.loads(done.stdout)["e_value"] > 1000


def test_what_is_withheld_or_foreign_fails(provider, tmp_path):
    log = log_of(provider, tmp_path / "log.jsonl", 3, 73)
    done, files, committed = checked(tmp_path, log)
    assert done.exit_code == 0
    assert "3 responses challenged, 0 failed" in done.stdout
    opening = files[3]
    first, *rest = opening.read_text().splitlines()
    opening.write_text("\n".join(rest) + "\n")
    done = run("check", committed, "--kind", "activations", *files)
    assert done.exit_code == 1
    assert "no answer to its challenge" in done.stdout
    changed = json.loads(first)
    changed["states"] = {}
    opening.write_text("\n".join([json.dumps(changed), *rest]) + "\n")
    done = run("check", committed, "--kind", "activations", *files)
    assert done.exit_code == 1
    assert "1 failed" in done.stdout


def test_options_of_the_other_kind_are_asked_for_by_name(provider, honest, tmp_path):
    log = log_of(provider, tmp_path / "log.jsonl", 1, 74)
    for arguments, message in (
        (("commit", log, "--out", tmp_path / "a", "--kept", tmp_path / "b"), "--kind tokens needs --key"),
        (("challenge", log, "--kind", "activations"), "--kind activations needs --out"),
        (("challenge", log), "no key to check signatures with"),
        (("open", log, "--kind", "activations", "--kept", log), "--kind activations needs --committed"),
        (("check", log, "--kind", "activations", "--challenge", log, "--opening", log), "needs --log"),
    ):
        done = run(*arguments)
        assert isinstance(done.exception, OptionError)
        assert message in str(done.exception)
    done, files, committed = checked(tmp_path, log, layers=(-1,))
    assert done.exit_code == 0
    again = ("check", committed, "--kind", "activations", *files, "--honest")
    assert isinstance(run(*again, honest).exception, FingerprintUncalibratedError)
    assert isinstance(run(*again, log).exception, FingerprintError)
