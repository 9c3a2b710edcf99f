"""Commit, then challenge: fix hidden states before anyone knows where and along what they will be looked at.

1. The provider hashes the hidden state of every output token (bfloat16) and publishes the list of digests.
2. The auditor draws a secret *after* that. Secret and commitment give the projection seed and the positions.
3. The provider answers with fingerprints of all tokens, of the states as committed, and the states asked for.
4. The auditor checks that (a) there is one digest a token, (b) the opened states are the committed ones,
   (c) the fingerprints are theirs. Then the fingerprints are compared with the reference's states as ever.

Fingerprints that are not of the committed states at a share s of the tokens pass step 4c with probability
(1 - s) ** positions. The digests are a plain list here; a Merkle tree over the same leaves makes the
commitment short. Source of the order: DiFR's stated limit, arXiv 2511.20621 (a projection known beforehand
can be satisfied in k features), and the usual commit and open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from auditor.errors import FingerprintError, FingerprintLengthError, FingerprintOpeningError
from auditor.fingerprints.activation_difr import SEED_BYTES, Fingerprint, residuals

SECRET_BYTES = 32

_SAME = 1e-4  # relative distance that float32 sums of the same row may leave


def leaf(binding: bytes, position: int, row: npt.NDArray[np.uint16]) -> bytes:
    """SHA-256 of one token's hidden state: bfloat16 bits uint16 [d], with its request and place."""
    head = b"auditor.activation-leaf/v1\0" + binding + position.to_bytes(4, "big")
    return hashlib.sha256(head + row.astype(">u2").tobytes()).digest()


def commit(binding: bytes, rows: npt.NDArray[np.uint16]) -> tuple[bytes, ...]:
    """One leaf for each output token; rows are bfloat16 bits, uint16 [tokens, d]."""
    return tuple(leaf(binding, t, row) for t, row in enumerate(rows))


@dataclass(frozen=True, slots=True)
class Challenge:
    """What is asked of one commitment: the projection, and the positions to open, rising."""

    projection_seed: bytes
    positions: tuple[int, ...]


def challenge(leaves: Sequence[bytes], secret: bytes, count: int) -> Challenge:
    """Draw the challenge of a commitment; anyone can repeat it once the secret is out.

    Args:
        secret: 32 random bytes, drawn after the leaves were received.
        count: positions to open; all of them when the output is shorter.

    Raises:
        ValueError: a secret of another length, or no positions.
    """
    if len(secret) != SECRET_BYTES or count < 1:
        raise ValueError(f"a secret of {len(secret)} bytes, {count} positions")
    root = hashlib.sha256(b"auditor.activation-list/v1\0" + b"".join(leaves)).digest()
    ranked = sorted(
        range(len(leaves)),
        key=lambda t: hashlib.sha256(b"position\0" + secret + root + t.to_bytes(4, "big")).digest(),
    )
    seed = hashlib.sha256(b"projection\0" + secret + root).digest()[:SEED_BYTES]
    return Challenge(seed, tuple(sorted(ranked[:count])))


def check_answer(
    leaves: Sequence[bytes],
    asked: Challenge,
    given: Fingerprint,
    opened: Mapping[int, npt.NDArray[np.uint16]],
    *,
    tokens: int,
) -> None:
    """Check a provider's answer against its commitment (step 4). Fingerprints have windows of one token.

    Args:
        opened: position -> bfloat16 bits, uint16 [d].
        tokens: output tokens of the request.

    Raises:
        FingerprintLengthError: another number of leaves or fingerprints than tokens.
        FingerprintOpeningError: projection or positions are not those asked for, an opened state is not the
            committed one, or its fingerprint is not of it.
        FingerprintError: windows of several tokens, or states of different widths.
    """
    if given.kind.window != 1:
        raise FingerprintError("fingerprints of several tokens cannot be opened one by one")
    if len(leaves) != tokens or len(given.coded.levels) != tokens:
        raise FingerprintLengthError(
            f"{len(leaves)} leaves and {len(given.coded.levels)} fingerprints for {tokens} tokens"
        )
    if given.projection_seed != asked.projection_seed:
        raise FingerprintOpeningError("the fingerprints have another projection than was asked for")
    if tuple(sorted(opened)) != asked.positions:
        raise FingerprintOpeningError("other positions were opened than were asked for")
    for position, row in sorted(opened.items()):
        if leaf(given.binding, position, row) != leaves[position]:
            raise FingerprintOpeningError(f"the state opened at token {position} is not the committed one")
    _check_same(given, asked.positions, opened)


def _check_same(
    given: Fingerprint, positions: tuple[int, ...], opened: Mapping[int, npt.NDArray[np.uint16]]
) -> None:
    width = len(opened[positions[0]])
    if any(len(row) != width for row in opened.values()) or width < given.kind.features:
        raise FingerprintError("opened states of different widths, or of fewer dimensions than features")
    rows = np.stack([opened[t] for t in positions])
    states = (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    places = list(positions)
    coded = type(given.coded)(given.kind.code, given.coded.scale[places], given.coded.levels[places])
    part = Fingerprint(given.kind, given.projection_seed, given.binding, coded)
    far = residuals(part, states, backend="reference").plain > _SAME
    if bool(far.any()):
        raise FingerprintOpeningError(
            f"the fingerprint of token {positions[int(far.argmax())]} is not of the state opened there"
        )
