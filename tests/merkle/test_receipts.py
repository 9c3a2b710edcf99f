"""Receipts and policies: what is accepted, and that nothing else is, by both verifiers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from auditor import standalone_verifier
from auditor.errors import (
    AuditError,
    KeyUnknownError,
    LeafIndexError,
    NoteSyntaxError,
    OriginUnknownError,
    PolicySyntaxError,
    ProofLengthError,
    ProofRootError,
    QuorumMissingError,
    ReceiptSyntaxError,
    SignatureInvalidError,
    TreeSizeError,
)
from auditor.merkle.checkpoints import Checkpoint, sign_checkpoint
from auditor.merkle.hashing import EMPTY_ROOT
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.merkle.notes import SignedNote
from auditor.merkle.policy import parse_policy
from auditor.merkle.receipts import Receipt, parse_receipt, verify_receipt
from auditor.merkle.tree import Tree

ENTRIES = [b"entry %d" % i for i in range(13)]
TREE = Tree.of_entries(ENTRIES)
LOG = SeedSigner("example.com/log", Algorithm.ED25519, b"\x01" * 32)
W1, W2, W3 = (
    SeedSigner(f"w{i}.example", Algorithm.ED25519_COSIGNATURE, bytes([i]) * 32) for i in (11, 12, 13)
)
W4 = SeedSigner("w4.example", Algorithm.ML_DSA_44, b"\x0e" * 32)
POLICY = f"""# whom we trust
log {LOG.public.vkey} https://example.com/log
\twitness  one {W1.public.vkey}
witness two {W2.public.vkey}
witness three {W3.public.vkey}
group two-of-three 2 one two three
quorum two-of-three
"""


def receipt(index=5, size=13, signers=(LOG, W1, W2), log=LOG, path=None):
    head = Checkpoint(log.name, size, TREE.root(size))
    note = SignedNote(head.text(), tuple(sign_checkpoint(head, s, 1_700_000_000) for s in signers))
    return Receipt(index, tuple(TREE.inclusion_proof(index, size) if path is None else path), note)


def accepts(raw, entry, policy=POLICY):
    """Both verifiers' answer; they must not differ."""
    try:
        verify_receipt(parse_receipt(raw), entry, parse_policy(policy.encode()))
        ours = True
    except AuditError:
        ours = False
    try:
        standalone_verifier.check(raw, entry, policy)
        other = True
    except (standalone_verifier.RefusedError, KeyError):
        other = False
    assert ours == other
    return ours


def test_receipts_are_read_back_byte_for_byte_and_hold():
    for size in range(1, 14):
        for index in range(size):
            raw = replace(receipt(index, size), extra=b"whatever" if index % 2 else b"").serialize()
            assert parse_receipt(raw).serialize() == raw
            approval = verify_receipt(parse_receipt(raw), ENTRIES[index], parse_policy(POLICY.encode()))
            assert set(approval.witnesses) == {"one", "two"}
            assert approval.log.key == LOG.public
    assert accepts(receipt().serialize(), ENTRIES[5])
    assert not accepts(receipt().serialize(), ENTRIES[6])


def test_every_bit_flip_of_a_receipt_is_refused_by_both_verifiers():
    raw = receipt(signers=(LOG, W1, W2)).serialize()
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AuditError):
            verify_receipt(parse_receipt(bytes(changed)), ENTRIES[5], parse_policy(POLICY.encode()))
    for bit in range(0, 8 * len(raw), 211):  # plain Python: a hundred times slower
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert not accepts(bytes(changed), ENTRIES[5])


def test_every_flip_of_the_signed_size_and_index_is_refused():
    good, policy = receipt(), parse_policy(POLICY.encode())
    for bit in range(62):
        head = Checkpoint(LOG.name, 13 ^ 1 << bit, TREE.root(13))
        forged = Receipt(5, good.path, SignedNote(head.text(), good.note.signatures))
        moved = replace(good, index=5 ^ 1 << bit)
        for bad in (forged, moved):
            with pytest.raises(AuditError):
                verify_receipt(bad, ENTRIES[5], policy)
            assert bit % 9 or not accepts(bad.serialize(), ENTRIES[5])


def test_each_failure_has_its_own_error():
    policy = parse_policy(POLICY.encode())
    good = receipt()
    other = SeedSigner("example.com/other", Algorithm.ED25519, b"\x02" * 32)
    impostor = SeedSigner(LOG.name, Algorithm.ED25519, b"\x03" * 32)
    empty = Checkpoint(LOG.name, 0, EMPTY_ROOT)
    signed_empty = SignedNote(empty.text(), tuple(sign_checkpoint(empty, s, 1) for s in (LOG, W1, W2)))
    cases = [
        (receipt(signers=(other, W1, W2), log=other), OriginUnknownError),
        (receipt(signers=(impostor, W1, W2)), KeyUnknownError),
        (receipt(signers=(LOG, W1)), QuorumMissingError),
        (
            replace(good, note=SignedNote(good.note.text, receipt(size=12).note.signatures)),
            SignatureInvalidError,
        ),
        (replace(good, index=13), LeafIndexError),
        (replace(good, path=good.path[:-1]), ProofLengthError),
        (replace(good, path=(*good.path, good.path[0])), ProofLengthError),
        (replace(good, index=4), ProofRootError),
        (Receipt(0, (), signed_empty), TreeSizeError),
    ]
    for bad, error in cases:
        with pytest.raises(error):
            verify_receipt(bad, ENTRIES[5], policy)
        assert not accepts(bad.serialize(), ENTRIES[5])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda _: b"", ReceiptSyntaxError),
        (lambda raw: raw.replace(b"@v1", b"@v2"), ReceiptSyntaxError),
        (lambda raw: raw.replace(b"index 5", b"index 05"), ReceiptSyntaxError),
        (lambda raw: raw.replace(b"index 5", b"index -5"), ReceiptSyntaxError),
        (lambda raw: raw.replace(b"index 5\n", b""), ReceiptSyntaxError),
        (lambda raw: raw.replace(b"index 5\n", b"extra !!\nindex 5\n"), ReceiptSyntaxError),
        (lambda raw: raw.replace(b"index 5\n", b"index 5\nAAAA\n"), ReceiptSyntaxError),
        (lambda raw: raw.replace(b"index 5\n", b"index 5\n" + b"A" * 43 + b"=\n" * 64), ReceiptSyntaxError),
        (lambda raw: raw.replace(b"index", b"\xffndex"), ReceiptSyntaxError),
        (lambda raw: raw[: len(raw) // 2], AuditError),
        (lambda raw: raw.partition(b"\n\n")[0] + b"\n\n", NoteSyntaxError),
        (lambda raw: raw + b"x" * 2_000_000, ReceiptSyntaxError),
    ],
)
def test_what_is_no_receipt(change, error):
    with pytest.raises(error):
        parse_receipt(change(receipt().serialize()))


def test_extra_bytes_are_not_trusted_for_anything():
    assert accepts(replace(receipt(), extra=b"index 6").serialize(), ENTRIES[5])


def test_post_quantum_witnesses_count_where_they_can_be_verified():
    policy = POLICY.replace("group", f"witness four {W4.public.vkey}\ngroup").replace(
        "2 one two three", "all two four"
    )
    raw = receipt(signers=(LOG, W2, W4)).serialize()
    approval = verify_receipt(parse_receipt(raw), ENTRIES[5], parse_policy(policy.encode()))
    assert set(approval.witnesses) == {"two", "four"}
    # The standalone verifier has no ML-DSA: it refuses, and must not pass.
    with pytest.raises(standalone_verifier.RefusedError, match="quorum"):
        standalone_verifier.check(raw, ENTRIES[5], policy)


def test_groups_of_groups():
    policy = f"""log {LOG.public.vkey}
witness a {W1.public.vkey}
witness b {W2.public.vkey}
witness c {W3.public.vkey}
group ab any a b
group both all ab c
quorum both
"""
    assert accepts(receipt(signers=(LOG, W2, W3)).serialize(), ENTRIES[5], policy)
    assert not accepts(receipt(signers=(LOG, W1, W2)).serialize(), ENTRIES[5], policy)
    assert not accepts(receipt(signers=(LOG, W3)).serialize(), ENTRIES[5], policy)
    assert accepts(receipt(signers=(LOG,)).serialize(), ENTRIES[5], f"log {LOG.public.vkey}\nquorum none\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "log {l}",
        "quorum none\nquorum none",
        "quorum one",
        "log nonsense\nquorum none",
        "log {w}\nquorum none",
        "witness a {l}\nquorum none",
        "log {l}\nlog {l}\nquorum none",
        "witness a {w}\nwitness b {w}\nquorum none",
        "witness none {w}\nquorum none",
        "witness a {w}\ngroup a any a\nquorum a",
        "witness a {w}\ngroup g 2 a\nquorum g",
        "witness a {w}\ngroup g 0 a\nquorum g",
        "witness a {w}\ngroup g 01 a\nquorum g",
        "witness a {w}\ngroup g any none\nquorum g",
        "witness a {w}\ngroup g any a a\nquorum g",
        "witness a {w}\ngroup g any a\ngroup h any a\nquorum g",
        "group g any h\ngroup h any g\nquorum g",
        "frobnicate\nquorum none",
        "quorum none\r",
    ],
)
def test_what_is_no_policy(text):
    with pytest.raises(PolicySyntaxError, match="policy"):
        parse_policy(text.format(l=LOG.public.vkey, w=W1.public.vkey).encode())


def test_names_are_opaque_octets():
    text = f"witness \xe2\x84\xaa {W1.public.vkey}\nwitness K {W2.public.vkey}\nquorum K\n"
    assert len(parse_policy(text.encode("latin-1")).witnesses) == 2
