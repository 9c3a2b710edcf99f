"""Commit, then challenge: fix hidden states before anyone knows where and along what they will be looked at.

1. The provider hashes its hidden states (bfloat16) at every position of prompt and output, after some layers,
   and publishes a digest for each layer.
2. The auditor draws a secret *after* that. Secret and commitment give a layer, the projection and positions.
3. The provider answers with that layer's leaves, fingerprints of all positions, and the states asked for.
4. The auditor checks that (a) the leaves are the committed ones, (b) the opened states are the leaves',
   (c) the fingerprints are theirs.
5. It computes its own states up to that layer only, and compares fingerprints as ever.

Fingerprints that are not of the committed states at a share s of the positions pass step 4c with probability
(1 - s) ** positions. A layer drawn at random from those committed to is as hard to forge as all of them, and
costs the auditor the part of the forward pass below it. Source of the order: DiFR's stated limit, arXiv
2511.20621 (a projection known beforehand can be satisfied in k features), and the usual commit and open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from auditor.errors import (
    FingerprintError,
    FingerprintLengthError,
    FingerprintOpeningError,
    FingerprintValueError,
)
from auditor.fingerprints.activation_difr import (
    FINAL,
    SEED_BYTES,
    Fingerprint,
    FingerprintKind,
    fingerprint,
    residuals,
)

SECRET_BYTES = 32

_SAME = 1e-4  # relative distance that float32 sums of the same row may leave

Bits = npt.NDArray[np.uint16]
"""Rows of bfloat16, by their bits."""


@dataclass(frozen=True, slots=True)
class ActivationCommitment:
    """What a provider publishes of one request.

    Attributes:
        binding: as in a fingerprint (`request_binding`).
        positions: rows of each layer: prompt and output tokens but the last, whose state nobody needs.
        width: dimensions of a state.
        layers: layer (`FINAL` after the final norm) -> SHA-256 over the list of its leaves.
    """

    binding: bytes
    positions: int
    width: int
    layers: Mapping[int, bytes]

    @property
    def root(self) -> bytes:
        """SHA-256 over all of it."""
        head = b"auditor.activation-root/v1\0" + self.binding + _place(self.positions) + _place(self.width)
        parts = (_depth(layer) + digest for layer, digest in sorted(self.layers.items()))
        return hashlib.sha256(head + b"".join(parts)).digest()


@dataclass(frozen=True, slots=True)
class ActivationChallenge:
    """What is asked of one commitment: a kind with its layer, the projection, positions to open (rising)."""

    kind: FingerprintKind
    projection_seed: bytes
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ActivationAnswer:
    """What the provider returns.

    Attributes:
        leaves: of every position of the layer asked for.
        given: fingerprints of every position.
        opened: position -> state, bits of bfloat16 [width].
    """

    leaves: tuple[bytes, ...]
    given: Fingerprint
    opened: Mapping[int, Bits]


def _place(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _depth(layer: int) -> bytes:
    return layer.to_bytes(2, "big", signed=True)


def leaf(binding: bytes, layer: int, position: int, row: Bits) -> bytes:
    """SHA-256 of one hidden state: bfloat16 bits uint16 [width], with its request, layer and place."""
    head = b"auditor.activation-leaf/v2\0" + binding + _depth(layer) + _place(position)
    return hashlib.sha256(head + row.astype(">u2").tobytes()).digest()


def leaves_of(binding: bytes, layer: int, rows: Bits) -> tuple[bytes, ...]:
    """One leaf for each row, [positions, width]."""
    return tuple(leaf(binding, layer, t, row) for t, row in enumerate(rows))


def _digest(leaves: tuple[bytes, ...]) -> bytes:
    return hashlib.sha256(b"auditor.activation-list/v1\0" + b"".join(leaves)).digest()


def commit(binding: bytes, states: Mapping[int, Bits]) -> ActivationCommitment:
    """Commit to states: layer -> [positions, width], all of one shape.

    Raises:
        FingerprintError: no layers, or layers of different shapes.
    """
    shapes = {rows.shape for rows in states.values()}
    if len(shapes) != 1:
        raise FingerprintError(f"states of {len(shapes)} shapes")
    ((positions, width),) = shapes
    digests = {layer: _digest(leaves_of(binding, layer, rows)) for layer, rows in states.items()}
    return ActivationCommitment(binding, positions, width, digests)


def challenge(
    commitment: ActivationCommitment, secret: bytes, count: int, kind: FingerprintKind
) -> ActivationChallenge:
    """Draw the challenge of a commitment; anyone can repeat it once the secret is out.

    Args:
        secret: 32 random bytes, drawn after the commitment was received.
        count: positions to open; all of them when there are fewer.
        kind: code and number of features; the layer is drawn.

    Raises:
        FingerprintError: a secret of another length, no positions, or windows of several tokens.
    """
    if len(secret) != SECRET_BYTES or count < 1 or kind.window != 1:
        raise FingerprintError(
            f"a secret of {len(secret)} bytes, {count} positions, windows of {kind.window}"
        )

    def drawn(what: bytes) -> bytes:
        return hashlib.sha256(what + b"\0" + secret + commitment.root).digest()

    ranked = sorted(range(commitment.positions), key=lambda t: drawn(b"position" + _place(t)))
    layer = min(commitment.layers, key=lambda layer: drawn(b"layer" + _depth(layer)))
    kind = FingerprintKind(kind.code, kind.features, 1, layer)
    return ActivationChallenge(kind, drawn(b"projection")[:SEED_BYTES], tuple(sorted(ranked[:count])))


def states_of(rows: Bits) -> npt.NDArray[np.float32]:
    """The numbers that bits of bfloat16 stand for."""
    return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)


def answer(
    commitment: ActivationCommitment, asked: ActivationChallenge, states: Mapping[int, Bits]
) -> ActivationAnswer:
    """The provider's answer, from the states that it kept.

    Raises:
        FingerprintOpeningError: a layer or positions that were not committed to.
        FingerprintValueError: NaN, infinity, or values too large for the code.
    """
    layer = asked.kind.layer
    if layer not in states or layer not in commitment.layers or asked.positions[-1] >= commitment.positions:
        raise FingerprintOpeningError(
            f"asked for layer {layer}, position {asked.positions[-1]}: not committed to"
        )
    rows = states[layer]
    given = fingerprint(
        states_of(rows), asked.kind, projection_seed=asked.projection_seed, binding=commitment.binding
    )
    leaves = leaves_of(commitment.binding, layer, rows)
    return ActivationAnswer(leaves, given, {t: rows[t] for t in asked.positions})


def check_answer(commitment: ActivationCommitment, asked: ActivationChallenge, got: ActivationAnswer) -> None:
    """Check a provider's answer against its commitment (step 4).

    Raises:
        FingerprintLengthError: another number of leaves or fingerprints than positions.
        FingerprintOpeningError: leaves, kind, projection or positions are not those committed to or asked
            for, an opened state is not the committed one, or its fingerprint is not of it.
        FingerprintValueError: an opened state holds NaN or infinity.
    """
    given = got.given
    if len(got.leaves) != commitment.positions or len(given.coded.levels) != commitment.positions:
        raise FingerprintLengthError(
            f"{len(got.leaves)} leaves and {len(given.coded.levels)} fingerprints for "
            f"{commitment.positions} positions"
        )
    if commitment.layers.get(asked.kind.layer) != _digest(got.leaves):
        raise FingerprintOpeningError("the leaves are not those committed to")
    if (given.kind, given.binding) != (asked.kind, commitment.binding):
        raise FingerprintOpeningError(f"fingerprints of kind {given.kind.name}, or of another request")
    if given.projection_seed != asked.projection_seed:
        raise FingerprintOpeningError("the fingerprints have another projection than was asked for")
    if tuple(sorted(got.opened)) != asked.positions:
        raise FingerprintOpeningError("other positions were opened than were asked for")
    for position, row in sorted(got.opened.items()):
        if leaf(given.binding, asked.kind.layer, position, row) != got.leaves[position]:
            raise FingerprintOpeningError(f"the state opened at position {position} is not the committed one")
    _check_same(given, asked.positions, got.opened, commitment.width)


def _check_same(
    given: Fingerprint, positions: tuple[int, ...], opened: Mapping[int, Bits], width: int
) -> None:
    if any(len(row) != width for row in opened.values()) or width < given.kind.features:
        raise FingerprintOpeningError(
            "opened states of another width than committed to, or too few dimensions"
        )
    places = list(positions)
    coded = type(given.coded)(given.kind.code, given.coded.scale[places], given.coded.levels[places])
    part = Fingerprint(given.kind, given.projection_seed, given.binding, coded)
    states = states_of(np.stack([opened[t] for t in positions]))
    if not np.isfinite(states).all():
        raise FingerprintValueError("an opened state holds NaN or infinity")
    far = residuals(part, states, backend="reference").plain > _SAME
    if bool(far.any()):
        raise FingerprintOpeningError(
            f"the fingerprint of position {positions[int(far.argmax())]} is not of the state opened there"
        )


__all__ = [
    "FINAL",
    "SECRET_BYTES",
    "ActivationAnswer",
    "ActivationChallenge",
    "ActivationCommitment",
    "answer",
    "challenge",
    "check_answer",
    "commit",
    "states_of",
]
