"""Bearer tokens of people, from a real issuer over HTTP with keys made here."""

from __future__ import annotations

import base64
import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.testclient import TestClient

from auditor.errors import OptionError
from auditor.service import oidc
from auditor.service.oidc import Issuer
from tests.api.conftest import application_over, refused

AUDIENCE = "https://audit.example"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())


class LocalIssuer:
    """Discovery document and keys on a port of this machine."""

    def __init__(self):
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.asked.append(self.path)
                answers = {
                    "/.well-known/openid-configuration": {
                        "issuer": issuer.named,
                        "jwks_uri": f"{issuer.url}/keys",
                    },
                    "/keys": {"keys": issuer.keys},
                }
                body = json.dumps(answers.get(self.path, {})).encode() + b" " * issuer.padding
                self.send_response(200 if self.path in answers and issuer.up else 500)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = self.named = f"http://127.0.0.1:{self.server.server_port}"
        self.keys, self.asked, self.padding, self.up = [], [], 0, True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def publish(self, kid, key, algorithm):
        made = jwt.algorithms.get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)
        self.keys.append({**made, "kid": kid, "use": "sig", "alg": algorithm})

    def token(self, key=EC, algorithm="ES256", kid="ec", headers=None, **claims):
        now = int(time.time())
        said = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600}
        said |= {"auditor_tenant": "alice", "scope": "openid audits:read audits:write"} | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key, algorithm=algorithm, headers={"kid": kid, **(headers or {})})


@pytest.fixture
def issuer():
    issuer = LocalIssuer()
    issuer.publish("ec", EC, "ES256")
    issuer.publish("rsa", RSA, "RS256")
    yield issuer
    issuer.server.shutdown()
    issuer.server.server_close()


@pytest.fixture
def client(world, issuer):
    service = replace(world.service, issuer=Issuer(issuer.url, AUDIENCE))
    with TestClient(application_over(service), raise_server_exceptions=False) as client:
        yield client


def get(client, token, path="/v1/audits"):
    return client.get(path, headers={"Authorization": f"Bearer {token}"})


def test_a_person_acts_for_the_tenant_and_the_scopes_of_the_token(world, client, issuer):
    mine, theirs = world.alice.submit().json()["id"], world.bob.submit().json()["id"]
    for token in (issuer.token(), issuer.token(RSA, "RS256", "rsa")):
        assert [item["id"] for item in get(client, token).json()["items"]] == [mine]
        assert get(client, token, f"/v1/audits/{theirs}").status_code == 404
        refused(get(client, token, "/v1/keys"), 403, "scope-missing")
    headers = {
        "Authorization": f"Bearer {issuer.token()}",
        "Idempotency-Key": "p",
        "Content-Type": "application/jsonl",
    }
    made = client.post("/v1/audits", content=b'{"schema": "auditor.trace/v1"}\n', headers=headers)
    assert made.status_code == 202
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]  # once, for all of them


def test_keys_go_on_working_beside_tokens(world, client):
    assert get(client, world.alice.key).status_code == 200


HS = base64.urlsafe_b64encode(b"0" * 32).decode()


@pytest.mark.parametrize(
    "change",
    [
        {"exp": 1},
        {"exp": int(time.time()) + 10 * 86_400},
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"aud": "https://other.example"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"nbf": int(time.time()) + 3600},
        {"auditor_tenant": "nobody"},
        {"auditor_tenant": None},
        {"auditor_tenant": "al\0ice"},
        {"key": OTHER},
        {"kid": "unknown"},
        {"kid": "rsa"},
        {"key": None, "algorithm": "none"},
        {"key": HS, "algorithm": "HS256"},
        {"key": HS, "algorithm": "HS256", "kid": "rsa"},
        {"key": RSA, "algorithm": "PS256", "kid": "rsa"},
        {"padding": "x" * 9000},
    ],
)
def test_any_other_token_is_refused(client, issuer, change):
    refused(get(client, issuer.token(**change)), 401, "unauthenticated")


def test_a_broken_token_is_refused(client, issuer):
    head, body, signature = issuer.token().split(".")
    for token in (
        f"{head}.{body}.",
        f"{head}..{signature}",
        "a.b.c",
        "..",
        f"{head}.{body}.{signature[:-4]}AAAA",
    ):
        refused(get(client, token), 401, "unauthenticated")


def test_a_public_key_is_never_taken_for_a_shared_secret(client, issuer):
    secret = json.dumps(issuer.keys[0]).encode()
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"ec"}').rstrip(b"=").decode()
    body = issuer.token().split(".")[1]
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        f"{head}.{body}".encode(), secret
    )
    token = f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    refused(get(client, token), 401, "unauthenticated")


def test_a_rotated_key_is_fetched_and_a_withdrawn_one_ends(client, issuer, monkeypatch):
    monkeypatch.setattr(oidc, "ASK_SECONDS", 0.0)
    assert get(client, issuer.token()).status_code == 200
    issuer.keys.clear()
    issuer.publish("new", OTHER, "ES256")
    assert get(client, issuer.token()).status_code == 200  # until the keys are fetched again
    assert get(client, issuer.token(OTHER, kid="new")).status_code == 200
    refused(get(client, issuer.token()), 401, "unauthenticated")


def test_unknown_keys_do_not_make_us_ask_the_issuer_each_time(client, issuer):
    for number in range(5):
        get(client, issuer.token(kid=f"unknown-{number}"))
    assert issuer.asked.count("/keys") == 1


@pytest.mark.parametrize("fault", ["down", "other", "long"])
def test_an_issuer_that_does_not_answer_lets_nobody_in(client, issuer, fault):
    issuer.up = fault != "down"
    issuer.named = "https://evil.example" if fault == "other" else issuer.url
    issuer.padding = 300_000 if fault == "long" else 0
    answer = get(client, issuer.token())
    refused(answer, 503, "not-ready")
    assert answer.headers["retry-after"]


def test_a_person_who_came_is_listed_with_the_keys_and_can_be_locked_out(world, client, issuer):
    token = issuer.token()
    assert get(client, token).status_code == 200
    (person,) = [
        key for key in world.alice.get("/v1/keys").json()["items"] if key["id"].startswith("person_")
    ]
    assert person["name"].startswith("ada of http")
    assert world.alice.call("DELETE", f"/v1/keys/{person['id']}").status_code == 200
    refused(get(client, token), 401, "unauthenticated")
    assert get(client, issuer.token(sub="grace")).status_code == 200
    refused(get(client, f"{person['id']}.secret"), 401, "unauthenticated")


@pytest.mark.parametrize(
    "url", ["http://issuer.example", "ftp://127.0.0.1", "issuer", "http://localhost.evil:80"]
)
def test_an_issuer_that_somebody_in_between_could_play_is_refused(url):
    with pytest.raises(OptionError, match="no https address"):
        Issuer(url, AUDIENCE)
