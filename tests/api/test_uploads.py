"""Logs in parts: cut off, sent twice, out of order, altered, and another tenant's."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json

from tests.api.conftest import LINE, refused

BODY = LINE % 1 * 5000
PARTS = [BODY[start : start + 100_000] for start in range(0, len(BODY), 100_000)]


def announce(party, body=BODY, *, key="u1", **changes):
    order = {"name": "big.jsonl", "digest": f"sha256:{hashlib.sha256(body).hexdigest()}", "bytes": len(body)}
    headers = {"Idempotency-Key": key}
    return party.call("POST", "/v1/uploads", json=order | changes, headers=headers)


def put(party, path, number, data, *, digest=None):
    digest = base64.b64encode(hashlib.sha256(digest or data).digest()).decode()
    headers = {"Content-Digest": f"sha-256=:{digest}:"}
    return party.call("PUT", f"{path}/parts/{number}", content=data, headers=headers)


def test_parts_in_any_order_and_twice_make_the_log_and_it_is_audited(world):
    made = announce(world.alice)
    assert made.status_code == 201, made.text
    path = made.headers["location"]
    assert announce(world.alice).json() == made.json()
    for number in reversed(range(1, len(PARTS))):
        assert put(world.alice, path, number, PARTS[number]).status_code == 204
    assert list(world.alice.get(path).json()["parts"]) == [str(n) for n in range(1, len(PARTS))]
    answer = world.alice.call("POST", f"{path}/complete")
    assert "part 0 is the first missing" in refused(answer, 409, "conflict")["detail"]
    for data in (PARTS[1], PARTS[0]):
        assert put(world.alice, path, 0, data).status_code == 204
    log = world.alice.call("POST", f"{path}/complete").json()
    assert log == world.alice.call("POST", f"{path}/complete").json()
    assert world.service.blobs.open(log["digest"]).read() == BODY
    assert list(world.service.uploads.iterdir()) == []
    refused(put(world.alice, path, 0, PARTS[0]), 409, "conflict")
    audit = world.alice.submit(json.dumps({"log": log["id"]}), kind="application/json")
    assert audit.json()["log"] == log


def test_what_is_not_what_was_announced_is_refused(world):
    path = announce(world.alice, PARTS[0]).headers["location"]
    refused(put(world.alice, path, 0, PARTS[0], digest=b"else"), 422, "digest-mismatch")
    other = b"x" * len(PARTS[0])
    assert put(world.alice, path, 0, other).status_code == 204
    refused(world.alice.call("POST", f"{path}/complete"), 422, "digest-mismatch")
    refused(put(world.alice, path, 8192, PARTS[0]), 422, "request-invalid")
    refused(put(world.alice, path, 0, b"x" * ((8 << 20) + 1)), 413, "body-too-large")
    refused(announce(world.alice, key="u2", digest="sha256:../../etc"), 422, "request-invalid")
    refused(announce(world.alice, key="u2", bytes=1 << 60), 422, "request-invalid")


def test_a_bomb_in_parts_is_no_log(world):
    bomb = gzip.compress(b" " * (64 << 20))
    path = announce(world.alice, bomb).headers["location"]
    assert put(world.alice, path, 0, bomb).status_code == 204
    refused(world.alice.call("POST", f"{path}/complete"), 422, "compression-bomb")


def test_an_upload_is_its_tenants_alone(world):
    path = announce(world.alice).headers["location"]
    refused(world.bob.get(path), 404, "not-found")
    refused(put(world.bob, path, 0, PARTS[0]), 404, "not-found")
    refused(world.bob.call("POST", f"{path}/complete"), 404, "not-found")
