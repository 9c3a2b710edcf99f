"""Reports over HTTP: a tenant's own, immutable, and with a pack once the log holds them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.merkle.policy import Policy as LogPolicy
from auditor.reports import Policy, make_report
from auditor.reports.pack_verification import trust, verify_pack
from auditor.service.clock import now
from auditor.service.log_placing import ServiceLog, place
from auditor.transparency_log import TransparencyLog
from tests.api.conftest import refused

KEY = SeedSigner("example.com/reports", Algorithm.ED25519, b"r" * 32)
LOG_KEY = SeedSigner("example.com/log", Algorithm.ED25519, b"l" * 32)
RESULT = {
    "verdict": "inconsistent",
    "e_value": 1e9,
    "groups": [],
    "errors": [],
    "selection": None,
    "model": {"digest": "sha256:" + "a" * 64, "recipe": "r"},
}


def reported(world, monkeypatch):
    """Alice's audit of acme is done and a report of it is made; returns its bytes."""
    from auditor.service import audits

    plain = audits.record

    def record(connection, audit, body, outcome, traces, moment):
        plain(connection, audit, json.dumps(RESULT).encode(), outcome, traces, moment)

    monkeypatch.setattr(audits, "record", record)
    assert world.alice.submit(query="?provider=acme").json()["provider"] == "acme"
    world.work()
    with world.service.store.transaction() as connection:
        end = now(connection)
    return make_report(world.service.store, world.alice.tenant.id, "acme", 0, end, Policy())


def test_a_tenant_lists_and_reads_its_reports_and_nobody_else_does(world, monkeypatch):
    body = reported(world, monkeypatch)
    document = json.loads(body)
    assert document["providers"][0]["name"] == "acme"
    (item,) = world.alice.get("/v1/reports").json()["items"]
    assert item["id"] == document["id"]
    assert item["digest"] == f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert world.alice.get("/v1/reports?provider=acme").json()["items"] == [item]
    assert world.alice.get("/v1/reports?provider=other").json()["items"] == []
    answer = world.alice.get(f"/v1/reports/{item['id']}")
    assert answer.content == body
    assert answer.headers["etag"] == f'"{item["digest"]}"'
    again = world.alice.get(f"/v1/reports/{item['id']}", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    page = world.alice.get(f"/v1/reports/{item['id']}/html")
    assert page.headers["content-type"].startswith("text/html")
    assert "grade F" in page.text
    assert world.alice.get(f"/v1/reports/{item['id']}/oscal").json()["assessment-results"]
    assert world.bob.get("/v1/reports").json()["items"] == []
    for path in ("", "/html", "/oscal"):
        refused(world.bob.get(f"/v1/reports/{item['id']}{path}"), 404, "not-found")


def test_pages_of_reports_follow_on_each_other(world, monkeypatch):
    body = reported(world, monkeypatch)
    end = 1
    for policy in ("b", "c"):
        make_report(world.service.store, world.alice.tenant.id, "", 0, end, Policy(name=policy))
    seen, path = [], "/v1/reports?limit=1"
    while path:
        page = world.alice.get(path).json()
        seen += [item["id"] for item in page["items"]]
        path = page["next"] and f"/v1/reports?limit=1&cursor={page['next']}"
    assert len(seen) == len(set(seen)) == 3
    assert seen[-1] == json.loads(body)["id"]


def test_a_pack_is_there_once_the_log_holds_the_report_and_verifies(world, monkeypatch):
    body = reported(world, monkeypatch)
    name = json.loads(body)["id"]
    world.client.app.state.service = replace(world.service, report_signer=None)
    refused(world.alice.get(f"/v1/reports/{name}/pack"), 503, "not-ready")
    refused(world.client.get("/log/report-key"), 503, "not-ready")
    world.client.app.state.service = replace(world.service, report_signer=KEY)
    refused(world.alice.get(f"/v1/reports/{name}/pack"), 409, "not-finished")
    TransparencyLog.create(world.service.log, LOG_KEY.name)
    place(world.service.store, ServiceLog(world.service.log, LOG_KEY, world.service.log.with_name("head")))
    answer = world.alice.get(f"/v1/reports/{name}/pack")
    assert answer.headers["content-type"] == "application/zip"
    found = verify_pack(answer.content, trust([KEY.public]), LogPolicy((LOG_KEY.public,)))
    assert found.document == json.loads(body)
    assert world.client.get("/log/report-key").text.strip() == KEY.public.vkey
    refused(world.bob.get(f"/v1/reports/{name}/pack"), 404, "not-found")


def test_reports_need_a_key_with_the_scope(world, monkeypatch):
    name = json.loads(reported(world, monkeypatch))["id"]
    writer = world.party("writer", scopes=("audits:write",))
    for path in ("", f"/{name}", f"/{name}/html", f"/{name}/pack"):
        refused(world.client.get(f"/v1/reports{path}"), 401, "unauthenticated")
        refused(writer.get(f"/v1/reports{path}"), 403, "scope-missing")
