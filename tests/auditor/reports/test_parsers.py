"""Bytes from strangers: packs, envelopes and trust files are read or refused in one line, and nothing else."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import AuditError, KeyUnknownError, OptionError, SignatureInvalidError
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.reports.envelopes import key_id, open_envelope, seal
from auditor.reports.errors import EnvelopeSyntaxError, PackSyntaxError
from auditor.reports.packs import REQUIRED, read_pack, write_pack
from auditor.reports.trust_files import parse_trust
from tests.auditor.reports.recorded_rows import key_of

KEY = key_of("example.com/reports")
NAMES = st.sampled_from([*REQUIRED, "disclosures/0-prompt.json", "disputes/aud_" + "0" * 32 + "/README.md"])


@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=6))
def test_what_is_packed_is_read_back_and_packed_alike(members):
    raw = write_pack(members)
    assert read_pack(raw) == members
    assert write_pack(dict(reversed(members.items()))) == raw


@given(st.dictionaries(NAMES, st.binary(max_size=30), min_size=1, max_size=3), st.data())
def test_no_byte_of_an_archive_is_idle(members, data):
    raw = bytearray(write_pack(members))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = read_pack(bytes(raw))
    except AuditError as error:
        assert "\n" not in str(error)
    else:
        # A name may become another of ours; the signed list of members is there to notice.
        assert read.keys() != members.keys() or read != members


@given(st.binary(max_size=300))
def test_other_bytes_are_no_pack_and_no_envelope(raw):
    with pytest.raises(AuditError):
        read_pack(raw)
    with pytest.raises(EnvelopeSyntaxError):
        open_envelope(raw, [KEY.public])


def test_members_that_share_bytes_do_not_multiply():
    """Many names for one long content: what a reader of the central directory alone would inflate."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("report.json", b"x" * 100_000)
        first = archive.infolist()[0]
        for name in REQUIRED:
            if name != "report.json":
                twin = zipfile.ZipInfo(name)
                for field in ("header_offset", "file_size", "compress_size", "CRC"):
                    setattr(twin, field, getattr(first, field))
                archive.filelist.append(twin)
    with pytest.raises(PackSyntaxError, match="longer than it is"):
        read_pack(stream.getvalue())


@given(st.binary(max_size=200))
def test_an_envelope_opens_to_what_was_sealed(payload):
    other = SeedSigner("other.example/r", Algorithm.ED25519, b"o" * 32)
    sealed = seal(payload, [KEY, other])
    assert open_envelope(sealed, [KEY.public]) == (payload, (KEY.public,))
    assert open_envelope(sealed, [other.public, KEY.public])[1] == (KEY.public, other.public)
    with pytest.raises(KeyUnknownError, match="example"):
        open_envelope(sealed, [key_of(KEY.name, b"x").public])


@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_changed_payload_or_signature_is_noticed(payload, data):
    value = json.loads(seal(payload, [KEY]))
    part = data.draw(st.sampled_from(["payload", "sig", "type"]))
    if part == "payload":
        value["payload"] = json.loads(seal(payload + b"x", [KEY]))["payload"]
    elif part == "sig":
        value["signatures"][0]["sig"] = json.loads(seal(payload + b"x", [KEY]))["signatures"][0]["sig"]
    else:
        value["payloadType"] = "text/plain"
    with pytest.raises((SignatureInvalidError, EnvelopeSyntaxError)):
        open_envelope(json.dumps(value).encode(), [KEY.public])


def test_envelopes_that_are_none():
    good = json.loads(seal(b"x", [KEY]))
    for broken in (
        good | {"payload": "%"},
        good | {"signatures": []},
        good | {"signatures": [1]},
        good | {"signatures": [{"sig": "%"}]},
        good | {"signatures": [{"sig": "AAAA", "keyid": 1}]},
        good | {"signatures": good["signatures"] * 17},
        {},
    ):
        with pytest.raises(EnvelopeSyntaxError):
            open_envelope(json.dumps(broken).encode(), [KEY.public])
    hinted = good | {"signatures": [good["signatures"][0] | {"keyid": key_id(key_of("x.y/z").public)}]}
    with pytest.raises(KeyUnknownError):
        open_envelope(json.dumps(hinted).encode(), [KEY.public])


def test_trust_files_are_read_or_refused_in_one_line():
    key = f'[[report_key]]\nvkey = "{KEY.public.vkey}"\n'
    log = f'[log]\npolicy = "log {key_of("example.com/log").public.vkey}\\nquorum none\\n"\n'
    assert parse_trust((key + "since = 2026-01-01T00:00:00Z\n" + log).encode()).reports[0].until is None
    for text in (
        "",
        "\xff",
        key,
        log,
        key + log + "more = 1\n",
        key + 'until = "never"\n' + log,
        key + "until = 2026-01-01\n" + log,
        key + "until = 2026-01-01T00:00:00\n" + log,
        key + "other = 1\n" + log,
        "[[report_key]]\nvkey = 1\n" + log,
        key + "[log]\npolicy = 1\n",
    ):
        with pytest.raises(OptionError) as caught:
            parse_trust(text.encode("latin-1"))
        assert "\n" not in str(caught.value)
