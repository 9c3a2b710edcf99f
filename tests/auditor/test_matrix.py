"""`audit matrix`: rows, curves, what an interrupted run remembers, and a stranger's deviation in one file."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from auditor.commands import cli
from auditor.errors import OptionError
from auditor.matrix import chosen
from auditor.matrix.power import SIZES, Curve, bound
from auditor.matrix.tables import comma_separated, markdown
from auditor.reference import deviations
from auditor.reference.deviations import CATALOGUE, Deviation


def run(*arguments):
    return CliRunner().invoke(cli, ["matrix", *arguments, "--requests", "16", "--threads", "1"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    memory = tmp_path_factory.mktemp("matrix") / "rows.jsonl"
    done = run("seed/wrong", "kv/h2o-1000", "--out", str(memory), "--format", "json")
    assert done.exit_code == 0, done.stderr
    return memory, json.loads(done.stdout)


def test_a_wrong_seed_is_caught_in_a_request_and_a_control_never(finished):
    _, found = finished
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["honest", "seed/wrong", "kv/h2o-1000"]
    assert rows["seed/wrong"]["needed"]["0.99"] <= 3 * rows["seed/wrong"]["curve"]["tokens"][0]
    assert rows["seed/wrong"]["mismatches"] / rows["seed/wrong"]["tokens"] > 0.1
    for name in ("honest", "kv/h2o-1000"):
        assert max(rows[name]["curve"]["fused"]) <= 0.01 + 0.02
    assert found["false_alarms"]["most"] <= found["false_alarms"]["interval"][1]
    assert found["caught"] == 1


def test_an_interrupted_run_goes_on_where_it_was(finished, monkeypatch):
    memory, found = finished
    lines = memory.read_bytes().splitlines(keepends=True)
    memory.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # killed within the third line
    measured = []
    from auditor.matrix import run as running

    real = running._figures
    monkeypatch.setattr(running, "_figures", lambda *asked: measured.append(asked[1].name) or real(*asked))
    again = run("seed/wrong", "kv/h2o-1000", "--out", str(memory), "--format", "json")
    assert measured == ["kv/h2o-1000"]
    assert json.loads(again.stdout) == found
    assert len(memory.read_text().splitlines()) == 4


def test_other_settings_are_not_taken_for_the_same(finished):
    memory, _ = finished
    done = run("kv/h2o-1000", "--out", str(memory), "--alpha", "0.2", "--format", "json")
    assert json.loads(done.stdout)["alpha"] == 0.2
    assert (
        len({json.loads(line)["settings"] for line in memory.read_text().splitlines() if line[-1] == "}"})
        == 2
    )


def test_a_newcomers_deviation_is_a_row(monkeypatch):
    """One file with one entry is all it takes: the catalogue is what the command reads."""
    own = Deviation("weights/doubled-norm", "none", "this test", model=lambda model, _other: model.replace(
        weights=lambda name, tensor: 2 * tensor if name == "model.norm.weight" else tensor))  # fmt: skip
    monkeypatch.setitem(deviations.CATALOGUE, own.name, own)
    done = run("weights/doubled-norm", "--format", "csv")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("weights/doubled-norm,from-start,sampled,")


def test_names_are_families_or_deviations_and_strangers_are_refused():
    assert set(chosen(["kv"])) == {n for n in CATALOGUE if n.startswith("kv/")}
    assert chosen([]) == list(CATALOGUE)
    with pytest.raises(OptionError, match="audit matrix --list"):
        chosen(["nonsense"])
    listed = CliRunner().invoke(cli, ["matrix", "kv", "--list"])
    assert "kv/fp8" in listed.stdout


def test_tables_say_so_where_no_sample_was_enough(finished):
    _, found = finished
    most = f"> {found['rows'][2]['curve']['tokens'][-1]:,}"
    assert most in markdown(found)
    assert comma_separated(found).splitlines()[-1].split(",")[5] == ""


def test_tokens_needed_are_those_from_which_power_stays():
    curve = Curve((10, 20, 30, 40), (0.95, 0.5, 0.99, 1.0), (0.0, 0.0, 0.0, 0.0))
    assert (curve.needed(0.9), curve.needed(0.99), curve.needed(0.9, "published")) == (30, 30, None)
    low, high = bound(0.0)
    assert low == 0.0 < high < 0.01
    assert tuple(sorted(SIZES)) == SIZES
