"""Erasing a log erases the hidden tokens that were opened of its responses; what was proved stays proved."""

from __future__ import annotations

import hashlib
import json

import pytest
from sqlalchemy import text

from auditor.merkle.policy import parse_policy
from auditor.service import erasure
from auditor.service.invariants import check_all
from auditor.trace_format import trace_to_json
from auditor.transparency_log import verify_log
from tests.api.conftest import refused
from tests.api.test_challenges import Round, committed
from tests.api.test_pages import Browser


@pytest.fixture
def ring(world, tmp_path):
    return Round(world, tmp_path)


def log_of(*traces):
    return b"".join(json.dumps(trace_to_json(trace)).encode() + b"\n" for trace in traces)


def everything_in(ring):
    """All bytes that the database shows to anybody who may read it."""
    with ring.world.service.store.transaction() as connection:
        return b"".join(bytes(row[0]) for row in connection.execute(text("SELECT body FROM opening")))


def test_what_was_opened_goes_with_its_log_and_the_result_stays_provable(ring):
    (mine, _), (other, kept) = committed(), committed("req-2", shift=3)
    first, second = ring.draw(ring.commit(mine)).json(), ring.draw(ring.commit(other), "second").json()
    opening = ring.opening(first)
    assert ring.open(first, opening).json()["state"] == "held"
    assert ring.open(second, ring.opening(second, kept)).json()["state"] == "held"
    before = ring.alice.get(f"/v1/challenges/{first['id']}/result").content
    ring.place()
    log = ring.alice.submit(log_of(mine)).json()["log"]["id"]
    assert ring.alice.call("DELETE", f"/v1/logs/{log}").status_code == 200

    refused(ring.alice.get(f"/v1/challenges/{first['id']}/opening"), 410, "evidence-erased")
    assert ring.alice.get(f"/v1/challenges/{second['id']}/opening").status_code == 200, "another response's"
    assert everything_in(ring).count(b"token-opening") == 1
    seen = ring.alice.get(f"/v1/challenges/{first['id']}").json()
    assert (seen["state"], seen["erased"] is None) == ("held", False)
    result = ring.alice.get(f"/v1/challenges/{first['id']}/result")
    assert result.content == before
    told = json.dumps(opening, sort_keys=True, separators=(",", ":")).encode()
    assert result.json()["opening_digest"] == f"sha256:{hashlib.sha256(told).hexdigest()}"
    ring.place()
    policy = parse_policy(f"log {ring.log.signer.public.vkey}\nquorum none\n".encode())
    entry = ring.alice.get(f"/v1/challenges/{first['id']}/entries/result").json()
    assert entry["result"] == "sha256:" + hashlib.sha256(before).hexdigest()
    assert verify_log(ring.log.folder, policy).size > 0
    with ring.world.service.store.transaction() as connection:
        assert not [f.invariant.name for f in check_all(connection, ring.world.service.blobs) if f.broken_by]
    # The same again is the same as once, and does not bring it back.
    assert ring.open(first, opening).json()["state"] == "held"
    refused(ring.alice.get(f"/v1/challenges/{first['id']}/opening"), 410, "evidence-erased")


def test_what_is_opened_after_its_log_was_erased_counts_and_is_not_kept(ring):
    mine, _ = committed()
    challenge = ring.draw(ring.commit(mine)).json()
    log = ring.alice.submit(log_of(mine)).json()["log"]["id"]
    ring.alice.call("DELETE", f"/v1/logs/{log}")
    assert ring.open(challenge, ring.opening(challenge)).json()["state"] == "held"
    refused(ring.alice.get(f"/v1/challenges/{challenge['id']}/opening"), 410, "evidence-erased")
    assert everything_in(ring) == b""


def test_another_tenants_erasure_and_another_response_of_that_name_erase_nothing(ring):
    (mine, _), (namesake, _) = committed(), committed(shift=5)
    challenge = ring.draw(ring.commit(mine)).json()
    ring.open(challenge, ring.opening(challenge))
    theirs = ring.world.bob.submit(log_of(mine)).json()["log"]["id"]
    assert ring.world.bob.call("DELETE", f"/v1/logs/{theirs}").status_code == 200
    log = ring.alice.submit(log_of(namesake)).json()["log"]["id"]
    ring.alice.call("DELETE", f"/v1/logs/{log}")
    assert ring.alice.get(f"/v1/challenges/{challenge['id']}/opening").status_code == 200


def test_a_sweep_finishes_what_a_crash_left_of_it(ring):
    mine, _ = committed()
    challenge = ring.draw(ring.commit(mine)).json()
    ring.open(challenge, ring.opening(challenge))
    log = ring.alice.submit(log_of(mine)).json()["log"]
    with ring.world.service.store.transaction(writes=True) as connection:
        connection.execute(text("UPDATE trace_log SET erased = 1 WHERE id = :id"), {"id": log["id"]})
    erasure.sweep(ring.world.service.store, ring.world.service.blobs)
    refused(ring.alice.get(f"/v1/challenges/{challenge['id']}/opening"), 410, "evidence-erased")
    assert not ring.world.service.blobs.holds(log["digest"])


def test_the_page_of_a_challenge_says_that_what_was_opened_is_erased(ring):
    browser = Browser(ring.world)
    browser.sign_in(ring.alice.key)
    mine, _ = committed()
    challenge = ring.draw(ring.commit(mine)).json()
    ring.open(challenge, ring.opening(challenge))
    log = ring.alice.submit(log_of(mine)).json()["log"]["id"]
    ring.alice.call("DELETE", f"/v1/logs/{log}")
    page = browser.get(f"/challenges/{challenge['id']}?hidden=shown")
    assert page.status_code == 200
    assert "and with it whatever was opened" in page.text
