"""A conviction's reproduction: the accused runs one command on a few requests and sees the same."""

from __future__ import annotations

import json
import shlex

import pytest
from click.testing import CliRunner

from auditor.commands import cli
from auditor.commands.options import demo_model
from auditor.reports.packing import make_pack
from auditor.reports.packs import read_pack
from tests.auditor.reports.recorded_rows import kept_logs, key_of, load, signed_log


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The reproductions in the second week's pack, by provider, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("disputes")
    found = load(f"sqlite:///{folder / 'rows.sqlite3'}")
    document = json.loads(found.both_weeks()[1])
    log, _ = signed_log(found.store, folder / "log")
    pack = make_pack(
        found.store, found.tenant, document["id"], log, key_of("example.com/r"), kept_logs(folder / "blobs")
    )
    found.store.close()
    members = read_pack(pack)
    places = {}
    for provider in document["providers"]:
        for audit in provider["audits"]:
            start = f"disputes/{audit['id']}/"
            for name in members:
                if name.startswith(start):
                    place = places.setdefault(provider["name"], folder / provider["name"])
                    place.mkdir(exist_ok=True)
                    (place / name.removeprefix(start)).write_bytes(members[name])
    return places


def test_every_conviction_has_one_and_nothing_else_does(bundles):
    assert set(bundles) == {"cheapo", "hush"}
    for place in bundles.values():
        names = {path.name for path in place.iterdir()}
        assert names == {"README.md", "profile.json", "reproduction.json", "traces.jsonl"}


@pytest.mark.parametrize("provider", ["cheapo", "hush"])
def test_the_one_command_convicts_alone(bundles, provider, monkeypatch):
    place = bundles[provider]
    (command,) = [
        line.strip() for line in (place / "README.md").read_text().splitlines() if "audit verify" in line
    ]
    monkeypatch.chdir(place)
    words = [str(demo_model()) if word == "DIR" else word for word in shlex.split(command)[1:]]
    done = CliRunner().invoke(cli, [*words, "--format", "json"])
    assert done.exit_code == 1, done.output
    result = json.loads(done.stdout)
    said = json.loads((place / "reproduction.json").read_text())
    assert result["verdict"] == said["verdict_alone"] == "inconsistent"
    assert result["model"]["digest"] == said["model"]["digest"]
    assert {t["id"] for t in result["traces"]} == {r["id"] for r in said["requests"]}
    assert len(said["requests"]) <= 4, "the strongest requests, as many as it takes"


def test_expected_and_claimed_tokens_are_listed_with_their_margins(bundles):
    for place in bundles.values():
        said = json.loads((place / "reproduction.json").read_text())
        lines = {t["id"]: t for t in map(json.loads, (place / "traces.jsonl").read_text().splitlines())}
        for request in said["requests"]:
            assert request["seed"] == str(lines[request["id"]]["seed"])
            assert request["noise"] == lines[request["id"]]["noise"]
            assert request["mismatches"] == len(request["misses"]) > 0
            for miss in request["misses"]:
                assert miss["claimed"] == lines[request["id"]]["output_token_ids"][miss["position"]]
                assert miss["expected"] != miss["claimed"]
                assert miss["margin"] > 0
