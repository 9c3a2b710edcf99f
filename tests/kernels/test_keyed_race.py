"""The compiled race and the plain one agree on every shape, however far-fetched the logits."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from auditor.kernels.keyed_noise import KeyedNoise
from auditor.kernels.keyed_race import race
from auditor.kernels.splitmix import bits53, gumbel, mix

SIZES = [1, 2, 7, 123, 127, 128, 129, 252, 4096]


def keys_of(rows, seed=0):
    return mix(np.arange(seed * 1000, seed * 1000 + rows, dtype=np.uint64))


def both(logits, keys, claimed, tail_safe):
    claimed = np.asarray(claimed, np.int64)
    plain = race(logits, keys, claimed, noise=KeyedNoise(tail_safe), backend="reference")
    quick = race(logits, keys, claimed, noise=KeyedNoise(tail_safe), backend="compiled")
    return plain, quick


def assert_equal(plain, quick):
    assert plain.winner.tolist() == quick.winner.tolist()
    assert plain.rank.tolist() == quick.rank.tolist()
    for name in ("winner_score", "runner_up_score", "claimed_score"):
        # Two libraries' logarithms may differ in the last place.
        np.testing.assert_allclose(getattr(quick, name), getattr(plain, name), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(quick.log_normaliser, plain.log_normaliser, rtol=1e-6, atol=1e-5)


def claims(logits, keys, tail_safe, seed=0):
    """The winner's, the worst token's and a random claim."""
    anything = np.zeros(len(logits), np.int64)
    winner = race(logits, keys, anything, noise=KeyedNoise(tail_safe), backend="reference").winner
    worst = logits.argmin(axis=1)
    return winner, worst, np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))


def assert_agreement(logits, keys):
    for tail_safe in (True, False):
        for claimed in claims(logits, keys, tail_safe):
            assert_equal(*both(logits, keys, claimed, tail_safe))


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 5.0, 30.0])
def test_both_paths_agree_on_every_shape(vocabulary, spread):
    generator = np.random.default_rng(vocabulary)
    logits = (generator.standard_normal((9, vocabulary)) * spread).astype(np.float32)
    assert_agreement(logits, keys_of(9, vocabulary))


def test_both_paths_agree_on_a_real_vocabulary():
    logits = (np.random.default_rng(4).standard_normal((3, 151_936)) * 3).astype(np.float32)
    assert_agreement(logits, keys_of(3, 8))


@pytest.mark.parametrize("vocabulary", [7, 129, 300])
@pytest.mark.parametrize("high", [80.0, 800.0])
def test_tokens_far_below_float32s_least_exponential_are_still_ranked(vocabulary, high):
    """A claim at the bottom is beaten by tokens whose own weight underflows."""
    generator = np.random.default_rng(vocabulary)
    logits = generator.choice([-high, high], (6, vocabulary), p=[0.98, 0.02]).astype(np.float32)
    logits[:, vocabulary // 2] = high
    assert_agreement(logits, keys_of(6, 3))


def test_a_lone_giant_leaves_the_true_runner_up():
    logits = np.full((1, 300), -160.0, np.float32)
    logits[0, 250] = 0.0
    plain, quick = both(logits, keys_of(1), [250], tail_safe=True)
    assert_equal(plain, quick)
    assert quick.runner_up_score[0] > -160.0


def test_a_vocabulary_of_one_has_no_runner_up():
    _, quick = both(np.zeros((2, 1), np.float32), keys_of(2), [0, 0], tail_safe=True)
    assert quick.winner.tolist() == [0, 0]
    assert np.isneginf(quick.runner_up_score).all()
    assert quick.rank.tolist() == [0, 0]


@pytest.mark.parametrize("tail_safe", [True, False])
def test_excluded_tokens_never_win_and_lose_to_everything(tail_safe):
    generator = np.random.default_rng(9)
    logits = generator.standard_normal((20, 200)).astype(np.float32)
    allowed = generator.random((20, 200)) < 0.1
    allowed[:, 7] = True
    logits[~allowed] = -np.inf
    excluded = (~allowed).argmax(axis=1)
    plain, quick = both(logits, keys_of(20), excluded, tail_safe)
    assert_equal(plain, quick)
    assert allowed[np.arange(20), quick.winner].all()
    assert quick.rank.tolist() == allowed.sum(axis=1).tolist()


def test_a_lone_allowed_token_has_no_runner_up():
    logits = np.full((1, 200), -np.inf, np.float32)
    logits[0, 150] = 1.0
    for claimed in (150, 3):
        plain, quick = both(logits, keys_of(1), [claimed], tail_safe=False)
        assert_equal(plain, quick)
        assert quick.winner[0] == 150
        assert np.isneginf(quick.runner_up_score[0])


def test_an_exact_tie_goes_to_the_lowest_id_whoever_claims():
    """Two tokens are given one score by setting the second's logit to the difference of their noises."""
    key = keys_of(1)
    noise = gumbel(bits53(key, np.arange(200)[None]), tail_safe=True)[0]
    logits = np.full((1, 200), -60.0, np.float32)
    for low, high in ((3, 5), (3, 190), (130, 131)):
        tied = logits.copy()
        # Powers of two so large that the noise is rounded away: the scores are equal bit by bit.
        tied[0, [low, high]] = 2.0**60
        assert tied[0, low] + noise[low] == tied[0, high] + noise[high]
        for claimed in (low, high, 0):
            plain, quick = both(tied, key, [claimed], tail_safe=True)
            assert_equal(plain, quick)
            assert quick.winner[0] == low
            assert quick.runner_up_score[0] == quick.winner_score[0]


@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 300)),
        elements=st.floats(-500, 500, width=32),
    ),
    seed=st.integers(0, 2**40),
    where=st.integers(0, 2**31),
    tail_safe=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_both_paths_agree_on_any_logits(logits, seed, where, tail_safe):
    keys = mix(np.arange(len(logits), dtype=np.uint64) + np.uint64(seed))
    assert_equal(*both(logits, keys, np.full(len(logits), where % logits.shape[1]), tail_safe))


def test_the_claim_changes_nothing_but_its_own_score_and_rank():
    logits = np.random.default_rng(2).standard_normal((4, 500)).astype(np.float32)
    first = race(logits, keys_of(4), np.zeros(4, np.int64), noise=KeyedNoise.SPLITMIX_TAIL_SAFE)
    second = race(logits, keys_of(4), np.full(4, 499), noise=KeyedNoise.SPLITMIX_TAIL_SAFE)
    assert first.winner.tolist() == second.winner.tolist()
    assert first.runner_up_score.tolist() == second.runner_up_score.tolist()
    honest = race(logits, keys_of(4), first.winner, noise=KeyedNoise.SPLITMIX_TAIL_SAFE)
    assert (honest.claimed_score == honest.winner_score).all()
    assert (honest.rank == 0).all()


def test_inputs_are_left_as_they_were():
    logits = np.random.default_rng(3).standard_normal((2, 50)).astype(np.float32)
    before = logits.copy()
    race(logits, keys_of(2), np.array([0, 1]), noise=KeyedNoise.SPLITMIX_TAIL_SAFE)
    race(logits, keys_of(2), np.array([0, 1]), noise=KeyedNoise.SPLITMIX_TAIL_SAFE, backend="reference")
    assert (logits == before).all()


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.9])
def test_a_temperature_divides_the_logits_in_float32(temperature, backend):
    z = (np.random.default_rng(6).standard_normal((5, 3000)) * 3).astype(np.float32)
    claimed = np.arange(5)
    ours = race(
        z, keys_of(5), claimed, noise=KeyedNoise.SPLITMIX_TAIL_SAFE, temperature=temperature, backend=backend
    )
    divided = z / np.float32(temperature)
    assert_equal(
        race(divided, keys_of(5), claimed, noise=KeyedNoise.SPLITMIX_TAIL_SAFE, backend="reference"), ours
    )


@pytest.mark.parametrize("top", [0, 1, 20, 700, 5000])
@pytest.mark.parametrize("vocabulary", [1, 300, 3000])
def test_the_largest_logits_come_in_order_with_ties_by_id(vocabulary, top):
    z = (np.random.default_rng(7).standard_normal((4, vocabulary)) * 3).round().astype(np.float32)
    claimed = np.zeros(4, np.int64)
    plain, ours = (
        race(z, keys_of(4), claimed, noise=KeyedNoise.SPLITMIX_CLASSIC, top=top, backend=backend)
        for backend in ("reference", "compiled")
    )
    assert_equal(plain, ours)
    assert ours.top_ids.shape == (4, min(top, vocabulary))
    assert ours.top_ids.dtype == np.int64
    assert ours.top_logits.dtype == np.float32
    assert ours.top_ids.tolist() == plain.top_ids.tolist()
    assert np.array_equal(ours.top_logits, plain.top_logits)


def test_a_missing_triton_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "auditor.kernels.keyed_race_triton", raising=False)
    with pytest.raises(ImportError):
        race(
            np.zeros((1, 9), np.float32),
            keys_of(1),
            np.zeros(1, np.int64),
            noise=KeyedNoise.SPLITMIX_TAIL_SAFE,
            backend="triton",
        )
