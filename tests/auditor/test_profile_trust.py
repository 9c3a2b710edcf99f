"""Who vouches for a profile: every way to slip in another one is refused under its own code."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from auditor.commands import cli
from auditor.errors import AuditError, KeySyntaxError, OptionError, RevocationsError
from auditor.key_files import generate, write_key
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.profile import parse_profile, profile_bytes
from auditor.profile_revocations import Revocations, read_revocations, revocations_note
from auditor.profile_trust import Trust, sign_profile, trusted_key
from auditor.profiles import SHIPPED, profile_finder
from auditor.store import Store

NOW = datetime(2026, 12, 1, tzinfo=UTC)
SIGNER = SeedSigner("example.com/calibration", Algorithm.ED25519, bytes(32))
OTHER = SeedSigner("example.com/calibration", Algorithm.ED25519, bytes([1]) * 32)  # same name, another key
TRACES = Path(__file__).parent.parent / "traces"


@cache
def profile():
    raw = gzip.decompress((SHIPPED / "vllm-cpu-bf16-plain.json.gz").read_bytes())
    small = parse_profile(raw, where="x")
    return replace(small, deviations={}, created="2026-11-20T00:00:00Z", expires="2027-01-01T00:00:00Z")


def trust(*, now=NOW, keys=(SIGNER.public,), **listed):
    held = Revocations(NOW, NOW + timedelta(days=9), **listed) if listed else None
    return Trust(keys, held, now)


def code_of(check):
    with pytest.raises(AuditError) as caught:
        check()
    return caught.value.code


def test_a_signature_survives_the_file_and_leaves_the_id_alone():
    signed = parse_profile(profile_bytes(sign_profile(profile(), SIGNER)), where="x")
    assert signed.id == profile().id
    checked = trust().check(signed)
    assert checked.signed_by == (f"{SIGNER.name}+{SIGNER.public.key_id.hex()}",)
    assert signed.signed_by == ()


def test_several_may_sign_and_one_trusted_is_enough():
    both = sign_profile(sign_profile(profile(), OTHER), SIGNER)
    assert len(trust(keys=(SIGNER.public, OTHER.public)).check(both).signed_by) == 2
    assert len(trust().check(both).signed_by) == 1


def test_an_unsigned_profile_is_refused():
    assert code_of(lambda: trust().check(profile())) == "profile-unsigned"


def test_a_foreign_key_is_refused_even_under_the_same_name():
    assert code_of(lambda: trust().check(sign_profile(profile(), OTHER))) == "key-unknown"


@pytest.mark.parametrize(
    "change",
    [
        {"created": "2026-11-30T00:00:00Z"},  # neither is in the id: an old profile made to look new
        {"expires": "2099-01-01T00:00:00Z"},
        {"outside": 5},
        {"honest": ()},
    ],
)
def test_anything_changed_after_signing_is_refused(change):
    signed = sign_profile(profile(), SIGNER)
    assert code_of(lambda: trust().check(replace(signed, **change))) == "signature-invalid"


def test_a_signature_of_another_profile_is_refused():
    other = replace(profile(), outside=7)
    assert (
        code_of(lambda: trust().check(replace(other, note=sign_profile(profile(), SIGNER).note)))
        == "signature-invalid"
    )
    assert code_of(
        lambda: sign_profile(replace(other, note=sign_profile(profile(), SIGNER).note), SIGNER)
    ) == ("signature-invalid")


@given(st.data())
def test_a_flipped_byte_of_the_file_is_never_accepted_as_something_else(data):
    raw = _signed_bytes()
    place = data.draw(st.integers(0, len(raw) - 1))
    flipped = raw[:place] + bytes([raw[place] ^ (1 << data.draw(st.integers(0, 7)))]) + raw[place + 1 :]
    try:
        found = trust().check(parse_profile(flipped, where="x"))
    except AuditError:
        return
    assert profile_bytes(found) == raw  # white space between JSON tokens, at most


@cache
def _signed_bytes():
    return profile_bytes(sign_profile(replace(profile(), honest=profile().honest[:2]), SIGNER))


@pytest.mark.parametrize("name", ["requests", "tokens", "mismatches"])
def test_a_summary_that_is_not_of_its_rows_is_refused(name):
    told = json.loads(_signed_bytes())
    told["honest"][name] += 1
    assert code_of(lambda: parse_profile(json.dumps(told).encode(), where="x")) == "profile-invalid"


def test_flipped_bits_of_the_signature_are_refused():
    signed = sign_profile(profile(), SIGNER)
    for place in range(len(signed.note) - 60, len(signed.note) - 4):
        other = "A" if signed.note[place] != "A" else "B"
        forged = replace(signed, note=signed.note[:place] + other + signed.note[place + 1 :])
        assert code_of(lambda forged=forged: trust().check(forged)) in {"signature-invalid", "note-syntax"}


def test_an_expired_profile_is_refused():
    late = datetime(2027, 1, 1, tzinfo=UTC)
    assert code_of(lambda: trust(now=late).check(sign_profile(profile(), SIGNER))) == "profile-expired"


def test_a_revoked_profile_is_refused_and_the_reason_said():
    signed = sign_profile(profile(), SIGNER)
    listed = trust(revoked={profile().id: "calibrated on quantized traffic"})
    assert code_of(lambda: listed.check(signed)) == "profile-revoked"
    with pytest.raises(AuditError, match="calibrated on quantized traffic"):
        listed.check(signed)
    assert trust(revoked={"sha256:" + "0" * 64: "another"}).check(signed).signed_by


def test_a_replayed_older_version_is_refused_although_it_is_signed_and_in_force():
    recipe = profile().key.provider_recipe
    floor = datetime(2026, 11, 25, tzinfo=UTC)
    old = sign_profile(profile(), SIGNER)
    new = sign_profile(replace(profile(), created="2026-11-25T00:00:00Z", outside=1), SIGNER)
    assert code_of(lambda: trust(oldest={recipe: floor}).check(old)) == "profile-superseded"
    assert trust(oldest={recipe: floor}).check(new).signed_by
    assert trust(oldest={"another": floor}).check(old).signed_by


LISTED = Revocations(
    NOW,
    NOW + timedelta(days=90),
    {"sha256:" + "a" * 64: "noise was let in"},
    {"vllm-cpu-0.32.0/bfloat16": NOW},
)


def test_the_list_of_revocations_is_signed_and_short_lived():
    raw = revocations_note(LISTED, SIGNER)
    assert read_revocations(raw, (SIGNER.public,), NOW, where="x") == LISTED
    late = NOW + timedelta(days=90)
    assert code_of(lambda: read_revocations(raw, (SIGNER.public,), late, where="x")) == "revocations"
    assert code_of(lambda: read_revocations(raw, (OTHER.public,), NOW, where="x")) == "key-unknown"
    shorter = raw.replace(b"revoked sha256:" + b"a" * 64 + b" noise was let in\n", b"")
    assert code_of(lambda: read_revocations(shorter, (SIGNER.public,), NOW, where="x")) == "signature-invalid"
    with pytest.raises(OptionError):
        revocations_note(replace(LISTED, revoked={"sha256:" + "a" * 64: "two\nlines"}), SIGNER)
    with pytest.raises(OptionError):
        revocations_note(replace(LISTED, revoked={"nonsense": "x"}), SIGNER)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_list_s_reader(junk):
    for raw in (junk, revocations_note(LISTED, SIGNER)[:80] + junk):
        with pytest.raises(AuditError):
            read_revocations(raw, (SIGNER.public,), NOW, where="x")


def test_only_keys_that_sign_notes_are_trusted_and_a_list_needs_one():
    with pytest.raises(KeySyntaxError):
        trusted_key(SeedSigner("w", Algorithm.ED25519_COSIGNATURE, bytes(32)).public.vkey)
    with pytest.raises(OptionError):
        Trust((), None, NOW)


def test_the_store_s_profile_is_checked_when_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDITOR_DATABASE_URL", f"sqlite:///{tmp_path}/store.sqlite3")
    with Store.open() as store:
        store.save_profile(profile())
    key = profile().key
    assert profile_finder(())(key) is not None
    assert code_of(lambda: profile_finder((), trust())(key)) == "profile-unsigned"
    signed = sign_profile(replace(profile(), outside=3, created="2026-11-21T00:00:00Z"), SIGNER)
    with Store.open() as store:
        store.save_profile(signed)
    assert profile_finder((), trust())(key).signed_by


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], standalone_mode=False)


def test_the_command_signs_trusts_and_revokes(tmp_path):
    key, file, listing = tmp_path / "a.key", tmp_path / "p.json", tmp_path / "list.txt"
    signer = generate("example.com/calibration", Algorithm.ED25519)
    write_key(key, signer, None)
    file.write_bytes(profile_bytes(profile()))
    assert run("profile", "sign", file, "--key", key).exception is None
    shown = json.loads(run("profile", "show", file, "--trust", signer.public.vkey).output)
    assert (shown["signed"], len(shown["signed_by"])) == (True, 1)
    log = TRACES / "vllm-cpu-bf16-plain.jsonl.gz"
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join(gzip.decompress(log.read_bytes()).splitlines(keepends=True)[:1]))
    audit = ("verify", few, "--profile", file, "--trust", signer.public.vkey, "--format", "json")
    result = json.loads(run(*audit).output)
    assert result["profile"]["signed_by"] == shown["signed_by"]
    reason = "traffic was quantized"
    assert (
        run("profile", "revoke", listing, "--key", key, "--id", shown["id"], "--reason", reason).exception
        is None
    )
    refused = run(*audit, "--revocations", listing)
    assert refused.exception.code == "profile-revoked"
    assert reason in str(refused.exception)
    renewed = run(
        "profile", "revoke", listing, "--key", key, "--recipe", "r", "--before", "2026-11-01T00:00:00Z"
    )
    assert renewed.exception is None
    held = read_revocations(listing.read_bytes(), (signer.public,), datetime.now(UTC), where="x")
    assert (list(held.revoked), list(held.oldest)) == ([shown["id"]], ["r"])
    assert isinstance(run(*audit, "--revocations", tmp_path / "none").exception, RevocationsError)
