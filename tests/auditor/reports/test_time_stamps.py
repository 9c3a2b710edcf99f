"""RFC 3161 time stamps in packs: what is asked, what is believed, and every way in which one is refused."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

import pytest
from asn1crypto import tsp
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from auditor.commands import cli
from auditor.errors import AuditError, OptionError
from auditor.merkle.policy import Policy as LogPolicy
from auditor.reports.pack_verification import trust, verify_pack
from auditor.reports.packing import make_pack, redact
from auditor.reports.packs import TIME_STAMP, read_pack
from auditor.reports.time_stamps import over_http, read_roots, request_stamp, verify_stamp
from tests.auditor.reports.recorded_rows import key_of, load, signed_log
from tests.auditor.reports.time_stamping import START, Authority, serving

REPORT_KEY = key_of("example.com/reports")
MESSAGE = b"the statement"
MADE = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def stamp(authority):
    return request_stamp(MESSAGE, authority.answer)


def refused(work):
    with pytest.raises(AuditError) as caught:
        work()
    return caught.value.code


def verified(raw, authority, *, message=MESSAGE, made=MADE):
    return verify_stamp(raw, message, made, [authority.root], "pack")


def test_a_stamp_is_believed_with_its_root_and_names_the_time(stamp, authority):
    assert abs(verified(stamp, authority) - datetime.now(UTC)) < timedelta(minutes=2)
    pem = authority.root.public_bytes(serialization.Encoding.PEM)
    assert read_roots(pem + pem, "ca.pem") == (authority.root, authority.root)
    assert verify_stamp(stamp, MESSAGE, MADE, read_roots(pem + pem, "ca.pem"), "pack")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"nonce": 1}, "time-stamp-mismatch"),
        ({"status": "rejection"}, "time-stamp-refused"),
        (
            {"imprint": {"hash_algorithm": {"algorithm": "sha256"}, "hashed_message": b"x" * 32}},
            "time-stamp-mismatch",
        ),
        (
            {"imprint": {"hash_algorithm": {"algorithm": "sha1"}, "hashed_message": b"x" * 20}},
            "time-stamp-syntax",
        ),
    ],
)
def test_an_answer_to_something_else_is_not_packed(authority, change, code):
    assert refused(lambda: request_stamp(MESSAGE, lambda query: authority.answer(query, **change))) == code


@pytest.mark.parametrize("raw", [b"", b"<html>", b"\x30\x03\x02\x01\x00", tsp.TimeStampReq().dump])
def test_what_is_no_stamp_is_refused(authority, raw):
    found = b"\x30\x00" if callable(raw) else raw
    assert refused(lambda: verified(found, authority)) == "time-stamp-syntax"


def test_each_way_to_be_wrong_has_its_own_message(stamp, authority):
    said = {}

    def note(name, work):
        with pytest.raises(AuditError) as caught:
            work()
        said[name] = (caught.value.code, caught.value.message)

    def stamped_by(other, **options):
        return request_stamp(MESSAGE, lambda query: other.answer(query, **options))

    note("missing", lambda: verified(None, authority))
    note("other bytes", lambda: verified(stamp, authority, message=b"another"))
    note("other root", lambda: verified(stamp, Authority()))
    note("too early", lambda: verified(stamped_by(authority, at=MADE - timedelta(hours=1)), authority))
    mail = Authority(usages=(ExtendedKeyUsageOID.EMAIL_PROTECTION,))
    note("no time-stamping key", lambda: verified(stamped_by(mail), mail))
    over = Authority(until=START + timedelta(days=1))
    note("certificate had ended", lambda: verified(stamped_by(over), over))
    note("forged", lambda: verified(stamp[:-1] + bytes([stamp[-1] ^ 1]), authority))
    assert {name: code for name, (code, _) in said.items()} == {
        "missing": "time-stamp-missing",
        "other bytes": "time-stamp-mismatch",
        "other root": "time-stamp-untrusted",
        "too early": "time-stamp-mismatch",
        "no time-stamping key": "time-stamp-untrusted",
        "certificate had ended": "time-stamp-untrusted",
        "forged": "time-stamp-untrusted",
    }
    assert "before it says it was made" in said["too early"][1]
    assert said["no time-stamping key"][1].endswith("unsuitable certificate purpose")
    assert said["certificate had ended"][1].endswith("certificate has expired")
    assert len({message for _, message in said.values()}) == len(said)


def test_a_certificate_that_ended_after_the_stamp_does_not_spoil_it():
    old = Authority(until=START + timedelta(days=30))
    at = START + timedelta(days=10)
    stamp = request_stamp(MESSAGE, lambda query: old.answer(query, at=at))
    assert verified(stamp, old, made=at) == at


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((500, b""), "time-stamp-refused"),
        ((302, b""), "time-stamp-refused"),
        ((200, b"0" * 300_000), "time-stamp-refused"),
        ((200, b"<html>welcome</html>"), "time-stamp-syntax"),
    ],
)
def test_an_authority_that_answers_badly_is_named(answer, code):
    with serving(lambda _query: answer) as url:
        assert refused(lambda: request_stamp(MESSAGE, over_http(url))) == code


def test_an_authority_that_is_not_there_or_nowhere():
    assert refused(lambda: request_stamp(MESSAGE, over_http("http://127.0.0.1:9/"))) == "time-stamp-refused"
    with pytest.raises(OptionError, match="--timestamp"):
        over_http("ftp://example.com")
    with pytest.raises(OptionError, match=r"ca\.pem"):
        read_roots(b"no PEM", "ca.pem")


def test_without_the_extra_it_is_said_which(stamp, authority, monkeypatch):
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    with pytest.raises(OptionError, match="time stamps need rfc3161_client") as caught:
        verified(stamp, authority)
    assert "[tsa]" in caught.value.fix


def test_a_stamped_pack_verifies_with_its_root_redacted_or_not_and_says_when(authority, tmp_path):
    found = load(f"sqlite:///{tmp_path / 'rows.sqlite3'}")
    name = json.loads(found.both_weeks()[1])["id"]
    log, log_key = signed_log(found.store, tmp_path / "log")
    with serving(lambda query: (200, authority.answer(query))) as url:
        raw = make_pack(found.store, found.tenant, name, log, REPORT_KEY, None, over_http(url))
    plain = make_pack(found.store, found.tenant, name, log, REPORT_KEY)
    found.store.close()

    def check(pack, **options):
        return verify_pack(pack, trust([REPORT_KEY.public]), LogPolicy((log_key,)), **options)

    assert check(raw).stamped is None
    assert check(raw).has_stamp
    assert not check(plain).has_stamp
    assert check(redact(raw), roots=[authority.root]).stamped == check(raw, roots=[authority.root]).stamped
    assert refused(lambda: check(plain, roots=[authority.root])) == "time-stamp-missing"
    token = read_pack(raw)[TIME_STAMP]
    place = raw.index(token) + len(token) // 2
    flipped = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
    assert refused(lambda: check(flipped)) in {"pack-syntax", "pack-altered", "pack-member"}

    pack, roots = tmp_path / "pack.zip", tmp_path / "ca.pem"
    pack.write_bytes(raw)
    roots.write_bytes(authority.root.public_bytes(serialization.Encoding.PEM))
    keys = ["--vkey", REPORT_KEY.public.vkey, "--log-vkey", log_key.vkey]
    command = ["report", "verify", str(pack), *keys, "--format", "json"]
    for options, wanted in (
        ([], None),
        (["--tsa-ca", str(roots)], check(raw, roots=[authority.root]).stamped),
    ):
        told = json.loads(CliRunner().invoke(cli, [*command, *options]).output)
        assert told["has_time_stamp"]
        assert told["time_stamp"] == (wanted and wanted.isoformat())
