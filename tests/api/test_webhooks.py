"""Webhooks: told once committed, signed, retried, and sent nowhere but to public addresses that were checked."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import socket
import time

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.errors import OptionError
from auditor.service import egress as egress_module
from auditor.service import jobs, webhooks
from auditor.service.delivering import Sender
from auditor.service.egress import Egress, is_public
from auditor.service.webhook_signing import open_webhook_key
from auditor.service.webhooks import WAITS, Outcome, next_wait
from tests.api.conftest import LINE, refused
from tests.api.receiver import make_certificate, receiving


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def egress(certificate):
    return Egress.of_options(["127.0.0.1/32"], None, certificate)


@pytest.fixture
def receiver(certificate):
    with receiving("127.0.0.1", certificate) as receiver:
        yield receiver


@pytest.fixture
def sender(world, egress):
    return Sender(world.service.store, world.service.webhooks, egress)


def make(party, url, types=(), key="hook"):
    order = {"url": url, "types": list(types)}
    return party.call("POST", "/v1/webhooks", json=order, headers={"Idempotency-Key": key})


def deliveries(party, hook):
    return party.get(f"/v1/webhooks/{hook['id']}/deliveries").json()["items"]


def due_now(world):
    with world.service.store.transaction(writes=True) as connection:
        connection.exec_driver_sql("UPDATE delivery SET next_at = 0 WHERE state = 'pending'")


def verify(hook, headers, body):
    """As a receiver does, from the text of the specification."""
    version, signature = headers["webhook-signature"].split(",")
    assert version == "v1a"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(hook["public_key"].removeprefix("whpk_"))
    Ed25519PublicKey.from_public_bytes(key).verify(base64.b64decode(signature), signed)


def test_a_verdict_is_told_once_signed_and_only_to_its_tenant(world, receiver, sender):
    url = f"https://localhost:{receiver.port}/hook?x=1"
    made = make(world.alice, url)
    assert made.status_code == 201, made.text
    hook = made.json()
    assert make(world.alice, url).json() == hook
    assert world.alice.get(made.headers["location"]).json() == hook
    other = make(world.bob, url).json()
    assert other["public_key"] != hook["public_key"]
    audit = world.alice.submit().json()
    world.work()
    assert sender.send_due() == 1
    assert sender.send_due() == 0
    ((path, headers, body),) = receiver.came
    assert (path, headers["Host"]) == ("/hook?x=1", f"localhost:{receiver.port}")
    verify(hook, headers, body)
    with pytest.raises(InvalidSignature):
        verify(hook, headers, body + b" ")
    with pytest.raises(InvalidSignature):
        verify(other, headers, body)
    message = json.loads(body)
    assert message["type"] == "audit.done"
    verdict = world.alice.get(f"/v1/audits/{audit['id']}").json()["verdict_digest"]
    assert message["data"] == {
        "audit": audit["id"],
        "state": "done",
        "verdict": "inconsistent",
        "verdict_digest": verdict,
    }
    (delivery,) = deliveries(world.alice, hook)
    assert (delivery["state"], delivery["status"], delivery["attempts"]) == ("delivered", 200, 1)
    assert delivery["id"] == headers["webhook-id"]


def test_types_are_chosen_and_ends_without_a_verdict_are_told_too(world, receiver, sender):
    url = f"https://localhost:{receiver.port}/"
    make(world.alice, url, ["audit.cancelled"])
    world.alice.submit()
    world.work()
    path = f"/v1/audits/{world.alice.submit(LINE % 2).json()['id']}/cancel"
    for _ in range(2):
        world.alice.call("POST", path)
    sender.send_due()
    assert [json.loads(body)["type"] for _, _, body in receiver.came] == ["audit.cancelled"]


def test_what_was_undone_is_not_told(world, receiver):
    make(world.alice, f"https://localhost:{receiver.port}/")
    store = world.service.store
    with pytest.raises(ZeroDivisionError), store.transaction(writes=True) as connection:
        assert webhooks.enqueue(connection, world.alice.tenant.id, "audit.done", {}) == 1
        raise ZeroDivisionError
    with store.transaction() as connection:
        assert not webhooks.is_due(connection)
    with store.transaction(writes=True) as connection, pytest.raises(KeyError):
        webhooks.enqueue(connection, world.alice.tenant.id, "audit.unheard", {})


def test_a_failed_attempt_is_made_again_with_the_same_id_until_the_last(world, receiver, sender):
    hook = make(world.alice, f"https://localhost:{receiver.port}/").json()
    world.alice.submit()
    world.work()
    receiver.plan = [500, 307, "drop", 500, 500, 500, 500, 500, 500, 500]
    errors = []
    for attempt in range(1, 11):
        assert sender.send_due() == 1
        assert sender.send_due() == 0, "it waits"
        (delivery,) = deliveries(world.alice, hook)
        assert delivery["attempts"] == attempt
        assert delivery["state"] == ("failed" if attempt == 10 else "pending")
        errors.append(delivery["error"])
        due_now(world)
    assert sender.send_due() == 0
    assert len({headers["webhook-id"] for _, headers, _ in receiver.came}) == 1
    assert [path for path, _, _ in receiver.came] == ["/"] * 10, "no redirect was followed"
    assert errors[:3] == [
        "status 500",
        "a redirect, which is not followed",
        "the exchange broke off: RemoteProtocolError",
    ]


def test_waits_are_those_of_the_published_schedule_with_jitter():
    assert sum(WAITS) == pytest.approx(75.6 * 3600, rel=1e-3)
    for attempt, wait in enumerate(WAITS, 1):
        assert next_wait(attempt, 0.0) == pytest.approx(0.8 * wait)
        assert next_wait(attempt, 0.5) == pytest.approx(wait)
    assert next_wait(len(WAITS) + 1, 0.5) is None


def test_a_receiver_that_is_gone_is_not_asked_again(world, receiver, sender):
    hook = make(world.alice, f"https://localhost:{receiver.port}/").json()
    for number in range(2):
        world.alice.submit(LINE % number)
        world.work()
        receiver.plan = [410]
        sender.send_due()
    assert len(receiver.came) == 1
    assert [d["state"] for d in deliveries(world.alice, hook)] == ["failed"]
    assert world.alice.get(f"/v1/webhooks/{hook['id']}").json()["disabled"]


def test_a_deleted_webhook_hears_nothing_more_and_a_late_sender_records_nothing(world, receiver, sender):
    hook = make(world.alice, f"https://localhost:{receiver.port}/").json()
    world.alice.submit()
    world.work()
    store = world.service.store
    with store.transaction(writes=True) as connection:
        (sending,) = webhooks.claim(connection, 9, {})
        assert webhooks.claim(connection, 9, {}) == [], "a claim is a lease"
    due_now(world)
    with store.transaction(writes=True) as connection:
        (again,) = webhooks.claim(connection, 9, {})
        assert not webhooks.settle(connection, sending, Outcome(200), 0.5), "another sender holds it"
        assert again.id == sending.id
    assert world.alice.call("DELETE", f"/v1/webhooks/{hook['id']}").status_code == 204
    with store.transaction(writes=True) as connection:
        assert not webhooks.settle(connection, again, Outcome(410, "gone", gone=True), 0.5)
    due_now(world)
    assert sender.send_due() == 0
    refused(world.alice.call("DELETE", f"/v1/webhooks/{hook['id']}"), 404, "not-found")
    assert world.alice.get("/v1/webhooks").json()["items"] == []


def test_one_tenants_slow_receivers_hold_nobody_up(world, receiver, sender):
    hook = make(world.alice, f"https://localhost:{receiver.port}/slow").json()
    make(world.bob, f"https://localhost:{receiver.port}/quick")
    with world.service.store.transaction(writes=True) as connection:
        for _ in range(9):
            webhooks.enqueue(connection, world.alice.tenant.id, "audit.done", {})
        webhooks.enqueue(connection, world.bob.tenant.id, "audit.done", {})
        mine, his = world.alice.tenant.id, world.bob.tenant.id
        claimed = webhooks.claim(connection, 32, {})
        assert sorted(s.tenant_id for s in claimed) == sorted([mine] * webhooks.AT_ONCE + [his])
        assert webhooks.claim(connection, 32, {mine: webhooks.AT_ONCE}) == []
        assert len(webhooks.claim(connection, 32, {mine: webhooks.AT_ONCE - 1})) == 1
    assert len(deliveries(world.alice, hook)) == 9


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "https://",
        "https://user:pass@example.com/",
        "https://example.com/#x",
        "https://example.com:0/",
        "https://exa mple.com/",
        "https://exámple.com/",
        "https://example.com\\@127.0.0.1/",
        "https://[::1",
        "file:///etc/passwd",
        "https://example.com/" + "x" * 2000,
    ],
)
def test_an_url_that_can_never_be_sent_to_is_refused(world, url):
    refused(make(world.alice, url), 422, "request-invalid")


def test_unknown_types_and_too_many_webhooks_are_refused(world):
    refused(make(world.alice, "https://example.com/", ["canary"]), 422, "request-invalid")
    for number in range(webhooks.MOST_WEBHOOKS):
        assert make(world.alice, "https://example.com/", key=f"h{number}").status_code == 201
    refused(make(world.alice, "https://example.com/", key="more"), 409, "conflict")
    page = world.alice.get("/v1/webhooks?limit=15")
    rest = world.alice.get(page.links["next"]["url"]).json()
    assert len(page.json()["items"]) + len(rest["items"]) == webhooks.MOST_WEBHOOKS


NOT_PUBLIC = [
    "127.0.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "ff02::1",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public_are_never_connected_to(address, monkeypatch):
    assert not is_public(ipaddress.ip_address(address))
    asked = []

    def answer(host, port, *_, **__):
        asked.append(host)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))
        return [public, (family, socket.SOCK_STREAM, 6, "", (address, port))]

    def connected(*_, **__):
        raise AssertionError("connected")

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(socket.socket, "connect", connected)
    monkeypatch.setattr(socket.socket, "connect_ex", connected)
    outcome = asyncio.run(Egress().post("https://evil.test/", {}, b"{}"))
    assert outcome == Outcome(None, "the name resolves to an address that is not public")
    assert asked == ["evil.test"]


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_other_spellings_of_this_machine_are_refused(receiver, host, certificate):
    egress = Egress.of_options([], None, certificate)
    outcome = asyncio.run(egress.post(f"https://{host}:{receiver.port}/", {}, b"{}"))
    assert outcome.status is None
    assert outcome.error.startswith(("the name", "the URL"))
    assert receiver.came == []


def test_a_name_that_is_rebound_between_check_and_connection_gains_nothing(
    receiver, certificate, egress, monkeypatch
):
    real, asked = socket.getaddrinfo, []

    def rebinding(host, port, *arguments, **options):
        if host not in ("hook.test", b"hook.test"):
            return real(host, port, *arguments, **options)
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with receiving("127.0.0.2", certificate) as victim:
        url = f"https://hook.test:{receiver.port}/"
        assert asyncio.run(egress.post(url, {}, b"{}")) == Outcome(200)
        assert len(asked) == 1, "resolved once"
        assert receiver.came[0][1]["Host"] == f"hook.test:{receiver.port}"
        outcome = asyncio.run(egress.post(f"https://hook.test:{victim.port}/", {}, b"{}"))
        assert outcome.error == "the name resolves to an address that is not public"
        assert victim.came == []


def test_a_certificate_of_another_name_is_refused(certificate, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    with receiving("127.0.0.1", make_certificate(folder, ["other.test"], [])) as receiver:
        for trusted in (folder / "receiver.pem", certificate):
            egress = Egress.of_options(["127.0.0.0/8"], None, trusted)
            outcome = asyncio.run(egress.post(f"https://localhost:{receiver.port}/", {}, b"{}"))
            assert outcome == Outcome(None, "TLS failed")
        assert receiver.came == []


def test_a_slow_and_an_endless_answer_are_cut_off(receiver, egress, monkeypatch):
    url = f"https://localhost:{receiver.port}/"
    receiver.plan = ["endless"]
    assert asyncio.run(egress.post(url, {}, b"{}")) == Outcome(200)
    assert receiver.sent < 16 << 20, "most of that is in buffers of the system"
    monkeypatch.setattr(egress_module, "MOST_SECONDS", 0.5)
    receiver.plan = ["slow"]
    started = time.monotonic()
    assert asyncio.run(egress.post(url, {}, b"{}")) == Outcome(None, "no answer within 0.5 s")
    assert time.monotonic() - started < 2


def test_options_that_name_no_network_are_refused(tmp_path):
    for options in (["x"], None, None), ([], "proxy:1", None), ([], None, tmp_path / "none.pem"):
        with pytest.raises(OptionError):
            Egress.of_options(*options)


def test_the_key_is_made_once_and_kept(tmp_path):
    first = open_webhook_key(tmp_path / "webhook.key")
    assert open_webhook_key(tmp_path / "webhook.key") == first
    assert (tmp_path / "webhook.key").stat().st_mode & 0o777 == 0o600
    assert first.public_key("whk_1") != first.public_key("whk_2")
    assert jobs.webhooks is webhooks
