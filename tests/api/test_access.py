"""Keys, scopes, and tenants that never see each other's things, on every endpoint there is."""

from __future__ import annotations

import json
import re
import time

import pytest

from auditor.reports import Policy, make_report
from auditor.service import tenants
from tests.api import test_challenges, test_providers
from tests.api.conftest import Party, refused

OPEN = {"/livez", "/readyz", "/problems/{code}", "/v1/openapi.json"}
OPEN |= {"/log/checkpoint", "/log/tile/{path}", "/log/report-key"}
POLICY = 'schema = "auditor.policy/v1"\nname = "strict"\nversion = "1"\n'
SAID = {"by": "Jo", "statement": "it was declared"}
SCOPE = {
    ("GET", "/metrics"): "operator",
    ("GET", "/v1/tenants"): "operator",
    ("POST", "/v1/tenants"): "operator",
    ("POST", "/v1/tenants/{tenant_id}/keys"): "operator",
    ("PUT", "/v1/tenants/{tenant_id}/retention"): "operator",
    ("DELETE", "/v1/logs/{log_id}"): "audits:write",
    ("GET", "/v1/keys"): "keys",
    ("POST", "/v1/keys"): "keys",
    ("DELETE", "/v1/keys/{key_id}"): "keys",
    ("GET", "/v1/webhooks"): "webhooks",
    ("POST", "/v1/webhooks"): "webhooks",
    ("GET", "/v1/webhooks/{webhook_id}"): "webhooks",
    ("DELETE", "/v1/webhooks/{webhook_id}"): "webhooks",
    ("GET", "/v1/webhooks/{webhook_id}/deliveries"): "webhooks",
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
    ("POST", "/v1/logs"): "audits:write",
    ("POST", "/v1/schedules"): "audits:write",
    ("DELETE", "/v1/schedules/{schedule_id}"): "audits:write",
    ("POST", "/v1/schedules/{schedule_id}/pause"): "audits:write",
    ("POST", "/v1/schedules/{schedule_id}/resume"): "audits:write",
    ("POST", "/v1/schedules/{schedule_id}/run"): "audits:write",
    ("POST", "/v1/disputes"): "audits:write",
    ("POST", "/v1/disputes/{dispute_id}/answer"): "disputes",
    ("POST", "/v1/disputes/{dispute_id}/resolve"): "disputes",
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


def belongings(world):
    """One of everything that alice can have, by the name that paths give it; and what else names something of hers."""
    answer = world.alice.submit()
    assert answer.status_code == 202, answer.text
    audit = answer.json()
    order = {"url": "https://example.com/hook"}
    hook = world.alice.call("POST", "/v1/webhooks", json=order, headers={"Idempotency-Key": "w"}).json()
    world.work()
    key = world.alice.get("/v1/keys").json()["items"][0]
    order = {"name": "x", "digest": "sha256:" + "0" * 64, "bytes": 1}
    upload = world.alice.call("POST", "/v1/uploads", json=order, headers={"Idempotency-Key": "u"}).json()
    (delivery,) = world.alice.get(f"/v1/webhooks/{hook['id']}/deliveries").json()["items"]
    named = {
        "audit_id": audit["id"],
        "key_id": key["id"],
        "upload_id": upload["id"],
        "webhook_id": hook["id"],
    }
    order = {"provider": "acme", "cron": "0 6 * * 1", "policy": POLICY}
    made = world.alice.call("POST", "/v1/schedules", json=order, headers={"Idempotency-Key": "s"}).json()
    order = {"audit": audit["id"], **SAID}
    filed = world.alice.call("POST", "/v1/disputes", json=order, headers={"Idempotency-Key": "d"}).json()
    named |= {"schedule_id": made["id"], "dispute_id": filed["id"]}
    ring = test_challenges.Round(world, world.service.log.parent)
    commitment = ring.commit()
    named |= {"provider_id": ring.provider, "commitment_id": commitment["id"]}
    named |= {"challenge_id": ring.draw(commitment).json()["id"]}
    named |= {"model_id": world.alice.get("/v1/models").json()["items"][0]["id"]}
    named |= {"profile_id": test_providers.trusted_profile(world.alice)}
    now = time.time_ns() // 1000
    report = json.loads(
        make_report(world.service.store, world.alice.tenant.id, "", now - 2, now - 1, Policy())
    )
    named |= {"schedule_id": made["id"], "dispute_id": filed["id"], "report_id": report["id"]}
    named["log_id"] = audit["log"]["id"]
    return named, [audit["log"]["id"], *named.values(), delivery["id"], world.alice.tenant.id]


# What makes something without an id in its path: how bob tries to get at a thing of alice's through its body.
MADE = {
    "/v1/audits": {"log": "LOG"},
    "/v1/uploads": {"name": "x", "digest": "sha256:" + "0" * 64, "bytes": 1},
    "/v1/keys": {"name": "x", "scopes": ["audits:read"]},
    "/v1/webhooks": {"url": "https://example.com/hook"},
    "/v1/tenants": {"name": "alice"},
    "/v1/schedules": {"provider": "acme", "cron": "0 6 * * 1", "policy": POLICY},
    "/v1/disputes": {"audit": "AUDIT", **SAID},
    "/v1/logs": {},
    "/v1/providers": {"name": "acme"},
    "/v1/models": test_providers.MODEL,
    "/v1/profiles": {},
    "/v1/profile-keys": {"vkeys": []},
    "/v1/plans": {"profile": "PROFILE"},
    "/v1/commitments": {"heads": [{"note": "x"}]},
    "/v1/challenges": {"commitment": "COMMITMENT"},
}
# Bodies without which an endpoint refuses before it looks.
ORDERS = {
    "/v1/disputes/{dispute_id}/answer": SAID,
    "/v1/disputes/{dispute_id}/resolve": SAID | {"outcome": "upheld"},
    "/v1/providers/{provider_id}": {},
    "/v1/profiles/{profile_id}/revoke": {"reason": "x"},
    "/v1/challenges/{challenge_id}/openings": {},
}
FIXED = {"number": 1, "kind": "verdict", "sequence": 0}


def test_another_tenants_things_are_not_there_on_any_endpoint(world):
    """The same answer as for an id that nobody ever had, but for the id; and nothing shows hers.

    Every endpoint of the description has a case; one that is new and has none fails.
    """
    named, hers = belongings(world)
    scopes = [scope for scope in tenants.SCOPES if scope != "operator"]
    stranger = world.party("stranger", scopes)
    for method, path in endpoints(world):
        unknown = set(re.findall(r"{(\w+)}", path)) - named.keys() - FIXED.keys() - {"tenant_id"}
        assert not unknown, f"{path}: add one of alice's to `belongings`"
        headers = {
            "Idempotency-Key": "k",
            "If-Match": '"1"',
            "Content-Digest": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
        }
        if SCOPE.get((method, path)) == "operator":
            ids = {"tenant_id": world.alice.tenant.id}
            refused(stranger.call(method, filled(path, **ids), headers=headers), 403, "scope-missing")
        elif "{" in path:
            order = {"json": ORDERS[path]} if path in ORDERS else {}
            fixed = FIXED | ({"kind": "result"} if "challenge" in path else {})
            theirs, nobodys = (
                stranger.call(method, filled(path, **ids, **fixed), headers=headers, **order)
                for ids in (named, dict.fromkeys(named, "x_0"))
            )
            assert (theirs.status_code, theirs.json()) == (404, nobodys.json()), path
        elif method == "GET":
            answer = stranger.get(path)
            assert answer.status_code == 200
            assert not [text for text in hers if text in answer.text], path
        else:
            assert path in MADE, f"{path}: say in `MADE` how a stranger would try"
            text = json.dumps(MADE[path]).replace("LOG", hers[0]).replace("AUDIT", named["audit_id"])
            text = text.replace("PROFILE", named["profile_id"])
            order = json.loads(text.replace("COMMITMENT", named["commitment_id"]))
            answer = stranger.call(method, path, json=order, headers={"Idempotency-Key": path})
            # A log is no JSON; no key of hers signed; nobody saw what is to be replaced.
            assert answer.status_code in (201, 404, 415, 422, 428), answer.text
            assert not [text for text in hers if text in answer.text], path
    assert stranger.get("/v1/audits").json()["items"] == []
    assert world.alice.get(f"/v1/audits/{named['audit_id']}").json()["state"] == "done"
    assert world.alice.get("/v1/keys").json()["items"][0]["revoked"] is None
    assert len(world.alice.get("/v1/webhooks").json()["items"]) == 1


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
