"""Challenges of a token commitment, and what has to be opened in answer.

Which blocks are opened is drawn from the signed head and the auditor's nonce, both fixed before the draw, so
that neither side chooses. With an empty nonce the draw is Fiat-Shamir: anyone can repeat it, but a provider
can try several heads until it likes the draw; a nonce made after the head was received closes that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from auditor.commitment_errors import (
    ChallengeMismatchError,
    ChallengeReplayedError,
    CommitmentFieldError,
    ExposureError,
    LeafMismatchError,
    OpeningIncompleteError,
    SaltForeignError,
)
from auditor.errors import LeafIndexError, TreeSizeError
from auditor.merkle.multiproof import prove_many, verify_many
from auditor.merkle.nodes import NodeReader
from auditor.merkle.token_heads import TokenHead
from auditor.merkle.token_leaves import TokenLeaf

MAX_NONCE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Challenge:
    """Which blocks of which head are to be opened.

    Args:
        head: SHA-256 of the head's text.
        nonce: the auditor's random bytes; empty for Fiat-Shamir.
        count: blocks that were drawn.
        prefix: whether all blocks before the last one drawn are opened with it: what a replay by seed needs.
        blocks: sorted block numbers, as these fields draw them.
    """

    head: bytes
    nonce: bytes
    count: int
    prefix: bool
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """The answer: every token of every challenged block, with one proof for all.

    Args:
        head, nonce: those of the challenge.
        leaves: the tokens, by index.
        hashes: their leaf hashes. The proof binds these to the root, so that a leaf which is not what was
            committed to can be named.
        proof: hashes of `multiproof.prove_many`.
    """

    head: bytes
    nonce: bytes
    leaves: Mapping[int, TokenLeaf]
    hashes: Mapping[int, bytes]
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Exposure:
    """How much of a response's hidden tokens the auditor has seen."""

    seen: int
    hidden: int

    @property
    def share(self) -> float:
        """Seen part of all hidden tokens, 0 to 1."""
        return self.seen / self.hidden if self.hidden else 0.0


def head_digest(head: TokenHead) -> bytes:
    """What binds a challenge to its head."""
    return sha256(head.text().encode()).digest()


def draw_challenge(
    head: TokenHead,
    nonce: bytes,
    count: int,
    *,
    prefix: bool = False,
    seen: Collection[int] = (),
    max_share: float = 1.0,
) -> Challenge:
    """Draw distinct blocks uniformly.

    Args:
        head: a final head.
        nonce: up to 64 bytes, made after the head was received; empty for Fiat-Shamir.
        count: blocks to draw; all when there are fewer.
        prefix: open everything before the last block drawn, too.
        seen: blocks opened before, for the bound.
        max_share: the largest share of the hidden tokens that may be seen in all.

    Raises:
        TreeSizeError: the head has no hidden token.
        CommitmentFieldError: no block asked for, or a nonce too long.
        ExposureError: more would be seen than `max_share`.
    """
    if head.hidden == 0:
        raise TreeSizeError("a head of no hidden tokens has nothing to open")
    if count < 1 or len(nonce) > MAX_NONCE_BYTES:
        raise CommitmentFieldError(f"{count} blocks with a nonce of {len(nonce)} bytes")
    drawn = _drawn(head, nonce, count)
    blocks = tuple(range(max(drawn) + 1)) if prefix else tuple(sorted(drawn))
    would_see = exposure(head, {*seen, *blocks})
    if would_see.share > max_share:
        raise ExposureError(
            f"{would_see.seen} of {head.hidden} hidden tokens would be seen, over {max_share:.0%}"
        )
    return Challenge(head_digest(head), nonce, count, prefix, blocks)


def _drawn(head: TokenHead, nonce: bytes, count: int) -> set[int]:
    digest = head_digest(head)
    seed = sha256(b"auditor.challenge/v1" + digest + bytes([len(nonce)]) + nonce).digest()
    count = min(count, head.blocks)
    drawn: set[int] = set()
    counter = 0
    # The least multiple of `blocks` below 2**256 accepts all but a negligible share of the draws.
    limit = (1 << 256) // head.blocks * head.blocks
    while len(drawn) < count:
        value = int.from_bytes(sha256(seed + counter.to_bytes(8, "big")).digest(), "big")
        counter += 1
        if value < limit:
            drawn.add(value % head.blocks)
    return drawn


def check_draw(head: TokenHead, challenge: Challenge) -> None:
    """Check that a challenge is of this head, and its blocks are the ones that its nonce draws.

    Raises:
        ChallengeMismatchError: of another head, or blocks that were chosen.
        LeafIndexError: a block at or beyond the end of the tree.
        TreeSizeError, CommitmentFieldError: see `draw_challenge`.
    """
    if challenge.head != head_digest(head):
        raise ChallengeMismatchError("the challenge is of another head")
    beyond = [block for block in challenge.blocks if not 0 <= block < head.blocks]
    if beyond:
        raise LeafIndexError(f"block {beyond[0]} of a response of {head.blocks} blocks")
    if len(challenge.blocks) < min(challenge.count, head.blocks):
        # Before the draw is repeated: a count from a stranger's file must not keep us drawing.
        raise ChallengeMismatchError(
            f"{len(challenge.blocks)} blocks where {challenge.count} were to be drawn"
        )
    fair = draw_challenge(head, challenge.nonce, challenge.count, prefix=challenge.prefix)
    if challenge.blocks != fair.blocks:
        raise ChallengeMismatchError("the challenged blocks are not those that the nonce draws")


def exposure(head: TokenHead, blocks: Collection[int]) -> Exposure:
    """Tokens of these blocks among all hidden ones."""
    return Exposure(sum(len(head.block_range(block)) for block in set(blocks)), head.hidden)


def _indices(head: TokenHead, challenge: Challenge) -> list[int]:
    return [index for block in challenge.blocks for index in head.block_range(block)]


def open_blocks(
    read: NodeReader, leaves: Sequence[TokenLeaf], head: TokenHead, challenge: Challenge
) -> Opening:
    """The provider's answer.

    Args:
        read: stored nodes of the response's tree (`Tree.node`).
        leaves: all hidden tokens.
        head: the challenged head.
        challenge: what to open.

    Raises:
        ChallengeMismatchError, LeafIndexError, TreeSizeError, CommitmentFieldError: see `check_draw`.
    """
    check_draw(head, challenge)
    indices = _indices(head, challenge)
    opened = {index: leaves[index] for index in indices}
    hashes = {index: leaf.hash() for index, leaf in opened.items()}
    proof = tuple(prove_many(read, indices, head.hidden))
    return Opening(challenge.head, challenge.nonce, opened, hashes, proof)


def check_opening(
    opening: Opening, head: TokenHead, challenge: Challenge, *, vocabulary: int = 0
) -> Exposure:
    """Check that an opening answers this challenge of this head in full; returns what was seen.

    Withholding is failure: a block that is not there whole is an error, whatever the rest shows.

    Args:
        vocabulary: ids of the model, to tell a wrong token from a wrong salt: beside the right salt one of
            them gives the leaf that was signed.

    Raises:
        ChallengeMismatchError, LeafIndexError, TreeSizeError, CommitmentFieldError: see `check_draw`.
        ChallengeReplayedError: the opening answers an earlier challenge of this head.
        OpeningIncompleteError: tokens missing, or others than asked for.
        HashLengthError, ProofLengthError, ProofRootError: leaf hashes and proof do not lead to the signed
        root.
        SaltForeignError, LeafMismatchError: a salt, or a token or embedding, is not what its leaf holds.
    """
    check_draw(head, challenge)
    if opening.head != challenge.head:
        raise ChallengeMismatchError("the opening is of another head")
    if opening.nonce != challenge.nonce:
        raise ChallengeReplayedError("the opening answers another challenge of this head")
    beyond = [index for index in opening.leaves if not 0 <= index < head.hidden]
    if beyond:
        raise LeafIndexError(f"token {beyond[0]} of {head.hidden} hidden ones")
    indices = _indices(head, challenge)
    missing = [index for index in indices if index not in opening.leaves]
    if missing or len(opening.leaves) != len(indices) or opening.hashes.keys() != opening.leaves.keys():
        raise OpeningIncompleteError(f"{len(missing)} of {len(indices)} challenged tokens are withheld")
    for index, leaf in opening.leaves.items():
        if leaf.index != index or leaf.request_id != head.request:
            raise OpeningIncompleteError(f"token {index} is one of another place or response")
    verify_many(opening.hashes, head.hidden, opening.proof, head.root)
    wrong = [index for index in indices if opening.leaves[index].hash() != opening.hashes[index]]
    if wrong:
        raise _mismatch(opening, wrong, vocabulary)
    return exposure(head, challenge.blocks)


def _mismatch(
    opening: Opening, wrong: Sequence[int], vocabulary: int
) -> LeafMismatchError | SaltForeignError:
    """Which field contradicts the leaf: a dictionary of the vocabulary finds the token beside its salt."""
    # The first leaf of a block has an embedding, too, which no dictionary holds.
    index = next((i for i in wrong if not opening.leaves[i].fingerprint), wrong[0])
    leaf, signed = opening.leaves[index], opening.hashes[index]
    if leaf.fingerprint or not vocabulary:
        return LeafMismatchError(f"token {index}, its embedding or its salt is not what was committed to")
    if any(replace(leaf, token_id=token).hash() == signed for token in range(vocabulary)):
        return LeafMismatchError(f"token {index} is opened as another one than was committed to")
    return SaltForeignError(f"token {index} is opened with a salt that it was not committed to with")
