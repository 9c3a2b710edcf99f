"""Erasure and retention over HTTP."""

from __future__ import annotations


def test_a_log_is_erased_and_its_audits_stay(world):
    audit = world.alice.submit().json()
    world.work()
    log = audit["log"]
    assert world.alice.get(f"/v1/logs/{log['id']}").json()["erased"] is None
    erased = world.alice.call("DELETE", f"/v1/logs/{log['id']}").json()
    assert erased["erased"] is not None
    assert not world.service.blobs.holds(log["digest"])
    seen = world.alice.get(f"/v1/audits/{audit['id']}").json()
    assert (seen["verdict"], seen["log"]["erased"]) == ("inconsistent", erased["erased"])
    assert world.alice.get(f"/v1/audits/{audit['id']}/verdict").status_code == 200


def test_an_audit_of_an_erased_log_is_refused_as_gone(world):
    log = world.alice.submit().json()["log"]["id"]
    world.alice.call("DELETE", f"/v1/logs/{log}")
    headers = {"Idempotency-Key": "again"}
    refused = world.alice.call("POST", "/v1/audits", json={"log": log}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (410, "evidence-erased")
    assert world.client.get("/problems/evidence-erased").status_code == 200


def test_other_tenants_logs_are_not_found(world):
    log = world.alice.submit().json()["log"]["id"]
    for method in ("GET", "DELETE"):
        assert world.bob.call(method, f"/v1/logs/{log}").status_code == 404
    assert world.service.blobs.holds(world.alice.get(f"/v1/logs/{log}").json()["digest"])


def test_an_operator_sets_how_long_logs_are_kept(world):
    tenant = world.alice.tenant.id
    set_to = world.alice.call("PUT", f"/v1/tenants/{tenant}/retention", json={"retention_days": 30})
    assert set_to.json()["retention_days"] == 30
    made = world.alice.call("POST", "/v1/tenants", json={"name": "new", "retention_days": 7})
    assert made.json()["retention_days"] == 7
    reader = world.party("reader", ("audits:read",))
    assert (
        reader.call("PUT", f"/v1/tenants/{tenant}/retention", json={"retention_days": 1}).status_code == 403
    )
    off = world.alice.call("PUT", f"/v1/tenants/{tenant}/retention", json={"retention_days": 0})
    assert off.status_code == 422
