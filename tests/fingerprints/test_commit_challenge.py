"""A provider must fix its states before it knows the projection: then what passes are the states it fixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from auditor.errors import (
    FingerprintError,
    FingerprintLengthError,
    FingerprintOpeningError,
    FingerprintValueError,
)
from auditor.fingerprints.activation_difr import FINAL, FingerprintKind, basis_of, fingerprint, residuals
from auditor.fingerprints.commit_challenge import (
    ActivationAnswer,
    answer,
    challenge,
    check_answer,
    commit,
    leaves_of,
    states_of,
)
from auditor.kernels.sign_projection import matrix

KIND = FingerprintKind("int8", 16)
BINDING, SECRET = b"12345678", bytes(range(32))
POSITIONS, WIDTH = 40, 96
LAYERS = (FINAL, 1, 3)


def bits_of(states):
    return (states.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def bits(seed=0):
    return bits_of(np.random.default_rng(seed).normal(size=(POSITIONS, WIDTH)).astype(np.float32))


def states(seed=0):
    return {layer: bits(10 * seed + place) for place, layer in enumerate(LAYERS)}


def asked_of(commitment, secret=SECRET, count=5):
    return challenge(commitment, secret, count, KIND)


def made(rows, kind, seed):
    return fingerprint(states_of(rows), kind, projection_seed=seed, binding=BINDING)


def given_of(rows, asked):
    return made(rows, asked.kind, asked.projection_seed)


def test_an_honest_answer_passes_whatever_layer_is_drawn():
    own = commit(BINDING, states())
    drawn = set()
    for n in range(24):
        asked = asked_of(own, bytes([n]) * 32)
        check_answer(own, asked, answer(own, asked, states()))
        drawn.add(asked.kind.layer)
    assert drawn == set(LAYERS)


def test_the_challenge_depends_on_commitment_and_secret_and_can_be_repeated():
    one, two = commit(BINDING, states()), commit(BINDING, states(1))
    asked = asked_of(one)
    assert asked == asked_of(one)
    assert asked.projection_seed != asked_of(two).projection_seed
    assert asked.projection_seed != asked_of(one, bytes(32)).projection_seed
    assert len(set(asked.positions)) == 5
    assert asked_of(one, count=999).positions == tuple(range(POSITIONS))
    for bad in ((b"short", 5, KIND), (SECRET, 0, KIND), (SECRET, 5, FingerprintKind("int8", 16, 4))):
        with pytest.raises(FingerprintError):
            challenge(one, *bad)


def test_the_root_binds_every_part_of_the_commitment():
    own = commit(BINDING, states())
    others = [
        replace(own, binding=b"87654321"),
        replace(own, positions=39),
        replace(own, width=97),
        replace(own, layers={**own.layers, 3: own.layers[1]}),
        replace(own, layers={layer: own.layers[layer] for layer in (1, 3)}),
    ]
    assert len({own.root, *(other.root for other in others)}) == 6


def forged(truth, cheap, seed):
    """States that agree with the truth only along a known projection: what a cheap provider would send."""
    p = matrix(basis_of(KIND, seed, WIDTH))
    return bits_of((cheap + (truth - cheap) @ p.T @ p).astype(np.float32))


def test_a_forger_who_knows_the_projection_passes_and_one_who_must_commit_first_does_not():
    truth = states_of(bits())
    cheap = truth + 0.3 * states_of(bits(1))
    known = bytes(16)
    rows = forged(truth, cheap, known)
    assert residuals(made(rows, KIND, known), truth, backend="reference").plain.max() < 0.01
    own = commit(BINDING, {FINAL: rows})
    asked = asked_of(own)
    got = answer(own, asked, {FINAL: rows})
    check_answer(own, asked, got)  # they are the committed states,
    assert residuals(got.given, truth, backend="reference").plain.mean() > 0.1  # and those are wrong


def test_fingerprints_of_better_states_than_the_committed_ones_are_caught_when_opened():
    """Commit to the cheap states, then run the right model once the projection is known."""
    cheap, right = bits(1), bits()
    own = commit(BINDING, {FINAL: cheap})
    asked = asked_of(own)
    leaves = leaves_of(BINDING, FINAL, cheap)
    for opened in ({t: cheap[t] for t in asked.positions}, {t: right[t] for t in asked.positions}):
        with pytest.raises(FingerprintOpeningError) as caught:
            check_answer(own, asked, ActivationAnswer(leaves, given_of(right, asked), opened))
        assert caught.value.code == "fingerprint-opening"


def test_better_states_at_half_of_the_positions_pass_a_challenge_as_often_as_said():
    cheap, right = bits(1), bits()
    mixed = right.copy()
    mixed[::2] = cheap[::2]  # what was committed to is right at every other position
    own, passed = commit(BINDING, {FINAL: mixed}), 0
    leaves = leaves_of(BINDING, FINAL, mixed)
    for n in range(200):
        asked = asked_of(own, n.to_bytes(32, "big"), 3)
        try:
            opened = {t: mixed[t] for t in asked.positions}
            check_answer(own, asked, ActivationAnswer(leaves, given_of(right, asked), opened))
            passed += 1
        except FingerprintOpeningError:
            pass
    expected = 20 * 19 * 18 / (40 * 39 * 38)
    assert abs(passed / 200 - expected) < 4 * (expected * (1 - expected) / 200) ** 0.5


def test_other_positions_layers_or_another_projection_are_refused():
    own = commit(BINDING, states())
    asked = asked_of(own)
    rows = states()[asked.kind.layer]
    got = answer(own, asked, states())
    other = next(layer for layer in LAYERS if layer != asked.kind.layer)
    wrong = [
        replace(got, opened={t: rows[t] for t in range(5)}),
        replace(got, opened=dict(list(got.opened.items())[:4])),
        replace(got, opened={}),
        replace(got, given=made(rows, asked.kind, bytes(16))),
        replace(got, given=made(rows, replace(KIND, layer=other), asked.projection_seed)),
        replace(got, given=replace(got.given, binding=b"87654321")),
        replace(got, leaves=leaves_of(BINDING, other, states()[other])),
        replace(got, leaves=leaves_of(BINDING, asked.kind.layer, np.roll(rows, 1, axis=0))),
    ]
    for answer_ in wrong:
        with pytest.raises(FingerprintOpeningError):
            check_answer(own, asked, answer_)


def test_what_was_not_committed_to_cannot_be_answered():
    own = commit(BINDING, {FINAL: bits()})
    asked = replace(asked_of(own), kind=replace(KIND, layer=2))
    with pytest.raises(FingerprintOpeningError):
        answer(own, asked, {FINAL: bits(), 2: bits()})


def test_leaves_or_fingerprints_of_another_length_are_refused():
    own = commit(BINDING, {FINAL: bits()})
    asked = asked_of(own)
    got = answer(own, asked, {FINAL: bits()})
    short = given_of(bits()[:-1], asked)
    for wrong in (replace(got, leaves=got.leaves[:-1]), replace(got, given=short)):
        with pytest.raises(FingerprintLengthError):
            check_answer(own, asked, wrong)


def test_opened_states_of_another_width_or_that_are_not_numbers_are_refused():
    own = commit(BINDING, {FINAL: bits()})
    asked = asked_of(own)
    got = answer(own, asked, {FINAL: bits()})
    with pytest.raises(FingerprintOpeningError):
        check_answer(replace(own, width=WIDTH + 1), asked, got)
    nan = np.full_like(bits(), 0x7FC0)
    own = commit(BINDING, {FINAL: nan})
    asked = asked_of(own)
    opened = {t: nan[t] for t in asked.positions}
    got = ActivationAnswer(leaves_of(BINDING, FINAL, nan), given_of(bits(), asked), opened)
    with pytest.raises(FingerprintValueError):
        check_answer(own, asked, got)


def test_layers_of_different_shapes_are_not_committed_to():
    for wrong in ({}, {FINAL: bits(), 1: bits()[:-1]}):
        with pytest.raises(FingerprintError):
            commit(BINDING, wrong)
