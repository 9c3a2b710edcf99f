"""A provider must fix its states before it knows the projection: then what passes are the states it fixed."""

from __future__ import annotations

import numpy as np
import pytest

from auditor.errors import FingerprintError, FingerprintLengthError, FingerprintOpeningError
from auditor.fingerprints.activation_difr import FingerprintKind, basis_of, fingerprint, residuals
from auditor.fingerprints.commit_challenge import challenge, check_answer, commit
from auditor.kernels.sign_projection import matrix

KIND = FingerprintKind("int8", 16)
BINDING, SECRET = b"12345678", bytes(range(32))
TOKENS, WIDTH = 40, 96


def bits_of(states):
    return (states.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def states_of(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def bits(seed=0):
    return bits_of(np.random.default_rng(seed).normal(size=(TOKENS, WIDTH)).astype(np.float32))


def made(rows, seed):
    return fingerprint(states_of(rows), KIND, projection_seed=seed, binding=BINDING, backend="reference")


def answer(rows, asked):
    return made(rows, asked.projection_seed), {t: rows[t] for t in asked.positions}


def test_an_honest_answer_passes():
    rows = bits()
    leaves = commit(BINDING, rows)
    asked = challenge(leaves, SECRET, 5)
    check_answer(leaves, asked, *answer(rows, asked), tokens=TOKENS)


def test_the_challenge_depends_on_commitment_and_secret_and_can_be_repeated():
    one, two = commit(BINDING, bits()), commit(BINDING, bits(1))
    asked = challenge(one, SECRET, 5)
    assert asked == challenge(one, SECRET, 5)
    assert asked.projection_seed != challenge(two, SECRET, 5).projection_seed
    assert asked.projection_seed != challenge(one, bytes(32), 5).projection_seed
    assert len(set(asked.positions)) == 5
    assert challenge(one, SECRET, 999).positions == tuple(range(TOKENS))
    with pytest.raises(ValueError):
        challenge(one, b"short", 5)


def forged(truth, cheap, seed):
    """States that agree with the truth only along a known projection: what a cheap provider would send."""
    p = matrix(basis_of(KIND, seed, WIDTH))
    return bits_of((cheap + (truth - cheap) @ p.T @ p).astype(np.float32))


def test_a_forger_who_knows_the_projection_passes_and_one_who_must_commit_first_does_not():
    truth = states_of(bits())
    cheap = truth + 0.3 * states_of(bits(1))
    known = bytes(16)
    rows = forged(truth, cheap, known)
    assert residuals(made(rows, known), truth, backend="reference").plain.max() < 0.01
    leaves = commit(BINDING, rows)
    asked = challenge(leaves, SECRET, 5)
    given, opened = answer(rows, asked)
    check_answer(leaves, asked, given, opened, tokens=TOKENS)  # they are the committed states,
    assert residuals(given, truth, backend="reference").plain.mean() > 0.1  # and those are wrong


def test_fingerprints_of_better_states_than_the_committed_ones_are_caught_when_opened():
    """Commit to the cheap states, then run the right model once the projection is known."""
    cheap, right = bits(1), bits()
    leaves = commit(BINDING, cheap)
    asked = challenge(leaves, SECRET, 5)
    given = made(right, asked.projection_seed)
    for opened in ({t: cheap[t] for t in asked.positions}, {t: right[t] for t in asked.positions}):
        with pytest.raises(FingerprintOpeningError) as caught:
            check_answer(leaves, asked, given, opened, tokens=TOKENS)
        assert caught.value.code == "fingerprint-opening"


def test_other_positions_or_another_projection_are_refused():
    rows = bits()
    leaves = commit(BINDING, rows)
    asked = challenge(leaves, SECRET, 5)
    given, opened = answer(rows, asked)
    easy = {t: rows[t] for t in range(5)}
    for wrong in (easy, dict(list(opened.items())[:4]), {}):
        with pytest.raises(FingerprintOpeningError):
            check_answer(leaves, asked, given, wrong, tokens=TOKENS)
    with pytest.raises(FingerprintOpeningError):
        check_answer(leaves, asked, made(rows, bytes(16)), opened, tokens=TOKENS)


def test_states_moved_to_another_token_or_request_are_refused():
    rows = bits()
    asked = challenge(commit(BINDING, rows), SECRET, 5)
    given, opened = answer(rows, asked)
    for leaves in (commit(BINDING, np.roll(rows, 1, axis=0)), commit(b"87654321", rows)):
        with pytest.raises(FingerprintOpeningError):
            check_answer(leaves, asked, given, opened, tokens=TOKENS)


def test_a_commitment_of_another_length_is_refused():
    rows = bits()
    leaves = commit(BINDING, rows)
    asked = challenge(leaves, SECRET, 5)
    given, opened = answer(rows, asked)
    with pytest.raises(FingerprintLengthError):
        check_answer(leaves, asked, given, opened, tokens=TOKENS - 1)
    with pytest.raises(FingerprintLengthError):
        check_answer(leaves[:-1], asked, given, opened, tokens=TOKENS)


def test_windows_and_narrow_states_are_refused():
    rows = bits()
    leaves = commit(BINDING, rows)
    asked = challenge(leaves, SECRET, 5)
    wide = fingerprint(
        states_of(rows),
        FingerprintKind("int8", 16, 4),
        projection_seed=asked.projection_seed,
        binding=BINDING,
        backend="reference",
    )
    with pytest.raises(FingerprintError):
        check_answer(leaves, asked, wide, {t: rows[t] for t in asked.positions}, tokens=TOKENS)
    narrow = rows[:, :8]
    leaves = commit(BINDING, narrow)
    asked = challenge(leaves, SECRET, 5)
    given = made(rows, asked.projection_seed)
    with pytest.raises(FingerprintError):
        check_answer(leaves, asked, given, {t: narrow[t] for t in asked.positions}, tokens=TOKENS)
