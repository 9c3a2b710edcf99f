"""Health, metrics, problem documents and the description."""

from __future__ import annotations

from auditor.api.problems import FAMILIES, title_of
from auditor.store_engine import connect_to, find_place, for_writing
from tests.api.conftest import refused


def test_ready_means_the_database_is_at_this_programs_schema(world, database_url):
    assert world.client.get("/livez").text == world.client.get("/readyz").text == "ok"
    engine = connect_to(find_place(database_url))
    with for_writing(engine.connect()) as connection, connection.begin():
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    engine.dispose()
    answer = world.client.get("/readyz")
    assert refused(answer, 503, "not-ready").keys() == {"type", "title", "status", "code", "detail"}
    assert world.client.get("/livez").status_code == 200


def test_metrics_count_and_name_no_tenant(world):
    audit = world.alice.submit().json()
    world.work()
    world.alice.submit()
    text = world.alice.get("/metrics").text
    for line in (
        'audit_jobs{state="queued"} 1.0',
        'audit_jobs{state="done"} 1.0',
        'audit_verdicts_total{outcome="inconsistent"} 1.0',
        "audit_lost_leases_total 0.0",
        'audit_http_requests_total{method="POST",route="/v1/audits",status="202"}',
    ):
        assert line in text, line
    assert audit["id"] not in text
    assert world.alice.tenant.id not in text


def test_every_refusal_is_a_problem_with_a_page(world):
    refused(world.client.get("/nowhere"), 404, "not-found")
    wrong = world.client.put("/v1/audits")
    refused(wrong, 405, "method-not-allowed")
    assert "GET" in wrong.headers["allow"] or "POST" in wrong.headers["allow"]
    for code in FAMILIES:
        assert title_of(code)
        page = world.client.get(f"/problems/{code}")
        assert page.status_code == 200
        assert code in page.text
    refused(world.client.get("/problems/nothing"), 404, "not-found")
    refused(world.alice.get("/v1/audits/%00"), 404, "not-found")


def test_a_fault_of_ours_says_nothing_about_itself(world, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("canary-prompt")

    monkeypatch.setattr("auditor.service.audits.find", broken)
    answer = world.alice.get("/v1/audits/aud_1")
    refused(answer, 500, "internal")
    assert "canary" not in answer.text
    assert "Zero" not in answer.text


def test_what_was_sent_is_not_repeated(world):
    for path in ("/v1/audits?limit=canary", "/v1/audits?state=canary", "/v1/audits/canary", "/canary"):
        answer = world.alice.get(path)
        assert answer.status_code in (404, 422)
        assert "canary" not in answer.text


def test_the_description_is_complete(world):
    schema = world.client.get("/v1/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            if path.startswith("/v1"):
                assert "401" in operation["responses"], (method, path)
            if method == "post" and path in ("/v1/audits", "/v1/keys", "/v1/tenants"):
                assert operation["requestBody"]["content"], path


def test_answers_are_hardened(world):
    for path in ("/livez", "/nowhere", "/v1/audits"):
        headers = world.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
