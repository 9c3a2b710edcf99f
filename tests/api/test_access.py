"""Keys, scopes, and tenants that never see each other's things, on every endpoint there is."""

from __future__ import annotations

import re

import pytest

from auditor.service import tenants
from tests.api import test_providers
from tests.api.conftest import Party, refused

OPEN = {"/livez", "/readyz", "/problems/{code}", "/v1/openapi.json", "/log/checkpoint", "/log/tile/{path}"}
SCOPE = {
    ("GET", "/metrics"): "operator",
    ("GET", "/v1/tenants"): "operator",
    ("POST", "/v1/tenants"): "operator",
    ("POST", "/v1/tenants/{tenant_id}/keys"): "operator",
    ("GET", "/v1/keys"): "keys",
    ("POST", "/v1/keys"): "keys",
    ("DELETE", "/v1/keys/{key_id}"): "keys",
    ("GET", "/v1/uploads/{upload_id}"): "audits:write",
    ("PUT", "/v1/uploads/{upload_id}/parts/{number}"): "audits:write",
    ("POST", "/v1/audits"): "audits:write",
    ("POST", "/v1/audits/{audit_id}/cancel"): "audits:write",
    ("POST", "/v1/providers"): "trust",
    ("PATCH", "/v1/providers/{provider_id}"): "trust",
    ("POST", "/v1/models"): "trust",
    ("PUT", "/v1/profile-keys"): "trust",
    ("POST", "/v1/profiles/{profile_id}/revoke"): "trust",
    ("POST", "/v1/plans"): "audits:read",
}


# What a request has to hold before anybody looks whose the thing is.
BODIES = {
    "/v1/providers/{provider_id}": {},
    "/v1/profiles/{profile_id}/revoke": {"reason": "x"},
    "/v1/challenges/{challenge_id}/openings": {},
}


def endpoints(world):
    schema = world.client.get("/v1/openapi.json").json()
    return [
        (method.upper(), path)
        for path, methods in schema["paths"].items()
        for method in methods
        if path not in OPEN
    ]


def filled(path, **ids):
    return re.sub(r"\{(\w+)\}", lambda m: str(ids.get(m[1], "0")), path)


def test_without_a_right_key_nothing_but_health_answers(world):
    expired = world.party("expired")
    with world.service.store.transaction(writes=True) as connection:
        _, old = tenants.create_key(connection, expired.tenant.id, "old", ["keys"], days=1e-9)
        key, gone = tenants.create_key(connection, expired.tenant.id, "gone", ["keys"], days=1)
        tenants.revoke_key(connection, expired.tenant.id, key.id)
    found = endpoints(world)
    assert len(found) >= 12
    wrong = world.alice.key[:-1] + ("A" if world.alice.key[-1] != "A" else "B")
    for method, path in found:
        for key in (None, "x", wrong, old, gone):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            answer = world.client.request(method, filled(path), headers=headers)
            refused(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"


def test_every_endpoint_asks_for_its_scope(world):
    parties = {scope: world.party(f"only {scope}", [scope]) for scope in tenants.SCOPES}
    for method, path in endpoints(world):
        needed = SCOPE.get((method, path), "audits:read" if method == "GET" else "audits:write")
        for scope, party in parties.items():
            answer = party.call(method, filled(path), headers={"Idempotency-Key": "k"})
            if scope == needed:
                assert answer.status_code not in (401, 403), (method, path, scope)
            else:
                refused(answer, 403, "scope-missing")


def test_another_tenants_things_are_not_there_on_any_endpoint(world):
    """The same answer as for an id that nobody ever had, but for the id; and no list shows them."""
    answer = world.alice.submit()
    assert answer.status_code == 202, answer.text
    audit = answer.json()
    world.work()
    key = world.alice.get("/v1/keys").json()["items"][0]
    order = {"name": "x", "digest": "sha256:" + "0" * 64, "bytes": 1}
    upload = world.alice.call("POST", "/v1/uploads", json=order, headers={"Idempotency-Key": "u"}).json()
    provider = test_providers.provider(world.alice)["id"]
    model = test_providers.made(world.alice, "/v1/models", test_providers.MODEL)["id"]
    profile = test_providers.trusted_profile(world.alice)
    hers = {"audit_id": audit["id"], "key_id": key["id"], "upload_id": upload["id"], "provider_id": provider}
    hers |= {"model_id": model, "profile_id": profile}
    checked = 0
    for method, path in endpoints(world):
        if "{" not in path or "tenant_id" in path:
            continue
        fixed = {"number": 1, "kind": "result" if "challenge" in path else "verdict"}
        headers = {"Idempotency-Key": "k", "If-Match": '"1"'}
        sent = {"headers": headers} | ({"json": BODIES[path]} if path in BODIES else {})
        theirs = world.bob.call(method, filled(path, **hers, **fixed), **sent)
        nobodys = world.bob.call(method, filled(path, **dict.fromkeys(hers, "x_0"), **fixed), **sent)
        assert (theirs.status_code, theirs.json()) == (404, nobodys.json()), path
        checked += 1
    assert checked >= 6
    assert world.bob.get("/v1/audits").json()["items"] == []
    assert [k["id"] for k in world.bob.get("/v1/keys").json()["items"]] != [key["id"]]
    assert world.alice.get(f"/v1/audits/{audit['id']}").json()["state"] == "done"
    assert world.alice.get("/v1/keys").json()["items"][0]["revoked"] is None


def test_keys_are_shown_once_rotated_and_revoked(world):
    body = {"name": "ci", "scopes": ["audits:read"], "days": 7}
    made = world.alice.call("POST", "/v1/keys", json=body)
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    fresh = Party(world.client, world.alice.tenant, made.json()["key"])
    assert fresh.get("/v1/audits").status_code == 200
    listed = world.alice.get("/v1/keys")
    secret = made.json()["key"].split(".")[1]
    assert secret not in listed.text
    assert made.json()["id"] in [key["id"] for key in listed.json()["items"]]
    for _ in range(2):
        assert world.alice.call("DELETE", f"/v1/keys/{made.json()['id']}").json()["revoked"]
    refused(fresh.get("/v1/audits"), 401, "unauthenticated")


def test_a_key_gives_no_more_than_it_has(world):
    keeper = world.party("keeper", ["keys"])
    body = {"name": "more", "scopes": ["keys", "operator"]}
    refused(keeper.call("POST", "/v1/keys", json=body), 403, "scope-missing")
    refused(keeper.call("POST", "/v1/keys", json=body | {"scopes": ["root"]}), 422, "request-invalid")
    refused(keeper.call("POST", "/v1/keys", json=body | {"days": 9999}), 422, "request-invalid")


def test_an_operator_makes_tenants_with_keys_of_their_own(world):
    made = world.alice.call("POST", "/v1/tenants", json={"name": "carol"})
    assert made.status_code == 201
    refused(world.alice.call("POST", "/v1/tenants", json={"name": "carol"}), 409, "conflict")
    path = f"/v1/tenants/{made.json()['id']}/keys"
    key = world.alice.call("POST", path, json={"name": "k", "scopes": ["audits:read"]}).json()["key"]
    carol = Party(world.client, None, key)
    assert carol.get("/v1/audits").json()["items"] == []
    names = [tenant["name"] for tenant in world.alice.get("/v1/tenants").json()["items"]]
    assert names == ["alice", "bob", "carol"]
    nobody = world.alice.call("POST", "/v1/tenants/ten_0/keys", json={"name": "k", "scopes": ["keys"]})
    refused(nobody, 404, "not-found")


@pytest.mark.parametrize("text", ["ak_1.\ud800", "ak_\0.x", "é.é"])
def test_odd_texts_are_no_keys(world, text):
    from auditor.service.errors import UnauthenticatedError

    with world.service.store.transaction() as connection, pytest.raises(UnauthenticatedError):
        tenants.authenticate(connection, text)
