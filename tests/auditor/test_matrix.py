"""`audit matrix`: rows, curves, what an interrupted run remembers, and a stranger's deviation in one file."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner

from auditor.commands import cli
from auditor.errors import OptionError
from auditor.matrix import chosen, memory
from auditor.matrix.power import SIZES, Curve, bound
from auditor.matrix.tables import comma_separated, markdown
from auditor.reference import deviations
from auditor.reference.deviations import CATALOGUE, Deviation

ASKED = ("seed/wrong", "weights/int4-g128", "kv/h2o-1000", "partly/int4-from-token-64")


def run(*arguments):
    common = ("--requests", "16", "--threads", "1", "--no-diagnosis")
    return CliRunner().invoke(cli, ["matrix", *arguments, *common])


@pytest.fixture(scope="module", autouse=True)
def few_honest_logs():
    """A tenth of the honest logs: what they cost is most of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("auditor.matrix.run.HONEST_AUDITS", 200)
        patch.setattr("auditor.matrix.summary.HONEST_AUDITS", 200)
        patch.setattr("auditor.matrix.power.HONEST_DRAWS", 400)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    rows = tmp_path_factory.mktemp("matrix") / "rows.jsonl"
    done = run(*ASKED, "--out", str(rows), "--format", "json")
    assert done.exit_code == 0, done.stderr
    return rows, json.loads(done.stdout)


@pytest.fixture(scope="module")
def rows(finished):
    return {row["name"]: row for row in finished[1]["rows"]}


def needed(row, way):
    return row["needed"][way]["0.99"]


def test_a_wrong_seed_is_caught_in_a_request_and_a_control_never(finished, rows):
    assert list(rows) == ["honest", *ASKED]
    assert needed(rows["seed/wrong"], "fused") <= 100
    assert rows["seed/wrong"]["mismatches"] / rows["seed/wrong"]["tokens"] > 0.1
    for name in ("honest", "kv/h2o-1000"):
        assert max(rows[name]["curve"]["fused"]) <= 0.01 + 0.02
    alarms = finished[1]["false_alarms"]
    assert alarms["most"]["fused"] <= alarms["interval"][1]
    assert finished[1]["caught"] == 3


def test_fingerprints_catch_what_is_computed_and_say_nothing_of_what_is_only_drawn(rows):
    int4, seed = rows["weights/int4-g128"], rows["seed/wrong"]
    assert needed(int4, "fingerprints") <= 4
    assert int4["winning"] == "fingerprints"
    assert needed(int4, "fused") < needed(int4, "tokens_alone")
    assert seed["curve"]["fingerprints"] is None
    assert not seed["has_states"]
    assert seed["winning"] == "tokens"
    # A log with fingerprints carries them whatever the provider does: they cost a wrong seed a little.
    assert needed(seed, "fused") >= needed(seed, "tokens_alone")
    assert max(rows["honest"]["curve"]["fingerprints"]) <= 0.02


def test_no_test_of_tokens_is_more_powerful_than_the_share_of_logs_that_differ(rows):
    for name in ASKED:
        curve = rows[name]["curve"]
        for differs, power in zip(curve["differs"], curve["tokens_alone"], strict=True):
            assert power <= differs + 0.01 + 0.02
        assert (
            rows[name]["floor"] is None
            or needed(rows[name], "tokens_alone") is None
            or (rows[name]["floor"] <= needed(rows[name], "tokens_alone"))
        )


def test_spans_of_a_row_that_begins_late_lie_where_it_acts(rows):
    found = rows["partly/int4-from-token-64"]["localisation"]
    assert found["flagged"] > 0
    assert found["hits"] > found["acted"]
    assert 0.0 < found["iou"] <= 1.0
    assert "localisation" not in rows["seed/wrong"]
    # A budget above every length drops nothing: its attention rounds in another order, which is no act.
    assert rows["kv/h2o-1000"]["localisation"]["acted"] < 0.05


def test_an_interrupted_run_goes_on_where_it_was(finished, monkeypatch):
    path, found = finished
    lines = path.read_bytes().splitlines(keepends=True)
    cut = next(n for n, line in enumerate(lines) if b'"part": "partly/int4-from-token-64"' in line)
    path.write_bytes(b"".join(lines[:cut]) + lines[cut][:40])  # killed within that line
    measured = []
    from auditor.matrix.run import Run

    real = Run._figures
    monkeypatch.setattr(Run, "_figures", lambda self, cause: measured.append(cause.name) or real(self, cause))
    again = run(*ASKED, "--out", str(path), "--format", "json")
    assert measured == ["partly/int4-from-token-64"]
    assert json.loads(again.stdout) == found


def test_other_settings_and_other_code_are_not_taken_for_the_same(finished):
    settings = memory.Settings("sha256:0", "a", "b", 16, 0.01, memory.code_version())
    ids = {settings.id, replace(settings, alpha=0.2).id, replace(settings, code="another").id}
    assert len(ids) == 3
    assert memory.code_version() != memory.naming_version()
    path, _ = finished
    assert memory.Memory(path, settings).find("honest") is None


def test_the_code_s_version_is_of_the_program_wherever_it_runs(monkeypatch, tmp_path):
    known = memory.code_version()
    (tmp_path / "own.py").write_text("")
    monkeypatch.chdir(tmp_path)
    memory.code_version.cache_clear()
    assert memory.code_version() == known


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


@pytest.mark.parametrize("way", ["published", "one_look", "same_promise"])
def test_thresholds_keep_their_rate_on_the_requests_they_are_compared_on(finished, way):
    """The worst of all sizes, and so asked with the confidence of all of them together."""
    _, found = finished
    alarms = found["false_alarms"]
    low, _ = bound(alarms["most"][way], alarms["audits"], confidence=1 - 0.05 / len(SIZES))
    assert low <= found["alpha"]


def test_one_look_needs_no_more_tokens_than_the_promise_to_hold_at_any(rows):
    for name in ASKED:
        assert all(
            once >= promised
            for once, promised in zip(
                rows[name]["curve"]["one_look"], rows[name]["curve"]["tokens_alone"], strict=True
            )
        )


def test_with_the_published_promise_tokens_and_fingerprints_never_need_more_than_it(rows):
    for name in ASKED:
        own, theirs = needed(rows[name], "same_promise"), needed(rows[name], "published")
        assert theirs is None or (own is not None and own <= theirs)
    seen = needed(rows["weights/int4-g128"], "same_promise")
    assert seen < needed(rows["weights/int4-g128"], "one_look")  # states that differ are seen beside tokens


def test_tables_say_so_where_no_sample_was_enough(finished):
    _, found = finished
    most = f"> {found['rows'][3]['curve']['tokens'][-1]:,}"
    assert most in markdown(found)
    columns, *lines = comma_separated(found).splitlines()
    control = dict(zip(columns.split(","), lines[3].split(","), strict=False))
    assert control["name"] == "kv/h2o-1000"
    assert control["fused_99"] == control["winning"] == ""


def test_the_page_needs_nothing_else_and_says_in_words_what_it_colours(finished):
    from auditor.matrix.page import render_matrix

    _, found = finished
    page = render_matrix(found)
    assert not re.search(r"<script|https?://|url\(|<link", page)
    assert "prefers-color-scheme:dark" in page
    assert page.count("<svg") == page.count('role="img"') == 4  # a figure a family
    assert page.count("<caption>") == page.count("<table")
    cells = re.findall(r'style="--p:(\d+)%">([\d.]+)</td>', page)
    assert len(cells) >= 3 * 5 * len(SIZES)
    assert all(share == said for share, said in cells[: len(SIZES)])


def test_tokens_needed_are_those_from_which_power_stays():
    none = (0.0, 0.0, 0.0, 0.0)
    curve = Curve((10, 20, 30, 40), none, None, (0.95, 0.5, 0.99, 1.0), none, none, none, none)
    assert (curve.needed(0.9), curve.needed(0.99), curve.needed(0.9, "published")) == (30, 30, None)
    assert curve.needed(0.9, "fingerprints") is None
    low, high = bound(0.0)
    assert low == 0.0 < high < 0.01
    most = [requests * min(tokens, 200) for requests, tokens in SIZES]
    assert most == sorted(most)
