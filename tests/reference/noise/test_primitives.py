"""Philox, murmur, Triton's mapping and the Mersenne Twister: known answers, both implementations, random access."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from auditor.kernels import mersenne, murmur, philox
from auditor.kernels.keyed_noise import KeyedNoise, fill_leading, key_words, keyed_noise, noise_of
from auditor.kernels.splitmix import bits53
from auditor.reference.noise import SCHEMES


def u64(*values):
    return np.array(values, np.uint64)


# Random123's kat_vectors, philox4x32 10; engines.md's table of Triton's interpreter.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    plain = philox.philox(tuple(u64(c) for c in counter), tuple(u64(k) for k in key))
    assert tuple(int(w[0]) for w in plain) == words
    compiled = philox.philox_of(*(np.uint64(c) for c in counter), *(np.uint64(k) for k in key))
    assert tuple(int(w) for w in compiled) == words


@pytest.mark.parametrize(
    ("seed", "position", "hashes"),
    [
        (1234, 17, (0xD2FB5CA9, 0x2AEFD550, 0x3F1A0624, 0xCF75A0EF)),
        (-3, 9, (0x7455FFCB, 0xFA7F1D30, 0x7BCA2286, 0xC6721B3E)),
        (2**40 + 77, 3, (0x15BAF118, 0x29E75D03, 0x0ACBC69D, 0x75A63600)),
    ],
)
def test_murmur_gives_the_interpreters_hashes(seed, position, hashes):
    state = murmur.row_states(seed, u64(position))
    assert tuple(murmur.hashes(state, np.arange(4)[None])[0].tolist()) == hashes
    assert tuple(int(murmur.hash_of(state[0], i)) for i in range(4)) == hashes


def test_murmurs_uniforms_are_the_published_ones():
    key = SCHEMES["vllm-gpu-v2/murmur53"].row_keys(1234, 18, 0, 1)
    inner = np.exp(-keyed_noise(KeyedNoise.MURMUR_53, key, np.zeros((1, 1), np.int64))[0, 0])
    assert np.exp(-inner) == pytest.approx(0.9635140155032622, rel=1e-14)
    h = murmur.hashes(murmur.row_states(1234, u64(17)), np.zeros((1, 1), np.int64))[0, 0]
    assert np.float32((int(h) + 0.5) * 2.0**-32) == np.float32(0.8241479992866516)


def test_tritons_rand_is_the_published_one():
    assert philox.triton_rand(u64(1234), u64(17))[0] == np.float32(0.8178596496582031)
    assert philox.triton_rand(u64(2**64 - 3), u64(9))[0] == np.float32(0.07384486496448517)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(-(2**63), 2**63 - 1), start=st.integers(0, 3000), count=st.integers(0, 700))
def test_mersenne_words_can_be_had_from_anywhere(seed, start, count):
    whole = np.random.RandomState(seed % 2**32).randint(0, 2**32, start + count, dtype=np.uint32)
    assert mersenne.words(seed, start, start + count).tolist() == whole[start:].tolist()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**40), vocabulary=st.integers(1, 900), data=st.data())
def test_chosen_elements_of_torchs_exponential_rows_are_torchs_bits(seed, vocabulary, data):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.empty(1, vocabulary).exponential_(generator=generator)[0] for _ in range(4)])
    states = mersenne.row_states(mersenne.seeded(seed), 2 * vocabulary, 4)
    row = data.draw(st.integers(0, 3))
    chosen = sorted(data.draw(st.sets(st.integers(0, vocabulary - 1), min_size=1)))
    before = states[row].copy()
    drawn = mersenne.exponentials(states[row], np.array(chosen))
    assert drawn.tobytes() == rows[row].numpy()[chosen].tobytes()
    assert np.array_equal(states[row], before)


def test_a_real_vocabulary_of_torchs_exponentials_is_the_same_bits():
    theirs = torch.empty(128_256).exponential_(generator=torch.Generator().manual_seed(7)).numpy()
    ours = mersenne.exponentials(mersenne.seeded(7), np.arange(128_256))
    assert ours.tobytes() == theirs.tobytes()
    assert ours[:3].tolist() == pytest.approx([0.32764393, 0.31978348, 1.98117542], rel=1e-7)


def keys_of(kind, rows, seed=0):
    keys = np.random.default_rng(seed).integers(0, 2**63, (rows, 3), dtype=np.uint64)
    if kind in (KeyedNoise.PHILOX_EPSILON, KeyedNoise.PHILOX_64, KeyedNoise.PHILOX_32):
        keys &= np.uint64(2**32 - 1)
    if kind == KeyedNoise.CUDA_EXPONENTIAL:
        keys[:, 1], keys[:, 2] = np.arange(rows), 1024
        return keys
    return np.ascontiguousarray(keys[:, 0])


@pytest.mark.parametrize("kind", KeyedNoise, ids=lambda k: k.name)
def test_noise_is_bounded_by_its_leading_bits_and_compiled_as_plain(kind):
    tokens = 3000
    for r, key in enumerate(key_words(keys_of(kind, 3))):
        plain = keyed_noise(
            kind, key_words(keys_of(kind, 3))[r : r + 1][:, : 3 if kind == 8 else 1], np.arange(tokens)[None]
        )[0]
        words, leading = tuple(key), np.empty(tokens, np.int32)
        fill_leading(int(kind), words, 0, leading)
        compiled = np.array([noise_of(int(kind), words, v) for v in range(0, tokens, 7)])
        np.testing.assert_allclose(compiled, plain[::7], rtol=1e-13, atol=1e-13)
        assert (leading >= 0).all()
        with np.errstate(divide="ignore"):
            assert (plain <= -np.log(leading * 2.0**-31) + 1e-4).all()
        # And the bound is worth having: nearly all losers are ruled out by it.
        assert np.median(-np.log(np.maximum(leading, 1) * 2.0**-31) - plain) < 0.5


@pytest.mark.parametrize("kind", KeyedNoise, ids=lambda k: k.name)
def test_noise_is_gumbel(kind):
    noise = keyed_noise(kind, keys_of(kind, 4, seed=5), np.broadcast_to(np.arange(2500), (4, 2500)))
    assert stats.kstest(noise.ravel(), stats.gumbel_r.cdf).pvalue > 1e-4


def test_position_noise_is_uniform_per_token_and_independent_between_rows():
    """Chi-square of every token's bits over positions, of pairs of rows, and of neighbouring tokens."""
    rows, tokens, bins = 4096, 16, 16
    keys = SCHEMES["gumbel-pos-v1"].row_keys(2**40 + 3, 11, 0, rows)
    cell = (bits53(keys, np.broadcast_to(np.arange(tokens), (rows, tokens))) >> np.uint64(49)).astype(int)
    worst = 1.0
    for token in range(tokens):
        worst = min(worst, stats.chisquare(np.bincount(cell[:, token], minlength=bins)).pvalue)
        for other in (cell[1:, token], np.roll(cell, -1, axis=1)[:-1, token]):
            pairs = np.bincount(cell[:-1, token] * bins + other, minlength=bins * bins)
            worst = min(worst, stats.chisquare(pairs).pvalue)
    assert worst > 1e-5
