"""Hidden tokens: the dictionary attack, streamed heads, challenges, and every way to cheat in an opening."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.commitment_errors import (
    ChallengeMismatchError,
    ChallengeReplayedError,
    CommitmentFieldError,
    CommitmentHeadError,
    ExposureError,
    HeadChainError,
    LeafMismatchError,
    OpeningIncompleteError,
    SaltForeignError,
)
from auditor.errors import (
    AuditError,
    KeyUnknownError,
    LeafIndexError,
    ProofLengthError,
    ProofRootError,
    SignatureInvalidError,
    TreeSizeError,
)
from auditor.merkle.compact_range import CompactRange
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.merkle.token_heads import TokenHead, check_chain, open_head, parse_head_text, sign_head
from auditor.merkle.token_leaves import Salts, TokenLeaf
from auditor.merkle.token_openings import check_opening, draw_challenge, exposure, head_digest, open_blocks
from auditor.merkle.token_stream import Declared, TokenStream
from auditor.merkle.tree import Tree

VOCABULARY = 1_000
KEY = SeedSigner("provider.example", Algorithm.ED25519, b"\x05" * 32)
DIGEST = "sha256:" + "ab" * 32
TOKENS = [(i * 7919) % VOCABULARY for i in range(100)]


def leaves_of(tokens, key=b"k" * 32, request="req-1"):
    salts = Salts(key, request)
    return [TokenLeaf(request, i, t, salts.salt(i), bytes([t % 256] * 8)) for i, t in enumerate(tokens)]


LEAVES = leaves_of(TOKENS)
TREE = Tree(b"".join(leaf.hash() for leaf in LEAVES))
HEAD = TokenHead("req-1", 0, 100, 20, TREE.root(), 8, DIGEST, DIGEST, "none", 1_700_000_000, True)


def dictionary_attack(hashes, guess):
    """Tokens an auditor learns from leaf hashes alone by trying the whole vocabulary at every place."""
    return sum(
        any(guess(index, token).hash() == wanted for token in range(VOCABULARY)) for index, wanted in hashes
    )


def test_a_dictionary_of_the_vocabulary_opens_no_salted_leaf_and_every_unsalted_one():
    seen = [(i, leaf.hash()) for i, leaf in enumerate(LEAVES[:20])]
    attacker = Salts(b"guessed key" * 3, "req-1")

    def fingerprint(token):
        return bytes([token % 256] * 8)

    for guess in (
        lambda i, t: TokenLeaf("req-1", i, t, bytes(16), fingerprint(t)),
        lambda i, t: TokenLeaf("req-1", i, t, attacker.salt(i), fingerprint(t)),
        lambda i, t: TokenLeaf("req-1", i, t, LEAVES[50].salt, fingerprint(t)),  # an opened neighbour's salt
    ):
        assert dictionary_attack(seen, guess) == 0
    # The control: with salts off the same attack finds all.
    bare = [replace(leaf, salt=bytes(16)) for leaf in LEAVES[:20]]
    found = dictionary_attack(
        [(i, leaf.hash()) for i, leaf in enumerate(bare)],
        lambda i, t: TokenLeaf("req-1", i, t, bytes(16), fingerprint(t)),
    )
    assert found == 20


def test_salts_differ_by_index_request_and_key():
    salts = {
        Salts(key, request).salt(i)
        for key in (b"a" * 32, b"b" * 32)
        for request in ("r", "s")
        for i in range(50)
    }
    assert len(salts) == 200
    with pytest.raises(CommitmentFieldError):
        Salts(b"short", "r")


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(
        st.sampled_from(["a", "ab", "b"]), st.integers(0, 300), st.integers(0, 300), st.binary(max_size=3)
    ),
    st.tuples(
        st.sampled_from(["a", "ab", "b"]), st.integers(0, 300), st.integers(0, 300), st.binary(max_size=3)
    ),
)
def test_different_leaves_have_different_bytes(one, other):
    a, b = (TokenLeaf(r, i, t, bytes(16), f).encode() for r, i, t, f in (one, other))
    assert (a == b) == (one == other)


def test_a_leafs_bytes_are_frozen():
    leaf = TokenLeaf("r", 1, 2, bytes(range(16)), b"\x03")
    assert leaf.encode().hex() == (
        b"auditor.token-leaf/v1".hex()
        + "010000000172" + "02000000080000000000000001" + "03000000080000000000000002" + "040000000103"
        + "0500000010000102030405060708090a0b0c0d0e0f"
    )  # fmt: skip


def test_heads_are_read_back_and_bind_every_field():
    assert parse_head_text(HEAD.text()) == HEAD
    raw = sign_head(HEAD, KEY)
    assert open_head(raw, [KEY.public]) == HEAD
    for change in ({"hidden": 101}, {"visible": 21}, {"block": 9}, {"root": bytes(32)}, {"request": "req-2"},
                   {"sequence": 1}, {"model": "sha256:" + "ac" * 32}, {"time": 0}, {"final": False}):  # fmt: skip
        forged = replace(HEAD, **change).text().encode() + raw[len(HEAD.text().encode()) :]
        with pytest.raises(SignatureInvalidError):
            open_head(forged, [KEY.public])
    with pytest.raises(KeyUnknownError):
        open_head(raw, [SeedSigner("provider.example", Algorithm.ED25519, b"\x06" * 32).public])


@pytest.mark.parametrize(
    "change",
    [("hidden 100", "hidden 0100"), ("final yes", "final maybe"), ("block 8", "block 0"), ("/v1", "/v2"),
     ("visible 20\n", ""), ("embedder none", "embedder any"), ("final yes\n", "final yes\nmore 1\n")],
)  # fmt: skip
def test_what_is_no_head(change):
    with pytest.raises(CommitmentHeadError):
        parse_head_text(HEAD.text().replace(*change))


def stream(sizes, leaves=LEAVES):
    heads, growing = [], CompactRange()
    for number, size in enumerate(sizes):
        for leaf in leaves[growing.size : size]:
            growing = growing.append(leaf.hash())
        last = number == len(sizes) - 1
        heads.append(
            replace(HEAD, sequence=number, hidden=size, visible=20 if last else 0, root=growing.root(),
                    time=1_700_000_000 + number, final=last)
        )  # fmt: skip
    return heads, [TREE.consistency_proof(a, b) for a, b in pairwise(sizes)]


def test_streamed_heads_end_in_the_final_one():
    heads, proofs = stream([0, 16, 33, 33, 100])
    assert check_chain(heads, proofs) == heads[-1]
    assert heads[-1].root == HEAD.root


def test_filler_put_in_after_a_head_was_sent_breaks_the_chain():
    heads, proofs = stream([16, 33, 100])
    filler = leaves_of([*TOKENS[:10], 1, 2, 3, *TOKENS[10:97]])
    tree = Tree(b"".join(leaf.hash() for leaf in filler))
    forged = replace(heads[2], root=tree.root())
    with pytest.raises(ProofRootError):
        check_chain([*heads[:2], forged], [proofs[0], tree.consistency_proof(33, 100)])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda *_: ([], []),
        lambda h, p: (h[:2], p[:1]),
        lambda h, p: ([h[0], h[2]], [p[0]]),
        lambda h, p: (h, p[:1]),
        lambda h, p: ([replace(h[0], final=True), *h[1:]], p),
        lambda h, p: ([replace(h[0], block=4), *h[1:]], p),
        lambda h, p: ([replace(h[0], request="req-2"), *h[1:]], p),
        lambda h, p: ([replace(h[0], visible=21), *h[1:]], p),
        lambda h, p: ([replace(h[0], hidden=34), *h[1:]], p),
        lambda h, p: ([replace(h[0], time=1_800_000_000), *h[1:]], p),
    ],
)
def test_heads_that_contradict_each_other(spoil):
    with pytest.raises(HeadChainError):
        check_chain(*spoil(*stream([16, 33, 100])))


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=16), st.integers(1, 20))
def test_an_honest_opening_is_accepted_and_its_exposure_counted(nonce, count):
    challenge = draw_challenge(HEAD, nonce, count)
    assert challenge == draw_challenge(HEAD, nonce, count)
    assert len(challenge.blocks) == min(count, 13)
    opening = open_blocks(TREE.node, LEAVES, HEAD, challenge)
    seen = check_opening(opening, HEAD, challenge)
    assert (seen.seen, seen.hidden) == (len(opening.leaves), 100)


def test_blocks_are_drawn_evenly():
    drawn = Counter(
        block for i in range(1300) for block in draw_challenge(HEAD, i.to_bytes(4, "big"), 2).blocks
    )
    # 200 expected each, standard deviation 13; the draw is a fixed function, so this cannot flicker.
    assert set(drawn) == set(range(13))
    assert all(140 < n < 260 for n in drawn.values())


def test_every_way_to_cheat_in_an_opening_has_its_error():
    challenge = draw_challenge(HEAD, b"nonce", 3)
    good = open_blocks(TREE.node, LEAVES, HEAD, challenge)
    first = min(good.leaves)
    foreign = Salts(b"z" * 32, "req-1").salt(first)
    other_head = replace(HEAD, visible=21)
    outside = next(i for i in range(100) if i not in good.leaves)

    def with_leaf(leaf):
        return replace(good, leaves={**good.leaves, first: leaf})

    truncated = {i: leaf for i, leaf in good.leaves.items() if i != first}
    cases = [
        (replace(good, leaves=truncated), HEAD, challenge, OpeningIncompleteError),
        (replace(good, leaves={}), HEAD, challenge, OpeningIncompleteError),
        (
            replace(good, leaves={**truncated, outside: LEAVES[outside]}),
            HEAD,
            challenge,
            OpeningIncompleteError,
        ),
        (with_leaf(LEAVES[outside]), HEAD, challenge, OpeningIncompleteError),
        (with_leaf(replace(LEAVES[first], request_id="req-2")), HEAD, challenge, OpeningIncompleteError),
        (
            with_leaf(replace(LEAVES[first], token_id=LEAVES[first].token_id + 1)),
            HEAD,
            challenge,
            LeafMismatchError,
        ),
        (with_leaf(replace(LEAVES[first], fingerprint=b"")), HEAD, challenge, SaltForeignError),
        (with_leaf(replace(LEAVES[first], salt=foreign)), HEAD, challenge, LeafMismatchError),
        (replace(good, hashes={**good.hashes, first: bytes(32)}), HEAD, challenge, ProofRootError),
        (replace(good, hashes=dict(list(good.hashes.items())[1:])), HEAD, challenge, OpeningIncompleteError),
        (replace(good, proof=good.proof[:-1]), HEAD, challenge, ProofLengthError),
        (replace(good, proof=(*good.proof, good.proof[0])), HEAD, challenge, ProofLengthError),
        (good, other_head, challenge, ChallengeMismatchError),
        (good, HEAD, draw_challenge(HEAD, b"another nonce", 3), ChallengeReplayedError),
        (replace(good, head=head_digest(other_head)), HEAD, challenge, ChallengeMismatchError),
        (good, HEAD, replace(challenge, blocks=(*challenge.blocks[:-1], HEAD.blocks)), LeafIndexError),
        (good, HEAD, replace(challenge, blocks=challenge.blocks[:-1]), ChallengeMismatchError),
        (good, HEAD, replace(challenge, blocks=(0, 1, 2)), ChallengeMismatchError),
        (
            good,
            replace(HEAD, hidden=1 << 60),
            replace(challenge, head=head_digest(replace(HEAD, hidden=1 << 60)), count=1 << 59),
            ChallengeMismatchError,
        ),
        (
            replace(good, leaves={**good.leaves, 100: replace(LEAVES[99], index=100)}),
            HEAD,
            challenge,
            LeafIndexError,
        ),
        (
            good,
            replace(HEAD, hidden=0, root=Tree().root()),
            replace(challenge, head=head_digest(replace(HEAD, hidden=0, root=Tree().root())), blocks=()),
            TreeSizeError,
        ),
    ]
    for opening, head, asked, error in cases:
        with pytest.raises(error):
            check_opening(opening, head, asked, vocabulary=VOCABULARY)
    check_opening(good, HEAD, challenge)
    with pytest.raises(ChallengeMismatchError):
        open_blocks(TREE.node, LEAVES, other_head, challenge)


def test_a_wrong_token_is_told_from_a_foreign_salt():
    """Leaves without an embedding: beside its own salt a dictionary finds the token that was committed to."""
    leaves = [replace(leaf, fingerprint=b"") for leaf in LEAVES]
    tree = Tree(b"".join(leaf.hash() for leaf in leaves))
    head = replace(HEAD, root=tree.root())
    challenge = draw_challenge(head, b"nonce", 2)
    good = open_blocks(tree.node, leaves, head, challenge)
    other_session, other_request = Salts(b"z" * 32, "req-1"), Salts(b"k" * 32, "req-2")
    place = min(good.leaves)

    def with_each(change):
        return replace(good, leaves={i: change(i, leaf) for i, leaf in good.leaves.items()})

    for salts in (other_session, other_request):
        foreign = with_each(lambda i, leaf, salts=salts: replace(leaf, salt=salts.salt(i)))
        with pytest.raises(SaltForeignError):
            check_opening(foreign, head, challenge, vocabulary=VOCABULARY)
    shifted = with_each(lambda i, leaf: replace(leaf, salt=leaves[(i + 1) % 100].salt))
    with pytest.raises(SaltForeignError):
        check_opening(shifted, head, challenge, vocabulary=VOCABULARY)
    lied = with_each(lambda i, leaf: replace(leaf, token_id=3) if i == place else leaf)
    with pytest.raises(LeafMismatchError, match="another one"):
        check_opening(lied, head, challenge, vocabulary=VOCABULARY)
    # Hashes that fit the foreign leaves do not lead to the signed root.
    both = replace(foreign, hashes={i: leaf.hash() for i, leaf in foreign.leaves.items()})
    with pytest.raises(ProofRootError):
        check_opening(both, head, challenge, vocabulary=VOCABULARY)
    check_opening(good, head, challenge, vocabulary=VOCABULARY)


def flips(value):
    for bit in range(8 * len(value)):
        flipped = bytearray(value)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def test_every_single_bit_flip_of_an_opening_or_of_what_was_signed_is_refused():
    small = TREE.node, LEAVES, HEAD
    challenge = draw_challenge(HEAD, b"nonce", 1)
    good = open_blocks(*small, challenge)
    index = min(good.leaves)
    leaf = good.leaves[index]
    bad = [replace(good, proof=(*good.proof[:n], value, *good.proof[n + 1 :]))
           for n, own in enumerate(good.proof) for value in flips(own)]  # fmt: skip
    bad += [replace(good, hashes={**good.hashes, index: value}) for value in flips(good.hashes[index])]
    bad += [replace(good, head=value) for value in flips(good.head)]
    bad += [replace(good, nonce=value) for value in flips(good.nonce)]
    leaves = [replace(leaf, salt=value) for value in flips(leaf.salt)]
    leaves += [replace(leaf, fingerprint=value) for value in flips(leaf.fingerprint)]
    leaves += [replace(leaf, token_id=leaf.token_id ^ 1 << bit) for bit in range(63)]
    leaves += [replace(leaf, index=leaf.index ^ 1 << bit) for bit in range(63)]
    bad += [replace(good, leaves={**good.leaves, index: other}) for other in leaves]
    for opening in bad:
        with pytest.raises(AuditError):
            check_opening(opening, HEAD, challenge)
    for head in [*(replace(HEAD, root=root) for root in flips(HEAD.root)),
                 *(replace(HEAD, hidden=HEAD.hidden ^ 1 << bit) for bit in range(62))]:  # fmt: skip
        with pytest.raises(AuditError):
            check_opening(good, head, challenge)
    check_opening(good, HEAD, challenge)


def test_exposure_is_bounded_over_challenges():
    first = draw_challenge(HEAD, b"1", 3, max_share=0.3)
    assert exposure(HEAD, first.blocks).share <= 0.3
    with pytest.raises(ExposureError):
        draw_challenge(HEAD, b"2", 13, max_share=0.3)
    with pytest.raises(ExposureError):
        draw_challenge(HEAD, b"2", 3, seen=range(4), max_share=0.3)
    with pytest.raises(TreeSizeError):
        draw_challenge(replace(HEAD, hidden=0, root=Tree().root()), b"", 1)
    with pytest.raises(CommitmentFieldError):
        draw_challenge(HEAD, b"", 0)
    with pytest.raises(CommitmentFieldError):
        draw_challenge(HEAD, b"x" * 65, 1)


@pytest.mark.parametrize(
    "change",
    [{"index": -1}, {"token_id": 1 << 63}, {"salt": b"short"}, {"fingerprint": bytes(5000)}, {"request_id":
    ""},
     {"request_id": "a b"}, {"request_id": "a\n"}, {"request_id": "x" * 257}],
)  # fmt: skip
def test_fields_out_of_range(change):
    with pytest.raises(CommitmentFieldError):
        replace(LEAVES[0], **change)


def test_a_prefix_challenge_opens_all_before_the_block_that_was_drawn():
    for nonce in (b"1", b"2", b"3"):
        (drawn,) = draw_challenge(HEAD, nonce, 1).blocks
        challenge = draw_challenge(HEAD, nonce, 1, prefix=True)
        assert challenge.blocks == tuple(range(drawn + 1))
        seen = check_opening(open_blocks(TREE.node, LEAVES, HEAD, challenge), HEAD, challenge)
        assert seen.seen == HEAD.block_range(drawn).stop


def streamed(tokens, block=8, head_blocks=2):
    times = iter(range(1_700_000_000, 1_800_000_000))
    stream = TokenStream(
        Declared("req-1", DIGEST, DIGEST, "none", block), Salts(b"k" * 32, "req-1"), KEY, lambda: next(times),
        head_blocks=head_blocks,
    )  # fmt: skip
    sent = [head for head in map(stream.add, tokens) if head is not None]
    return stream, sent


def test_a_stream_sends_a_head_every_few_blocks_and_ends_in_one_chain():
    stream, sent = streamed(TOKENS)
    assert [open_head(raw, [KEY.public]).hidden for raw in sent] == [16, 32, 48, 64, 80, 96]
    before = open_head(stream.answer(), [KEY.public])
    assert (before.hidden, before.visible, before.final) == (100, 0, False)
    final = open_head(stream.finish(20), [KEY.public])
    heads = [open_head(raw, [KEY.public]) for raw in stream.heads]
    assert check_chain(heads, stream.proofs) == final
    assert (final.hidden, final.visible, final.final) == (100, 20, True)
    assert final.root == Tree(b"".join(leaf.hash() for leaf in leaves_without_fingerprints(TOKENS))).root()


def leaves_without_fingerprints(tokens):
    return [replace(leaf, fingerprint=b"") for leaf in leaves_of(tokens)]


def test_no_hidden_token_is_taken_after_the_answer_began():
    stream, _ = streamed(TOKENS[:10])
    with pytest.raises(HeadChainError):
        stream.finish(3)
    stream.answer()
    with pytest.raises(HeadChainError):
        stream.add(1)
    stream.finish(3)
    with pytest.raises(HeadChainError):
        stream.finish(3)
