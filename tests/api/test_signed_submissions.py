"""Submissions that a provider signs: what is taken, and every way to forge, alter, replay or stretch one."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from http_message_signatures import HTTPMessageSigner
from http_message_signatures.algorithms import ED25519

from auditor.errors import OptionError
from auditor.key_files import generate
from auditor.merkle.keys import Algorithm
from auditor.service import signatures, tenants
from auditor.service.client import Client
from auditor.service.signatures import COMPONENTS, Message, RequestSigner, content_digest
from tests.api.conftest import LINE, refused

URL = "http://testserver/v1/audits"
_numbers = itertools.count()


def register(party, *, key=None, scopes=("audits:write",), **changes):
    signer = key or generate("acme.example/submissions", Algorithm.ED25519)
    order = {"name": "s", "scopes": list(scopes), "public_key": signer.public.vkey} | changes
    answer = party.call("POST", "/v1/keys", json=order)
    return signer, answer


@pytest.fixture
def provider(world):
    signer, answer = register(world.alice)
    assert answer.status_code == 201, answer.text
    assert answer.json()["key"] is None
    return RequestSigner(answer.json()["id"], signer)


def plain_headers(key=None):
    return {"Content-Type": "application/jsonl", "Idempotency-Key": key or f"signed-{next(_numbers)}"}


def send(world, headers, body=LINE % 1, url=URL, method="POST"):
    return world.client.request(method, url, content=body, headers=headers)


def signed_by_hand(provider, *, body=LINE % 1, components=COMPONENTS, url=URL, method="POST", **parameters):
    """As `RequestSigner.headers`, with anything changed."""
    message = Message(method, url, plain_headers() | {"Content-Digest": content_digest(body)})
    key = signatures.Ed25519PrivateKey.from_private_bytes(provider.signer.seed)
    given = {"key_id": provider.key_id, "nonce": f"nonce-of-16-chars-{next(_numbers)}", "tag": signatures.TAG}
    HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=signatures._OwnKey(key)).sign(
        message, covered_component_ids=components, use_existing_digest=True, **(given | parameters)
    )
    return message.headers


def test_a_signed_submission_is_its_tenants_and_needs_no_secret(world, provider):
    answer = send(world, provider.headers("POST", URL, plain_headers(), LINE % 1))
    assert answer.status_code == 202, answer.text
    assert world.alice.get("/v1/audits").json()["items"][0]["id"] == answer.json()["id"]
    assert world.bob.get("/v1/audits").json()["items"] == []
    order = json.dumps({"log": answer.json()["log"]["id"]}).encode()
    headers = plain_headers() | {"Content-Type": "application/json"}
    assert send(world, provider.headers("POST", URL, headers, order), order).status_code == 202
    assert send(world, signed_by_hand(provider)).status_code == 202, "the changes below are what is refused"


def test_a_replay_is_refused_and_orders_nothing(world, provider):
    headers = provider.headers("POST", URL, plain_headers(), LINE % 1)
    assert send(world, headers).status_code == 202
    for _ in range(2):
        refused(send(world, headers), 401, "signature-replayed")
    assert len(world.alice.get("/v1/audits").json()["items"]) == 1
    again = provider.headers("POST", URL, plain_headers(headers["Idempotency-Key"]), LINE % 1)
    assert send(world, again).headers["idempotent-replayed"] == "true", "a retry is signed afresh"


def test_a_signature_that_comes_many_times_at_once_is_used_once(world, provider):
    headers = provider.headers("POST", URL, plain_headers(), LINE % 1)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: send(world, headers), range(8)))
    assert sorted(answer.status_code for answer in answers) == [202] + [401] * 7
    assert len(world.alice.get("/v1/audits").json()["items"]) == 1


def test_what_was_refused_does_not_use_the_signature_up(world, provider):
    headers = provider.headers("POST", URL, plain_headers(), LINE % 1)
    refused(send(world, headers, b"else"), 422, "digest-mismatch")
    assert send(world, headers).status_code == 202


@pytest.mark.parametrize("missing", COMPONENTS)
def test_a_signature_covers_all_of_the_request(world, provider, missing):
    components = [name for name in COMPONENTS if name != missing]
    refused(send(world, signed_by_hand(provider, components=components)), 401, "signature-refused")


@pytest.mark.parametrize(
    "changes",
    [
        {"Idempotency-Key": "other"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Digest": content_digest(b"else")},
        {"Host": "elsewhere"},
    ],
)
def test_an_altered_header_is_noticed(world, provider, changes):
    headers = provider.headers("POST", URL, plain_headers(), LINE % 1)
    refused(send(world, headers | changes), 401, "signature-refused")


def test_a_signature_fits_one_method_path_and_query(world, provider):
    headers = provider.headers("POST", URL, plain_headers(), LINE % 1)
    refused(send(world, headers, url=f"{URL}?alpha=0.5"), 401, "signature-refused")
    other = signed_by_hand(provider, url="http://testserver/v1/uploads")
    refused(send(world, other), 401, "signature-refused")
    refused(send(world, signed_by_hand(provider, method="PUT")), 401, "signature-refused")
    for path in ("/v1/audits", "/v1/keys"):
        refused(world.client.get(path, headers=headers), 401, "unauthenticated")


@pytest.mark.parametrize(
    "parameters",
    [
        {"created": dt.timedelta(seconds=-310)},
        {"created": dt.timedelta(seconds=600)},
        {"expires": dt.timedelta(seconds=-60)},
        {"tag": "other"},
        {"tag": None},
        {"nonce": None},
        {"nonce": "short"},
        {"nonce": "x" * 65},
        {"key_id": "ak_0"},
        {"key_id": "ak_\x7f"},
    ],
)
def test_a_signature_with_wrong_parameters_is_refused(world, provider, parameters):
    now = dt.datetime.now(
        dt.UTC
    )  # not when tests are collected: a slow run comes by a quarter of an hour later
    parameters = {k: now + v if isinstance(v, dt.timedelta) else v for k, v in parameters.items()}
    if parameters.get("key_id") == "ak_\x7f":
        headers = signed_by_hand(provider)
        headers["Signature-Input"] = headers["Signature-Input"].replace("keyid=", "keyid=?0;x=")
    else:
        headers = signed_by_hand(provider, **parameters)
    refused(send(world, headers), 401, "signature-refused")


def test_an_old_signature_is_refused_although_this_hosts_clock_is_slow(world, provider, monkeypatch):
    """The library asks the host for the time, we ask the database; whichever is right, nonces outlive signatures."""
    later = signatures.time_now
    monkeypatch.setattr(signatures, "time_now", lambda c: later(c) + 301 * signatures.SECOND)
    answer = send(world, provider.headers("POST", URL, plain_headers(), LINE % 1))
    assert "too old" in refused(answer, 401, "signature-refused")["detail"]


def test_nonces_are_forgotten_when_their_signatures_are_too_old(world, provider):
    send(world, provider.headers("POST", URL, plain_headers(), LINE % 1))
    with world.service.store.transaction(writes=True) as connection:
        connection.exec_driver_sql("UPDATE nonce SET expires = 1")
    send(world, provider.headers("POST", URL, plain_headers(), LINE % 1))
    with world.service.store.transaction() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM nonce").scalar() == 1


def test_a_key_is_bound_to_the_tenant_that_registered_it(world, provider):
    _, answer = register(world.bob, key=provider.signer)
    as_bob = RequestSigner(answer.json()["id"], provider.signer)
    assert send(world, as_bob.headers("POST", URL, plain_headers(), LINE % 1)).status_code == 202
    assert len(world.bob.get("/v1/audits").json()["items"]) == 1
    assert world.alice.get("/v1/audits").json()["items"] == []
    headers = provider.headers("POST", URL, plain_headers(), LINE % 1)
    for there, here in ((provider.key_id, as_bob.key_id), ("sig1", "sig2")):
        changed = headers | {"Signature-Input": headers["Signature-Input"].replace(there, here)}
        refused(send(world, changed), 401, "signature-refused")


def test_a_revoked_an_expired_and_a_strangers_key_sign_nothing(world, provider):
    stranger = RequestSigner(provider.key_id, generate("acme.example/submissions", Algorithm.ED25519))
    refused(send(world, stranger.headers("POST", URL, plain_headers(), LINE % 1)), 401, "signature-refused")
    bearer = RequestSigner(world.alice.key.split(".")[0], provider.signer)
    refused(send(world, bearer.headers("POST", URL, plain_headers(), LINE % 1)), 401, "signature-refused")
    signer, _ = register(world.alice)
    with world.service.store.transaction(writes=True) as connection:
        old, _ = tenants.create_key(
            connection, world.alice.tenant.id, "o", ["audits:write"], days=1e-9, public_key=signer.public.vkey
        )
    expired = RequestSigner(old.id, signer)
    refused(send(world, expired.headers("POST", URL, plain_headers(), LINE % 1)), 401, "signature-refused")
    world.alice.call("DELETE", f"/v1/keys/{provider.key_id}")
    refused(send(world, provider.headers("POST", URL, plain_headers(), LINE % 1)), 401, "signature-refused")


def test_two_signatures_and_a_bad_one_beside_a_good_api_key_are_refused(world, provider):
    headers = signed_by_hand(provider)
    twice = dict(headers)
    for name in ("Signature", "Signature-Input"):
        twice[name] = f"{headers[name]}, {headers[name].replace('pyhms', 'other')}"
    refused(send(world, twice), 401, "signature-refused")
    spoilt = headers | {"Authorization": f"Bearer {world.alice.key}", "Idempotency-Key": "else"}
    refused(send(world, spoilt), 401, "signature-refused")
    for wrong in ("", "sig1", "sig1=()", 'sig1=("@method");created=1', "\xff"):
        refused(send(world, headers | {"Signature-Input": wrong.encode("latin-1")}), 401, "signature-refused")


def test_a_signing_key_is_no_secret_and_does_nothing_else(world, provider):
    for text in (provider.key_id, f"{provider.key_id}.", f"{provider.key_id}.\0"):
        answer = world.client.get("/v1/audits", headers={"Authorization": f"Bearer {text}"})
        refused(answer, 401, "unauthenticated")
    listed = world.alice.get("/v1/keys").json()["items"]
    assert [key["public_key"] for key in listed] == [None, provider.signer.public.vkey]
    refused(register(world.alice, scopes=["audits:read"])[1], 422, "request-invalid")
    refused(register(world.alice, public_key="x")[1], 422, "request-invalid")
    witness = generate("acme.example/witness", Algorithm.ED25519_COSIGNATURE)
    refused(register(world.alice, key=witness)[1], 422, "request-invalid")
    with pytest.raises(OptionError):
        RequestSigner("ak_0", witness)


def test_the_client_signs_each_try_afresh(world, provider):
    client = Client("http://testserver", signer=provider)
    requests = [
        client._request("POST", "/v1/audits", {"content": LINE % 1, "headers": plain_headers("same")})
        for _ in range(2)
    ]
    assert "authorization" not in requests[0].headers
    assert requests[0].headers["signature-input"] != requests[1].headers["signature-input"]
    ids = {send(world, dict(r.headers), r.content).json()["id"] for r in requests}
    assert len(ids) == 1
