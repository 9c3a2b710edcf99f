"""Keys, notes and checkpoints: published vectors, other people's examples, and everything that must be refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import (
    AuditError,
    CheckpointSyntaxError,
    KeySyntaxError,
    KeyUnknownError,
    NoteSyntaxError,
    SignatureInvalidError,
)
from auditor.merkle.checkpoints import (
    Checkpoint,
    parse_checkpoint,
    parse_checkpoint_text,
    sign_checkpoint,
    verify_checkpoint,
)
from auditor.merkle.encoding import decode_base64, decode_decimal, encode_base64
from auditor.merkle.keys import Algorithm, PublicKey, SeedSigner, parse_vkey
from auditor.merkle.notes import SignedNote, open_note, parse_note, parse_signature_lines, sign_note
from auditor.standalone_verifier import ed25519_verifies

# The documentation example of Go's golang.org/x/mod/sumdb/note.
GO_SEED = decode_base64("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
GO_LINE = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
GO_SECOND = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"

HEAD = Checkpoint("example.com/log", 7, bytes(range(32)))
SIGNERS = {kind: SeedSigner("example.com/log", kind, bytes([kind]) * 32) for kind in Algorithm}


def test_wycheproof_ed25519(published_vectors):
    groups = json.loads((published_vectors / "wycheproof" / "ed25519_test.json").read_text())["testGroups"]
    count = 0
    for group in groups:
        public = bytes.fromhex(group["publicKey"]["pk"])
        key = PublicKey("wycheproof", Algorithm.ED25519, public)
        for case in group["tests"]:
            message, signature = bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
            try:
                key.verify(message, signature)
                accepted = True
            except SignatureInvalidError:
                accepted = False
            assert accepted == (case["result"] == "valid"), case["tcId"]
            # The standalone verifier's own arithmetic.
            assert ed25519_verifies(public, message, signature) == accepted, case["tcId"]
            count += 1
    assert count == 151


def test_wycheproof_ml_dsa_44(published_vectors):
    groups = json.loads((published_vectors / "wycheproof" / "mldsa_44_verify_test.json").read_text())[
        "testGroups"
    ]
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

    count = 0
    for group in groups:
        public = bytes.fromhex(group["publicKey"])
        for case in group["tests"]:
            message, signature = bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
            context = bytes.fromhex(case["ctx"]) if case.get("ctx") else None
            try:
                if context is None:
                    PublicKey("wycheproof", Algorithm.ML_DSA_44, public).verify(message, signature)
                else:
                    MLDSA44PublicKey.from_public_bytes(public).verify(signature, message, context)
                accepted = True
            except (KeySyntaxError, SignatureInvalidError, InvalidSignature, ValueError):
                accepted = False
            assert accepted == (case["result"] == "valid"), case["tcId"]
            count += 1
    assert count == 180


def test_the_go_example_is_read_verified_and_made_again():
    raw = (GO_TEXT + "\n" + GO_LINE).encode()
    note = parse_note(raw)
    assert note.serialize() == raw
    key = parse_vkey(GO_VKEY)
    assert key.vkey == GO_VKEY
    assert open_note(note, [key]) == (key,)
    again = sign_note(SignedNote(GO_TEXT, ()), SeedSigner("PeterNeumann", Algorithm.ED25519, GO_SEED))
    assert again.serialize() == raw


def test_the_go_example_with_a_second_signature():
    signer = SeedSigner("EnochRoot", Algorithm.ED25519, bytes(32))
    both = sign_note(parse_note((GO_TEXT + "\n" + GO_LINE).encode()), signer)
    assert both.serialize() == (GO_TEXT + "\n" + GO_LINE + GO_SECOND).encode()
    assert open_note(both, [signer.public, parse_vkey(GO_VKEY)]) == (signer.public, parse_vkey(GO_VKEY))


def test_unknown_keys_are_ignored_and_known_ones_must_hold():
    note = parse_note((GO_TEXT + "\n" + GO_LINE + GO_SECOND).encode())
    stranger = SeedSigner("EnochRoot", Algorithm.ED25519, b"\x01" * 32).public  # the name, not the id
    with pytest.raises(KeyUnknownError, match="PeterNeumann"):
        open_note(note, [stranger])
    changed = SignedNote(note.text.replace("think", "thunk"), note.signatures)
    with pytest.raises(SignatureInvalidError):
        open_note(changed, [parse_vkey(GO_VKEY)])


def test_every_bit_flip_of_a_note_is_refused():
    raw = (GO_TEXT + "\n" + GO_LINE).encode()
    key = parse_vkey(GO_VKEY)
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AuditError):
            open_note(parse_note(bytes(changed)), [key])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"text only\n",
        b"text\n\n",
        b"no blank line\n\xe2\x80\x94 a AAAAAAAA\n",
        b"text\n\n\xe2\x80\x94 a AAAAAAAA",
        b"text\n\n\xe2\x80\x94 a AAAA\n",
        b"text\n\n\xe2\x80\x94 a AAAAAAAB=\n",
        b"text\n\n\xe2\x80\x94 a b AAAAAAAA\n",
        b"text\n\n\xe2\x80\x94 a+b AAAAAAAA\n",
        b"text\n\n- a AAAAAAAA\n",
        b"te\rxt\n\n\xe2\x80\x94 a AAAAAAAA\n",
        b"\xfftext\n\n\xe2\x80\x94 a AAAAAAAA\n",
        b"text\n\n" + b"\xe2\x80\x94 a AAAAAAAA\n" * 101,
        b"x" * 1_000_001,
    ],
)
def test_what_is_no_note(raw):
    with pytest.raises(NoteSyntaxError):
        parse_note(raw)


@given(st.text(), st.integers(0, 3))
def test_notes_are_read_back_byte_for_byte_or_refused(text, count):
    lines = (GO_LINE, GO_SECOND, "— z AAAAAAA=\n")[:count]
    raw = (text + "\n\n" + "".join(lines)).encode()
    try:
        note = parse_note(raw)
    except NoteSyntaxError:
        return
    assert note.serialize() == raw


def test_sixteen_post_quantum_signatures_fit():
    kind = Algorithm.ML_DSA_44
    signers = [SeedSigner(f"w{i}.example", kind, bytes([i]) * 32) for i in range(16)]
    note = SignedNote(HEAD.text(), tuple(sign_checkpoint(HEAD, s, 5) for s in signers))
    found, head = parse_checkpoint(note.serialize())
    assert len(verify_checkpoint(found, head, [s.public for s in signers])) == 16


@pytest.mark.parametrize("kind", list(Algorithm))
def test_each_kind_of_signature_binds_origin_size_root_and_time(kind):
    signer = SIGNERS[kind]
    signature = sign_checkpoint(HEAD, signer, 1_700_000_000)
    note = SignedNote(HEAD.text(), (signature,))
    (found,) = verify_checkpoint(note, HEAD, [signer.public])
    assert found.timestamp == (1_700_000_000 if kind.timestamped else None)
    others = [
        Checkpoint("example.com/lof", 7, HEAD.root),
        Checkpoint(HEAD.origin, 6, HEAD.root),
        Checkpoint(HEAD.origin, 7, bytes(32)),
        *(Checkpoint(HEAD.origin, 7 ^ 1 << bit, HEAD.root) for bit in range(63)),
    ]
    for other in others:
        with pytest.raises(SignatureInvalidError):
            verify_checkpoint(SignedNote(other.text(), (signature,)), other, [signer.public])
    step = 1 if kind is not Algorithm.ML_DSA_44 else 397
    for bit in range(0, 8 * len(signature.signature), step):
        changed = bytearray(signature.signature)
        changed[bit // 8] ^= 1 << bit % 8
        bad = SignedNote(HEAD.text(), (type(signature)(signature.name, signature.key_id, bytes(changed)),))
        with pytest.raises(SignatureInvalidError):
            verify_checkpoint(bad, HEAD, [signer.public])
    cut = SignedNote(
        HEAD.text(), (type(signature)(signature.name, signature.key_id, signature.signature[:-1]),)
    )
    with pytest.raises(SignatureInvalidError, match="bytes"):
        verify_checkpoint(cut, HEAD, [signer.public])


def test_one_key_used_for_two_kinds_has_two_ids():
    seed = b"\x07" * 32
    plain = SeedSigner("a", Algorithm.ED25519, seed).public
    cosign = SeedSigner("a", Algorithm.ED25519_COSIGNATURE, seed).public
    assert plain.material == cosign.material
    assert plain.key_id != cosign.key_id


def test_a_key_for_tree_heads_signs_no_plain_note():
    with pytest.raises(KeySyntaxError):
        sign_note(SignedNote("text\n", ()), SIGNERS[Algorithm.ED25519_COSIGNATURE])


@pytest.mark.parametrize(
    "vkey",
    ["", "a", "a+b", "a+c74f20a3+", GO_VKEY[:-1], GO_VKEY.replace("c74f", "c74e"), "Peter Neumann" + GO_VKEY[12:],
     "a+00000000+CQ==", "a+00000000+AQ=="],
)  # fmt: skip
def test_what_is_no_key(vkey):
    with pytest.raises(KeySyntaxError):
        parse_vkey(vkey)


@pytest.mark.parametrize(
    "text",
    ["", "o\n1\n", "o\n01\n{r}\n", "o\n-1\n{r}\n", "o\n1\n{r}", "\n1\n{r}\n", "o\n1\nAAAA\n", "o\n1\n{r}\n\n",
     "o\n9223372036854775808\n{r}\n", "o\n1\n{r}=\n", "o\n１\n{r}\n"],
)  # fmt: skip
def test_what_is_no_checkpoint(text):
    with pytest.raises(CheckpointSyntaxError):
        parse_checkpoint_text(text.format(r=encode_base64(bytes(32))))


def test_checkpoint_with_extension_lines_is_kept():
    head = Checkpoint("o", 0, bytes(32), ("one", "two"))
    assert parse_checkpoint_text(head.text()) == head


@given(st.binary(max_size=64))
def test_base64_has_one_spelling(data):
    text = encode_base64(data)
    assert decode_base64(text) == data
    assert decode_base64(text + "\n") is None
    if text.endswith("="):
        other = text.rstrip("=")
        assert decode_base64(other) is None


@given(st.integers(0, (1 << 63) - 1))
def test_decimals_have_one_spelling(value):
    assert decode_decimal(str(value)) == value
    for bad in (f"+{value}", f"0{value}", f" {value}", f"{value}.0", ""):
        assert decode_decimal(bad) is None


def test_signature_lines_that_are_cut_off():
    with pytest.raises(NoteSyntaxError):
        parse_signature_lines(GO_LINE[:-1])
