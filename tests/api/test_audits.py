"""Audits over HTTP: what is promised when it answers, and to whom."""

from __future__ import annotations

import gzip
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard

from tests.api.conftest import LINE, refused


def test_a_submission_is_ordered_once_and_its_audit_can_be_read(world):
    first = world.alice.submit(key="once", query="?alpha=0.01&name=monday")
    assert first.status_code == 202, first.text
    audit = first.json()
    assert first.headers["location"] == f"/v1/audits/{audit['id']}"
    assert (audit["state"], audit["log"]["name"], audit["options"]["alpha"]) == ("queued", "monday", 0.01)
    assert audit["log"]["digest"] == "sha256:" + hashlib.sha256(LINE % 1).hexdigest()
    again = world.alice.submit(key="once", query="?alpha=0.01&name=monday")
    assert again.json()["id"] == audit["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert len(world.alice.get("/v1/audits").json()["items"]) == 1
    assert world.alice.get(first.headers["location"]).json() == audit


def test_a_key_that_comes_with_another_request_is_refused(world):
    world.alice.submit(key="once")
    refused(world.alice.submit(LINE % 2, key="once"), 422, "idempotency-key-reused")
    refused(world.alice.submit(key="once", query="?alpha=0.5"), 422, "idempotency-key-reused")
    assert world.bob.submit(key="once").status_code == 202, "keys are a tenant's own"


def test_requests_with_one_key_at_once_order_once(world):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: world.alice.submit(key="race"), range(8)))
    assert {a.status_code for a in answers} <= {202, 409}
    assert len({a.json()["id"] for a in answers if a.status_code == 202}) == 1
    assert len(world.alice.get("/v1/audits").json()["items"]) == 1


def test_without_an_idempotency_key_nothing_is_made(world):
    headers = {"Content-Type": "application/jsonl"}
    answer = world.alice.call("POST", "/v1/audits", content=LINE % 1, headers=headers)
    refused(answer, 400, "idempotency-key-missing")
    assert world.alice.get("/v1/audits").json()["items"] == []


def test_a_verdict_is_the_bytes_that_were_logged_and_is_not_sent_twice(world):
    audit = world.alice.submit().json()
    refused(world.alice.get(f"/v1/audits/{audit['id']}/verdict"), 409, "not-finished")
    refused(world.alice.get(f"/v1/audits/{audit['id']}/evidence"), 409, "not-finished")
    world.work()
    done = world.alice.get(f"/v1/audits/{audit['id']}").json()
    assert (done["state"], done["verdict"]) == ("done", "inconsistent")
    verdict = world.alice.get(f"/v1/audits/{audit['id']}/verdict")
    digest = "sha256:" + hashlib.sha256(verdict.content).hexdigest()
    assert verdict.headers["etag"] == f'"{digest}"' == f'"{done["verdict_digest"]}"'
    held = {"If-None-Match": verdict.headers["etag"]}
    assert world.alice.get(f"/v1/audits/{audit['id']}/verdict", headers=held).status_code == 304
    evidence = world.alice.get(f"/v1/audits/{audit['id']}/evidence?limit=1").json()
    assert (evidence["items"][0]["id"], evidence["next"]) == ("a", 0)
    rest = world.alice.get(f"/v1/audits/{audit['id']}/evidence?limit=1&after=0").json()
    assert (rest["items"][0]["id"], rest["next"]) == ("b", None)


def test_spans_say_where_the_evidence_lies_and_leave_out_traces_without_any(world):
    path = f"/v1/audits/{world.alice.submit().json()['id']}/spans"
    refused(world.alice.get(path), 409, "not-finished")
    world.work()
    found = {"number": 1, "id": "b", "where": "log:1", "verdict": "inconsistent", "tokens": 9}
    found["spans"] = [{"start": 2, "end": 5}, {"start": 7, "end": 8}]
    assert world.alice.get(path).json() == {"items": [found], "next": None}
    assert world.alice.get(f"{path}?limit=1").json() == {"items": [], "next": 0}
    assert world.alice.get(f"{path}?limit=1&after=0").json() == {"items": [found], "next": None}


@pytest.mark.parametrize("query", ["alhpa=0.5", "alpha=0.5&alpha=0.1", "Alpha=0.5", "=1"])
def test_a_misspelt_or_repeated_parameter_is_not_overlooked(world, query):
    refused(world.alice.submit(query=f"?{query}"), 422, "request-invalid")
    refused(world.alice.get(f"/v1/audits?{query}"), 422, "request-invalid")
    assert world.alice.get("/v1/audits").json()["items"] == []


def test_an_audit_that_did_not_change_is_not_sent_again(world):
    path = f"/v1/audits/{world.alice.submit().json()['id']}"
    tag = world.alice.get(path).headers["etag"]
    assert world.alice.get(path, headers={"If-None-Match": tag}).status_code == 304
    world.work()
    assert world.alice.get(path, headers={"If-None-Match": tag}).status_code == 200


def test_progress_is_followed_and_resumed(world):
    audit = world.alice.submit().json()
    world.work()
    path = f"/v1/audits/{audit['id']}/events"
    text = world.alice.get(path).text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event:")]
    assert kinds == ["queued", "running", "progress", "done"]
    rest = world.alice.get(path, headers={"Last-Event-ID": "3"}).text
    assert [line for line in rest.splitlines() if line.startswith("id:")] == ["id: 4"]
    refused(world.alice.get(path, headers={"Last-Event-ID": "x"}), 422, "request-invalid")


def test_a_cancelled_audit_stays_cancelled(world):
    path = f"/v1/audits/{world.alice.submit().json()['id']}"
    for _ in range(2):
        assert world.alice.call("POST", f"{path}/cancel").json()["state"] == "cancelled"
    world.work()
    assert world.alice.get(path).json()["state"] == "cancelled"
    done = world.alice.submit(LINE % 2).json()
    world.work()
    refused(world.alice.call("POST", f"/v1/audits/{done['id']}/cancel"), 409, "conflict")


def test_pages_hold_everything_once_while_more_is_added(world):
    made = [world.alice.submit(LINE % n).json()["id"] for n in range(5)]
    seen, path = [], "/v1/audits?limit=2"
    while path:
        page = world.alice.get(path)
        seen += [item["id"] for item in page.json()["items"]]
        path = page.links["next"]["url"] if "next" in page.links else None
        world.alice.submit(LINE % 99)
    assert seen == made[::-1]
    for cursor in ("x", "W10", "bnVsbA", "WzEsMl0", "WzFlOTksImEiXQ"):
        refused(world.alice.get(f"/v1/audits?cursor={cursor}"), 422, "request-invalid")
    refused(world.alice.get("/v1/audits?limit=201"), 422, "request-invalid")


ZEROS = b" " * (64 << 20)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "request-invalid"),
        (b"\x89PNG\r\n\x1a\n123", 422, "request-invalid"),
        (gzip.compress(LINE)[:-9], 422, "request-invalid"),
        (gzip.compress(ZEROS), 422, "compression-bomb"),
        (zstandard.compress(ZEROS), 422, "compression-bomb"),
        (b"".join([zstandard.compress(ZEROS[: 8 << 20])] * 4), 422, "compression-bomb"),
        (gzip.compress(zstandard.compress(LINE * 9)), 422, "compression-bomb"),
        (b" " * ((8 << 20) + 1), 413, "body-too-large"),
    ],
    ids=["empty", "png", "cut", "gzip", "zstd", "frames", "nested", "large"],
)
def test_a_body_that_is_no_log_is_refused_and_leaves_nothing(world, body, status, code):
    refused(world.alice.submit(body), status, code)
    assert world.alice.get("/v1/audits").json()["items"] == []


@pytest.mark.parametrize(
    ("pack", "coding"), [(bytes, "identity"), (gzip.compress, "gzip"), (zstandard.compress, "zstd")]
)
def test_packed_logs_are_taken_as_they_are(world, pack, coding):
    body = pack(LINE % 1 * 2000)
    answer = world.alice.submit(body, **{"Content-Encoding": coding})
    assert answer.status_code == 202, answer.text
    assert world.service.blobs.open(answer.json()["log"]["digest"]).read() == body


def test_types_and_codings_that_are_not_read_are_refused(world):
    refused(world.alice.submit(kind="text/plain"), 415, "media-type")
    refused(world.alice.submit(**{"Content-Encoding": "br"}), 415, "media-type")
    refused(world.alice.submit(**{"Content-Encoding": "gzip, gzip"}), 415, "media-type")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"log": "a", "log": "b"}', b'{"log": NaN}', b"[" * 9999, b'{"log": "\xff"}']
)
def test_json_that_is_none_is_refused(world, body):
    refused(world.alice.submit(body, kind="application/json"), 400, "body-malformed")


@pytest.mark.parametrize(
    "order",
    [{}, {"log": 1}, {"log": "log_1", "x": 1}, {"log": "l", "alpha": 0}, {"log": "l", "alpha": "0.1"}],
)
def test_an_order_with_a_wrong_field_is_refused(world, order):
    refused(world.alice.submit(json.dumps(order), kind="application/json"), 422, "request-invalid")


def test_an_order_names_a_log_that_is_there(world):
    log = world.alice.submit().json()["log"]["id"]
    order = json.dumps({"log": log, "alpha": 0.05})
    assert world.alice.submit(order, kind="application/json").status_code == 202
    refused(world.bob.submit(order, kind="application/json"), 404, "not-found")


def test_submissions_of_one_key_are_limited_and_told_when_to_come_again(world, monkeypatch):
    monkeypatch.setattr("auditor.service.tenants.SUBMISSIONS_A_SECOND", 0.01)
    monkeypatch.setattr("auditor.service.tenants.SUBMISSIONS_AT_ONCE", 2.0)
    assert [world.alice.submit(LINE % n).status_code for n in range(2)] == [202, 202]
    answer = world.alice.submit(LINE % 9)
    refused(answer, 429, "rate-limited")
    assert 1 <= int(answer.headers["retry-after"]) <= 101
    assert world.bob.submit().status_code == 202
