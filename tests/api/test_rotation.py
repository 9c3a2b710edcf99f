"""The drill of docs/operations: keys are exchanged while work goes on, and nothing is lost."""

from __future__ import annotations

from tests.api.conftest import Party, refused


def test_an_api_key_is_rotated_without_losing_work(world):
    waiting = world.alice.submit().json()["id"]
    scopes = ["audits:read", "audits:write", "keys"]
    made = world.alice.call("POST", "/v1/keys", json={"name": "next", "scopes": scopes, "days": 90})
    new = Party(world.client, world.alice.tenant, made.json()["key"])
    assert new.submit().status_code == 202
    listed = new.get("/v1/keys").json()["items"]
    old = next(key["id"] for key in listed if world.alice.key.startswith(key["id"]))
    assert len([key for key in listed if key["revoked"] is None]) == 2
    assert new.call("DELETE", f"/v1/keys/{old}").status_code == 200
    refused(world.alice.get("/v1/audits"), 401, "unauthenticated")
    world.work()
    assert new.get(f"/v1/audits/{waiting}").json()["state"] == "done"
    assert "c2VjcmV0" not in str(new.get("/v1/keys").json())


def test_a_key_that_has_just_submitted_submits_nothing_once_it_is_revoked(world):
    made = world.alice.call(
        "POST",
        "/v1/keys",
        json={"name": "brief", "scopes": ["audits:write"], "days": 1},
        headers={"Idempotency-Key": "brief"},
    ).json()
    world.alice.key, keeper = made["key"], world.alice.key
    assert world.alice.submit(key="one").status_code == 202
    brief, world.alice.key = world.alice.key, keeper
    assert world.alice.call("DELETE", f"/v1/keys/{made['id']}").status_code == 200
    world.alice.key = brief
    refused(world.alice.submit(key="two"), 401, "unauthenticated")
    refused(world.alice.submit(key="one"), 401, "unauthenticated")
