"""Schedules and disputes over HTTP and from the command line."""

from __future__ import annotations

import json

import pytest

from tests.api.conftest import LINE, refused

POLICY = 'schema = "auditor.policy/v1"\nname = "strict"\nversion = "1"\n'
NEW = {"provider": "acme", "cron": "0 6 * * 1", "zone": "Europe/Berlin", "policy": POLICY}
SAID = {"by": "Jo, acme", "statement": "it was declared"}


def make(party, path, value, key="k1"):
    return party.call("POST", path, json=value, headers={"Idempotency-Key": key})


def test_a_schedule_is_added_once_looked_at_paused_resumed_run_and_removed(world):
    made = make(world.alice, "/v1/schedules", NEW)
    assert made.status_code == 201, made.text
    value = made.json()
    assert make(world.alice, "/v1/schedules", NEW).json()["id"] == value["id"], "the same key does it once"
    path = f"/v1/schedules/{value['id']}"
    assert made.headers["Location"] == path
    assert (value["state"], value["policy"]["alpha"], value["last"]) == ("active", 0.001, None)
    assert [one["id"] for one in world.alice.get("/v1/schedules").json()["items"]] == [value["id"]]
    assert world.alice.call("POST", f"{path}/pause").json()["next"] is None
    assert world.alice.call("POST", f"{path}/resume").json()["next"] == value["next"]
    ran = world.alice.call("POST", f"{path}/run")
    assert ran.status_code == 202
    refused(world.alice.call("POST", f"{path}/run"), 409, "conflict")
    (period,) = world.alice.get(f"{path}/periods").json()["items"]
    assert (period["id"], period["state"]) == (ran.json()["id"], "queued")
    assert world.alice.call("DELETE", path).status_code == 204
    assert world.alice.get("/v1/schedules").json()["items"] == []
    assert world.alice.get(path).json()["state"] == "removed"
    refused(world.alice.call("POST", f"{path}/pause"), 409, "conflict")


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"cron": "0 6 * *"}, "option-invalid", "five fields"),
        ({"zone": "Mars/Olympus"}, "option-invalid", "time zone"),
        ({"policy": POLICY + "alpha = 2.0\n"}, "policy-invalid", "alpha"),
        ({"policy": "nonsense"}, "policy-invalid", "TOML"),
        ({"provider": ""}, "request-invalid", ""),
        ({"surprise": 1}, "request-invalid", ""),
    ],
)
def test_what_is_no_schedule_is_refused(world, change, code, said):
    assert said in refused(make(world.alice, "/v1/schedules", NEW | change), 422, code)["detail"]


def test_another_tenants_schedules_and_disputes_are_not_there(world):
    schedule = make(world.alice, "/v1/schedules", NEW).json()["id"]
    audit = world.alice.submit().json()["id"]
    world.work()
    dispute = make(world.alice, "/v1/disputes", SAID | {"audit": audit}, "k2").json()["id"]
    for path in (f"/v1/schedules/{schedule}", f"/v1/schedules/{schedule}/periods", f"/v1/disputes/{dispute}"):
        refused(world.bob.get(path), 404, "not-found")
    for path in (f"/v1/schedules/{schedule}/pause", f"/v1/schedules/{schedule}/run"):
        refused(world.bob.call("POST", path), 404, "not-found")
    refused(world.bob.call("DELETE", f"/v1/schedules/{schedule}"), 404, "not-found")
    refused(make(world.bob, "/v1/disputes", SAID | {"audit": audit}), 404, "not-found")
    refused(world.bob.call("POST", f"/v1/disputes/{dispute}/answer", json=SAID), 404, "not-found")
    end = SAID | {"outcome": "upheld"}
    refused(world.bob.call("POST", f"/v1/disputes/{dispute}/resolve", json=end), 404, "not-found")
    assert (
        world.bob.get("/v1/schedules").json()["items"] == world.bob.get("/v1/disputes").json()["items"] == []
    )


def test_a_dispute_goes_from_filing_to_resolution(world):
    audit = world.alice.submit().json()["id"]
    refused(make(world.alice, "/v1/disputes", SAID | {"audit": audit}), 409, "not-finished")
    world.work()
    filed = make(world.alice, "/v1/disputes", SAID | {"audit": audit, "evidence": [f"{audit}/1"]}).json()
    assert (filed["state"], filed["statements"][0]["evidence"]) == ("filed", [f"{audit}/1"])
    path = f"/v1/disputes/{filed['id']}"
    answered = world.alice.call("POST", f"{path}/answer", json={"by": "us", "statement": "it was not"})
    assert answered.json()["state"] == "answered"
    ended = world.alice.call("POST", f"{path}/resolve", json=SAID | {"outcome": "rejected"}).json()
    assert (ended["state"], ended["outcome"], len(ended["statements"])) == ("resolved", "rejected", 3)
    refused(world.alice.call("POST", f"{path}/answer", json=SAID), 409, "conflict")
    refused(
        world.alice.call("POST", f"{path}/resolve", json=SAID | {"outcome": "maybe"}), 422, "request-invalid"
    )


def test_a_log_is_handed_in_without_an_order_and_the_same_bytes_are_one_log(world):
    kind = {"Content-Type": "application/jsonl"}
    first = world.alice.call("POST", "/v1/logs?name=week", content=LINE % 1, headers=kind)
    assert first.status_code == 201, first.text
    assert first.json()["name"] == "week"
    again = world.alice.call("POST", "/v1/logs", content=LINE % 1, headers=kind)
    assert again.json()["id"] == first.json()["id"]
    assert world.alice.get("/v1/audits").json()["items"] == []
    refused(world.alice.call("POST", "/v1/logs", content=b"", headers=kind), 422, "request-invalid")
    plain = {"Content-Type": "text/plain"}
    refused(world.alice.call("POST", "/v1/logs", content=LINE % 2, headers=plain), 415, "media-type")


def test_periods_show_as_json(world):
    made = make(world.alice, "/v1/schedules", NEW).json()
    world.alice.call("POST", f"/v1/schedules/{made['id']}/run")
    shown = world.alice.get(f"/v1/schedules/{made['id']}").json()["last"]
    assert json.dumps(shown)
    assert (shown["verdict"], shown["reasons"], shown["causes"]) == (None, [], [])
