"""Evidence packs: what verifies, what third parties accept, and that nothing in one can be changed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey
from sqlalchemy import select

from auditor.errors import AuditError
from auditor.merkle.keys import PublicKey, SeedSigner
from auditor.merkle.policy import Policy as LogPolicy
from auditor.reports.canonical import canonical
from auditor.reports.commitments import salt_of
from auditor.reports.envelopes import key_id, open_envelope, seal
from auditor.reports.pack_verification import TrustedKey, disclosure, trust, verify_pack
from auditor.reports.packing import make_pack, redact
from auditor.reports.packs import read_pack, write_pack
from auditor.reports.statements import SVR, pack_statement
from auditor.service.errors import NotFinishedError, NotFoundError
from auditor.store_schema import tenant_salt
from tests.auditor.reports.recorded_rows import kept_logs, key_of, load, signed_log

REPORT_KEY = key_of("example.com/reports")


@dataclass(frozen=True)
class Packed:
    raw: bytes
    report: bytes
    log_key: PublicKey
    tenant: str
    other: str
    salts: dict

    def verify(self, raw=None, *, keys=None, log_policy=None):
        policy = log_policy or LogPolicy((self.log_key,))
        return verify_pack(raw or self.raw, keys or trust([REPORT_KEY.public]), policy)

    def refused(self, raw, **options):
        with pytest.raises(AuditError) as caught:
            self.verify(raw, **options)
        return caught.value.code

    def with_members(self, signer: SeedSigner | None = REPORT_KEY, **changed):
        """The pack with members changed and, unless there is no signer, signed for anew."""
        members = read_pack(self.raw) | {name.replace("__", "."): c for name, c in changed.items()}
        if signer is not None:
            del members["pack.dsse.json"]
            said = pack_statement(members, "rep", "2026-11-20T00:00:00.000000Z")
            members["pack.dsse.json"] = seal(said, [signer])
        return write_pack(members)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    found = load(f"sqlite:///{folder / 'rows.sqlite3'}")
    report = found.both_weeks()[1]
    name = json.loads(report)["id"]
    log, log_key = signed_log(found.store, folder / "log")
    raw = make_pack(found.store, found.tenant, name, log, REPORT_KEY, kept_logs(folder / "blobs"))
    with found.store.transaction() as connection:
        salts = dict(connection.execute(select(tenant_salt.c.tenant_id, tenant_salt.c.salt)).all())
    yield Packed(raw, report, log_key, found.tenant, found.other, salts)
    found.store.close()


def test_a_pack_verifies_offline_and_says_what_is_in_it(packed):
    found = packed.verify()
    assert found.document == json.loads(packed.report)
    assert found.withheld == 0
    assert len(found.disputes) == 2
    exceptions = found.document["exceptions"]
    assert set(found.disclosed) == {(e["evidence"], f) for e in exceptions for f in ("prompt", "output")}
    assert json.loads(found.disclosed[exceptions[0]["evidence"], "output"])["output_token_ids"]


def test_the_same_pack_comes_out_again(packed, tmp_path):
    found = load(f"sqlite:///{tmp_path / 'rows.sqlite3'}")
    report = found.both_weeks()[1]
    assert report == packed.report
    log, _ = signed_log(found.store, tmp_path / "log")
    logs = kept_logs(tmp_path / "blobs")
    first = make_pack(found.store, found.tenant, json.loads(report)["id"], log, REPORT_KEY, logs)
    assert first == make_pack(found.store, found.tenant, json.loads(report)["id"], log, REPORT_KEY, logs)
    found.store.close()


def test_a_report_that_the_log_does_not_hold_yet_gives_no_pack(sqlite, tmp_path):
    log, _ = signed_log(sqlite.store, tmp_path / "log")
    name = json.loads(sqlite.week(0))["id"]
    with pytest.raises(NotFinishedError):
        make_pack(sqlite.store, sqlite.tenant, name, log, REPORT_KEY)
    with pytest.raises(NotFoundError):
        make_pack(sqlite.store, sqlite.other, name, log, REPORT_KEY)


def third_party_key(public=REPORT_KEY.public):
    return SSlibKey(key_id(public), "ed25519", "ed25519", {"public": public.material.hex()})


@pytest.mark.parametrize("name", ["report", "svr", "pack"])
def test_third_party_tools_accept_the_envelopes(packed, name):
    raw = read_pack(packed.raw)[f"{name}.dsse.json"]
    envelope = Envelope.from_dict(json.loads(raw))
    assert envelope.verify([third_party_key()], 1)
    other = key_of(REPORT_KEY.name, b"another")
    impostor = SSlibKey(
        key_id(REPORT_KEY.public), "ed25519", "ed25519", {"public": other.public.material.hex()}
    )
    with pytest.raises(VerificationError):
        Envelope.from_dict(json.loads(raw)).verify([impostor], 1)
    statement = Statement.copy_from_pb(_parsed(envelope.payload))
    statement.validate()


def _parsed(payload):
    from google.protobuf import json_format
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    return json_format.Parse(payload, Message())


def test_we_accept_third_party_envelopes(packed):
    envelope = Envelope.from_dict(json.loads(read_pack(packed.raw)["svr.dsse.json"]))
    ours = json.dumps(envelope.to_dict()).encode()
    payload, signers = open_envelope(ours, [REPORT_KEY.public])
    assert payload == envelope.payload
    assert signers == (REPORT_KEY.public,)


def test_the_standard_predicate_lists_what_passed_and_nothing_else(packed):
    value = json.loads(open_envelope(read_pack(packed.raw)["svr.dsse.json"], [REPORT_KEY.public])[0])
    assert value["predicateType"] == SVR
    predicate = value["predicate"]
    assert set(predicate) == {"verifier", "timeCreated", "properties"}
    assert set(predicate["verifier"]) == {"id", "policies"}
    assert predicate["properties"] == ["AUDITOR_EVD_1"], "two providers are convicted: little holds for all"


def test_any_flipped_byte_is_refused(packed):
    chosen = random.Random(0).sample(range(len(packed.raw)), 150)
    edges = [*range(40), *range(len(packed.raw) - 60, len(packed.raw))]
    codes = set()
    for at in [*edges, *chosen]:
        broken = bytearray(packed.raw)
        broken[at] ^= 1 << (at % 8)
        codes.add(packed.refused(bytes(broken)))
    assert codes <= {
        "pack-syntax",
        "pack-altered",
        "pack-member",
        "envelope-syntax",
        "signature-invalid",
        "key-unknown",
    }


def test_a_flipped_byte_of_each_member_is_refused_with_its_own_code(packed):
    members = read_pack(packed.raw)
    for name, content in members.items():
        broken = bytearray(content)
        broken[len(broken) // 2] ^= 1
        code = packed.refused(write_pack(members | {name: bytes(broken)}))
        if name == "pack.dsse.json":
            assert code in {"signature-invalid", "envelope-syntax", "key-unknown"}
        else:
            assert code == "pack-member", name


def other_week(packed, tmp_path):
    found = load(f"sqlite:///{tmp_path / 'rows.sqlite3'}")
    report = found.week(0)
    log, _ = signed_log(found.store, tmp_path / "log")
    raw = make_pack(found.store, found.tenant, json.loads(report)["id"], log, REPORT_KEY)
    found.store.close()
    return read_pack(raw)


def test_what_is_swapped_by_a_holder_of_the_key_is_still_noticed(packed, tmp_path):
    """A dishonest signer, or a mistake: each member is replaced by another report's and signed for anew."""
    other = other_week(packed, tmp_path)
    wanted = {
        "report.json": "statement-mismatch",
        "report.dsse.json": "statement-mismatch",
        "svr.dsse.json": "statement-mismatch",
        "entry.json": "entry-mismatch",
        "report.tlog-proof": "proof-root",
    }
    for name, code in wanted.items():
        assert packed.refused(packed.with_members(**{name: other[name]})) == code, name
    assert packed.refused(packed.with_members(**{"policy.toml": b'schema = "x"\n'})) == "policy-mismatch"
    assert (
        packed.refused(packed.with_members(**{"report.json": packed.report[:-1] + b" \n"}))
        == "report-invalid"
    )


@pytest.mark.parametrize("broken", [{}, {"providers": 1}, {"policy": []}, {"exceptions": [{}]}])
def test_a_signed_file_that_is_no_report_is_refused_and_not_stumbled_over(packed, broken):
    document = {"schema": "auditor.report/v1"} | ({**json.loads(packed.report), **broken} if broken else {})
    assert packed.refused(packed.with_members(**{"report.json": canonical(document)})) in {
        "report-invalid",
        "statement-mismatch",
    }


@pytest.mark.parametrize("predicate", [None, [], "x", {"timeCreated": 1}, {"timeCreated": "2026-01-01"}])
def test_statements_without_a_time_are_refused(packed, predicate):
    said = json.dumps({"predicateType": SVR, "subject": [], "predicate": predicate}).encode()
    assert (
        packed.refused(packed.with_members(**{"svr.dsse.json": seal(said, [REPORT_KEY])}))
        == "statement-mismatch"
    )


def test_unknown_stale_and_forged_keys(packed):
    stranger = key_of("example.com/reports", b"stranger")
    assert packed.refused(packed.raw, keys=trust([stranger.public])) == "key-unknown"
    assert packed.refused(packed.with_members(signer=stranger)) == "key-unknown"
    assert packed.refused(packed.with_members(signer=None, **{"keys.txt": b"x"})) == "pack-member"
    now = datetime.now(UTC)
    stale = [TrustedKey(REPORT_KEY.public, until=datetime(2026, 1, 1, tzinfo=UTC))]
    early = [TrustedKey(REPORT_KEY.public, since=datetime(2999, 1, 1, tzinfo=UTC))]
    assert packed.refused(packed.raw, keys=stale) == "key-stale"
    assert packed.refused(packed.raw, keys=early) == "key-stale"
    fresh = TrustedKey(
        REPORT_KEY.public, since=datetime(2020, 1, 1, tzinfo=UTC), until=now.replace(year=2999)
    )
    assert packed.verify(keys=[fresh])
    other_log = LogPolicy((key_of("example.com/log", b"stranger").public,))
    assert packed.refused(packed.raw, log_policy=other_log) == "key-unknown"
    assert packed.refused(packed.raw, log_policy=LogPolicy((REPORT_KEY.public,))) == "origin-unknown"


def test_members_cannot_be_added_nor_required_ones_dropped(packed):
    members = read_pack(packed.raw)
    assert packed.refused(write_pack(members | {"evil.html": b"x"})) == "pack-syntax"
    assert packed.refused(write_pack(members | {"../etc/passwd": b"x"})) == "pack-syntax"
    assert packed.refused(write_pack(members | {"disclosures/9999-prompt.json": b"{}"})) == "pack-member"
    for name in members:
        if "/" not in name:
            assert (
                packed.refused(write_pack({n: c for n, c in members.items() if n != name})) == "pack-member"
            )


def test_no_zip_a_compressed_one_and_a_trailing_byte_are_refused(packed, tmp_path):
    import zipfile

    assert packed.refused(b"not a zip") == "pack-syntax"
    assert packed.refused(packed.raw + b"\0") in {"pack-altered", "pack-syntax"}
    assert packed.refused(b"\0" + packed.raw) in {"pack-altered", "pack-syntax"}
    squeezed = tmp_path / "z.zip"
    with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("report.json", packed.report)
    assert packed.refused(squeezed.read_bytes()) == "pack-syntax"


def test_a_redacted_pack_verifies_and_holds_no_text(packed):
    redacted = redact(packed.raw)
    found = packed.verify(redacted)
    assert found.document == json.loads(packed.report)
    assert not found.disclosed
    assert not found.disputes
    assert found.withheld == 2 * len(found.document["exceptions"])
    texts = packed.verify().disclosed
    for text in texts.values():
        value = json.loads(text)
        for said in (value.get("text"), *(m["content"] for m in value.get("messages") or ())):
            assert not said or said.encode() not in redacted
        for ids in (value.get("output_token_ids"), value.get("prompt_token_ids")):
            assert not ids or json.dumps(ids, separators=(",", ":")).encode() not in redacted


def test_a_pack_is_redacted_in_part(packed):
    kept = redact(packed.raw, keep=["disclosures/*-prompt.json"])
    found = packed.verify(kept)
    assert {name for _, name in found.disclosed} == {"prompt"}
    assert found.withheld == len(found.document["exceptions"])


def test_a_false_disclosure_is_refused(packed):
    one = json.loads(packed.report)["exceptions"][0]["evidence"]
    salt = salt_of(bytes(packed.salts[packed.tenant]), one, "output")
    forged = disclosure(one, "output", salt, b'{"text":"something harmless"}')
    assert (
        packed.refused(packed.with_members(**{"disclosures/0-output.json": forged})) == "disclosure-mismatch"
    )


def test_a_pack_says_nothing_about_another_tenant(packed, tmp_path):
    found = load(f"sqlite:///{tmp_path / 'rows.sqlite3'}")
    with found.store.transaction() as connection:
        from auditor.store_schema import audit, evidence, trace_log, verdict

        theirs = connection.execute(
            select(audit.c.id, trace_log.c.id.label("log"), trace_log.c.digest, verdict.c.digest.label("v"))
            .join(trace_log, trace_log.c.id == audit.c.trace_log_id)
            .join(verdict, verdict.c.audit_id == audit.c.id)
            .where(audit.c.tenant_id == found.other)
        ).all()
        bodies = connection.execute(
            select(evidence.c.body).where(evidence.c.audit_id.in_([row.id for row in theirs]))
        ).scalars()
        foreign = {found.other, "rival", *(value for row in theirs for value in row)}
        foreign |= {json.loads(bytes(body))["id"] for body in bodies}
    assert len(foreign) > 60
    for said in foreign:
        needle = said.removeprefix("sha256:").encode()
        assert needle not in packed.raw, said
    # The same rows without the other tenant give the same report: no count crosses over.
    with found.store.transaction(writes=True) as connection:
        from auditor.store_schema import event, job, log_entry, metadata

        for table in (metadata.tables["exhibit"], evidence, verdict, job, event):
            connection.execute(table.delete().where(table.c.audit_id.in_([row.id for row in theirs])))
        connection.execute(log_entry.delete().where(log_entry.c.subject.in_([row.id for row in theirs])))
        connection.execute(audit.delete().where(audit.c.tenant_id == found.other))
    assert found.both_weeks()[1] == packed.report
    found.store.close()


def test_salts_differ_between_tenants_requests_and_fields(packed):
    secrets = list(packed.salts.values())
    made = {salt_of(bytes(s), f"aud_{n}/0", f) for s in secrets for n in (1, 2) for f in ("prompt", "output")}
    assert len(made) == 8


def test_the_pack_needs_no_database_and_no_network_to_verify(packed, tmp_path):
    (tmp_path / "pack.zip").write_bytes(packed.raw)
    audit = Path(sys.executable).parent / "audit"
    command = [
        audit,
        "report",
        "verify",
        "pack.zip",
        "--vkey",
        REPORT_KEY.public.vkey,
        "--log-vkey",
        packed.log_key.vkey,
    ]
    environment = os.environ | {"AUDITOR_DATABASE_URL": "postgresql://nobody@192.0.2.1/none"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    (tmp_path / "pack.zip").write_bytes(packed.raw[:-30] + b"\0" * 30)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert "error[pack-" in done.stderr


def test_replaced_times_of_a_statement_are_noticed(packed):
    members = read_pack(packed.raw)
    payload, _ = open_envelope(members["svr.dsse.json"], [REPORT_KEY.public])
    value = json.loads(payload)
    value["predicate"]["properties"] = ["AUDITOR_CONSISTENT"]
    forged = seal(json.dumps(value, sort_keys=True, separators=(",", ":")).encode(), [REPORT_KEY])
    assert packed.refused(packed.with_members(**{"svr.dsse.json": forged})) == "statement-mismatch"
    assert replace(packed, raw=packed.raw).verify()
