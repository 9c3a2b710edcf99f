"""`--service` of `audit commit`, `challenge`, `open` and `check`, and `audit register`, against the application."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from auditor.commands import cli, remote_commitments
from auditor.key_files import write_key
from auditor.profile import profile_bytes
from auditor.profile_trust import sign_profile
from auditor.service.client import Client, ServiceRefusedError
from auditor.trace_files import write_traces
from tests.api.conftest import Party
from tests.api.test_challenges import Round, committed, heads_of, posted
from tests.api.test_providers import ACME, AUDITOR, demo_profile, trust


class Inside(Client):
    """The client, spoken to the application in this process."""

    def __init__(self, party):
        self.url, self._signer = "http://testserver", None
        headers = {"Authorization": f"Bearer {party.key}"}
        self._http = TestClient(party.client.app, headers=headers, raise_server_exceptions=False)


@pytest.fixture
def ring(world, tmp_path):
    return Round(world, tmp_path)


@pytest.fixture
def audit(ring, monkeypatch):
    """Run a command with somebody's key."""

    def run(party, *arguments):
        monkeypatch.setattr(remote_commitments, "_client", lambda: Inside(party))
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return run


def test_check_says_what_is_open_what_held_and_what_was_withheld(ring, audit, tmp_path):
    log = tmp_path / "committed.jsonl"
    write_traces(log, [committed("req-1")[0], committed("req-2")[0]])
    unknown = audit(ring.alice, "check", log, "--service")
    assert "nobody posted heads of response req-1" in str(unknown.exception)
    for request in ("req-1", "req-2"):
        posted(ring.acme, heads_of(committed(request)[0]))
    assert audit(ring.alice, "check", log, "--service").exit_code == 3, "nothing was asked"
    ring.place()
    asked = audit(ring.alice, "challenge", log, "--service", "--blocks", 2, "--out", tmp_path / "asked")
    assert asked.exit_code == 0, asked.stderr
    assert len((tmp_path / "asked").read_text().splitlines()) == 2
    found = ring.alice.get("/v1/challenges").json()["items"]
    assert audit(ring.alice, "check", log, "--service").exit_code == 3
    for challenge in found:
        ring.open(challenge, ring.opening(challenge, committed(challenge["request"])[1]))
    done = audit(ring.alice, "check", log, "--service")
    assert (done.exit_code, done.stdout.count("held")) == (0, 2)
    late = ring.draw({"id": found[0]["commitment"]}, "late").json()
    ring.expire(late, 61)
    ring.settle()
    held = audit(ring.alice, "check", log, "--service", "--format", "json")
    assert held.exit_code == 1
    assert sorted(one["state"] for one in json.loads(held.stdout)) == ["held", "held", "withheld"]


def test_a_provider_is_registered_with_a_key_that_commits_and_opens(ring, audit, tmp_path):
    other = ring.world.party("carol")
    key = audit(other, "register", "acme", "--vkey", ACME.public.vkey)
    assert key.exit_code == 0, key.stderr
    assert len(list(Inside(other).listed("models"))) == 1
    carols = Party(other.client, None, key.stdout.strip())
    assert posted(carols, heads_of(committed()[0])).status_code == 201
    twice = audit(other, "register", "acme")
    assert isinstance(twice.exception, ServiceRefusedError)
    assert twice.exception.code == "conflict"
    assert audit(other, "register", "second").exit_code == 0, "the model is there already"


def test_what_goes_to_the_service_and_what_to_a_file_is_said_once(ring, audit, tmp_path):
    write_key(tmp_path / "key", ACME, None)
    for arguments in (("open", "--kept", "k"), ("open", "asked", "--service", "--kept", "k")):
        refusal = audit(ring.acme, *arguments)
        assert "one of CHALLENGES and --service" in str(refusal.exception)
    refusal = audit(ring.alice, "check", "log", "--challenge", "c")
    assert "needs --opening" in str(refusal.exception)


def test_profiles_plans_and_spans_are_a_call_each(ring):
    client = Inside(ring.alice)
    trust(ring.alice, AUDITOR)
    profile = client.hand_in_profile(profile_bytes(sign_profile(demo_profile(), AUDITOR)))
    assert list(client.listed("profiles")) == [profile] == [client.look("profiles", profile["id"])]
    assert client.revoke_profile(profile["id"], "quantized")["reason"] == "quantized"
    assert client.plan({"rates": [0.004, 0.02]})["schema"] == "auditor.plan/v1"
    audit_id = ring.alice.submit().json()["id"]
    ring.world.work()
    assert [trace["id"] for trace in client.spans(audit_id)] == ["b"]
