"""Alerts by e-mail, handed to a real SMTP server over real TLS: never in the clear, never lost, known when twice."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
from dataclasses import replace
from email import message_from_bytes
from email.policy import default

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from auditor.errors import OptionError
from auditor.schedules import alerts, mail
from auditor.schedules.mail import LEASE_SECONDS, MailServer
from auditor.schedules.policy import parse_policy
from auditor.schedules.slots import Slot
from auditor.schedules.timetable import SECOND
from auditor.service import clock, tenants
from auditor.service.webhooks import WAITS
from auditor.store import Store

SENDER = "auditor@example.com"
POLICY = (
    'schema = "auditor.policy/v1"\nname = "strict"\nversion = "1"\n'
    '[alerts]\nemail = ["a@example.com", "b@example.com"]\n'
)


class Inbox:
    """What the server does with letters."""

    def __init__(self):
        self.letters, self.answer = [], "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        if self.answer.startswith("250"):
            encrypted = server.transport.get_extra_info("sslcontext") is not None
            self.letters.append((envelope, encrypted))
        return self.answer


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost, which signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder


@pytest.fixture
def inbox():
    return Inbox()


def context_of(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


@pytest.fixture
def starttls(inbox, certificate):
    controller = Controller(inbox, hostname="127.0.0.1", port=0, tls_context=context_of(certificate))
    yield from running(controller, certificate)


@pytest.fixture
def smtps(inbox, certificate):
    controller = Controller(inbox, hostname="127.0.0.1", port=0, ssl_context=context_of(certificate))
    for server in running(controller, certificate):
        yield replace(server, at_once=True)


def running(controller, certificate):
    # Port 0 is the system's choice, which the controller's own first call to itself does not know.
    def chosen():
        return controller.server.sockets[0].getsockname()[1]

    controller._trigger_server = lambda: socket.create_connection(("127.0.0.1", chosen())).close()
    controller.start()
    port = chosen()
    yield MailServer("localhost", port, SENDER, authority=certificate / "cert.pem")
    controller.stop()


class World:
    def __init__(self, store):
        self.store, self.ahead = store, 0
        with store.transaction(writes=True) as connection:
            self.tenant = tenants.create_tenant(connection, "buyer")

    def alert(self, before="consistent", after="inconsistent"):
        empty = dict.fromkeys(Slot.__slots__)
        slot = Slot(
            **empty
            | {
                "id": "slt_1",
                "tenant_id": self.tenant.id,
                "provider": "acme",
                "slot_at": 0,
                "schedule_id": "sch_1",
                "verdict": after,
                "log_e": 23.0,
                "report_id": "rep_1",
                "findings": {"causes": [["weights/int4", 0.9]]},
            }
        )
        with self.store.transaction(writes=True) as connection:
            alerts.verdict_changed(connection, slot, before, parse_policy(POLICY, "acme"))

    def deliver(self, server):
        count = 0
        while mail.deliver_one(self.store, server, 0.5):
            count += 1
        return count

    def rows(self):
        with self.store.transaction() as connection:
            return connection.execute(mail.select(mail.mail_table)).all()


@pytest.fixture
def world(database_url):
    with Store.open(database_url) as store:
        world = World(store)
        clock.unsafe_shift(lambda: world.ahead)
        yield world
        clock.unsafe_shift(None)


@pytest.mark.parametrize("kind", ["starttls", "smtps"])
def test_a_changed_verdict_is_told_to_every_address_over_tls(world, inbox, kind, request):
    server = request.getfixturevalue(kind)
    world.alert()
    assert world.deliver(server) == 2
    assert sorted(envelope.rcpt_tos[0] for envelope, _ in inbox.letters) == ["a@example.com", "b@example.com"]
    envelope, encrypted = inbox.letters[0]
    assert encrypted
    letter = message_from_bytes(envelope.content, policy=default)
    assert letter["From"] == SENDER
    assert letter["Subject"] == "acme: inconsistent"
    text = letter.get_content()
    assert "inconsistent, after consistent" in text
    assert "weights/int4 (90%)" in text
    assert "rep_1" in text
    assert {row.state for row in world.rows()} == {"delivered"}
    assert world.deliver(server) == 0


def test_what_did_not_change_is_not_told(world):
    world.alert("consistent", "consistent")
    world.alert(None, "consistent")
    assert world.rows() == []


def test_a_server_with_another_certificate_gets_nothing_and_the_letter_waits(world, inbox, starttls):
    world.alert()
    assert world.deliver(replace(starttls, authority=None)) == 2
    assert inbox.letters == []
    rows = world.rows()
    assert {row.state for row in rows} == {"pending"}
    assert "CERTIFICATE_VERIFY_FAILED" in rows[0].error
    world.ahead += 2 * WAITS[0] * SECOND
    assert world.deliver(starttls) == 2
    assert len(inbox.letters) == 2


def test_without_tls_nothing_is_sent_to_another_machine(monkeypatch, inbox, certificate):
    controller = Controller(inbox, hostname="127.0.0.1", port=0)
    for server in running(controller, certificate):
        letter = mail.Letter("mail_1", "a@example.com", "s", "b", 0, 1, 1)
        monkeypatch.setattr(mail, "is_loopback", lambda _host: False)
        with pytest.raises(mail.smtplib.SMTPNotSupportedError):
            mail.send(letter, server)
        assert inbox.letters == []
        monkeypatch.undo()
        mail.send(letter, server)
        assert len(inbox.letters) == 1


def test_a_busy_server_is_tried_again_and_a_refusal_is_final(world, inbox, starttls):
    inbox.answer = "451 later"
    world.alert()
    world.deliver(starttls)
    assert {(row.state, row.error) for row in world.rows()} == {("pending", "the server answered 451")}
    inbox.answer = "554 no"
    world.ahead += 2 * WAITS[0] * SECOND
    world.deliver(starttls)
    assert {(row.state, row.error) for row in world.rows()} == {("failed", "the server answered 554")}


def test_a_sender_that_dies_leaves_the_letter_to_another_under_the_same_message_id(world, inbox, starttls):
    world.alert()
    with world.store.transaction(writes=True) as connection:
        lost = mail.claim(connection)
    mail.send(lost, starttls)  # and dies before it could note that
    world.deliver(starttls)
    world.ahead += (LEASE_SECONDS + 1) * SECOND
    world.deliver(starttls)
    ids = [message_from_bytes(envelope.content)["Message-ID"] for envelope, _ in inbox.letters]
    assert len(ids) == 3
    assert len(set(ids)) == 2
    with world.store.transaction(writes=True) as connection:
        assert not mail.settle(connection, lost, None, final=False, chance=0.5), "the zombie's note"


def test_a_server_that_never_answers_is_given_up_after_the_last_attempt(world):
    world.alert()
    dead = MailServer("127.0.0.1", 1, SENDER)
    for _ in range(len(WAITS) + 2):
        world.deliver(dead)
        world.ahead += 2 * WAITS[-1] * SECOND
    assert {row.state for row in world.rows()} == {"failed"}
    assert "ConnectionRefused" in world.rows()[0].error


def test_a_login_is_made_inside_tls_only(inbox, certificate, monkeypatch):
    seen = []

    def authenticate(server, session, envelope, mechanism, data):
        seen.append((data.login, data.password, session.ssl is not None))
        return AuthResult(success=True)

    controller = Controller(
        inbox,
        hostname="127.0.0.1",
        port=0,
        tls_context=context_of(certificate),
        authenticator=authenticate,
        auth_required=True,
        auth_require_tls=True,
    )
    for server in running(controller, certificate):
        monkeypatch.setenv("AUDITOR_SMTP_PASSWORD", "hunter2")
        url = f"smtp://me%40x@localhost:{server.port}"
        mail.send(
            mail.Letter("mail_1", "a@example.com", "s", "b", 0, 1, 1),
            MailServer.of_url(url, SENDER, certificate / "cert.pem"),
        )
    assert seen == [(b"me@x", b"hunter2", True)]
    assert len(inbox.letters) == 1


@pytest.mark.parametrize(
    ("url", "sender", "said"),
    [
        ("http://mail", SENDER, "not the URL"),
        ("smtp://", SENDER, "not the URL"),
        ("smtps://mail:99999", SENDER, "not the URL"),
        ("smtps://me:secret@mail", SENDER, "holds a password"),
        ("smtps://mail", None, "no address"),
        ("smtps://mail", "a@b\r\nBcc: c@d", "no address"),
    ],
)
def test_a_mail_server_that_cannot_be_is_refused(url, sender, said):
    with pytest.raises(OptionError, match=said) as caught:
        MailServer.of_url(url, sender)
    assert "secret" not in str(caught.value)
