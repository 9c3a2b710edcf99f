"""The compiled race's own exponential: close enough to bound a race and to add up to a normaliser."""

from __future__ import annotations

import numpy as np
import pytest

from auditor.kernels.keyed_noise import KeyedNoise, fill_leading, key_words
from auditor.kernels.keyed_race import race
from auditor.kernels.splitmix import bits53, mix
from auditor.kernels.vector_loops import LEAST, weigh


def weights_of(logits, top=0.0):
    weights = np.empty_like(logits)
    weigh(logits, np.float32(1), np.float32(top), weights)
    return weights


def test_weights_are_exponentials_to_within_2e_7():
    generator = np.random.default_rng(0)
    drawn = -generator.exponential(10, 500_000).clip(0, -float(LEAST))
    x = np.concatenate([np.linspace(LEAST, 0, 1_000_001), drawn, -(2.0 ** -np.arange(1, 140))])
    x = x.astype(np.float32)
    assert np.abs(weights_of(x) / np.exp(x.astype(np.float64)) - 1).max() <= 2e-7


def test_a_weight_is_never_below_the_normal_range_nor_above_one():
    x = np.array([0.0, -86.5, -86.6, -87.0, -104.0, -1e4, -3e38, -np.inf], np.float32)
    weights = weights_of(x)
    assert weights[0] == 1
    assert (weights[2:] == weights[2]).all()
    assert (weights >= np.finfo(np.float32).tiny).all()


def test_a_lone_token_after_a_vector_is_weighed_like_those_before_it():
    for length in range(1, 40):
        x = np.full(length, -3.5, np.float32)
        assert weights_of(x, top=1.25) == pytest.approx(np.exp(-4.75), rel=2e-7)


@pytest.mark.parametrize("tail_safe", [True, False])
def test_the_bits_compared_are_the_noises_leading_31(tail_safe):
    key = mix(np.arange(1, dtype=np.uint64))
    ids = np.arange(90_000, 90_133)
    high = np.empty(len(ids), np.int32)
    fill_leading(int(tail_safe), tuple(key_words(key)[0]), ids[0], high)
    leading = (bits53(key, ids[None])[0] >> np.uint64(22)).astype(np.int64)
    assert high.tolist() == (leading if tail_safe else leading ^ 0x7FFFFFFF).tolist()


def test_the_normaliser_adds_up_a_real_vocabulary():
    logits = (np.random.default_rng(5).standard_normal((4, 128_256)) * 3).astype(np.float32)
    logits[1, ::3] = -np.inf
    out = race(
        logits, mix(np.arange(4, dtype=np.uint64)), np.zeros(4, np.int64), noise=KeyedNoise.SPLITMIX_TAIL_SAFE
    )
    exact = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(out.log_normaliser, exact, rtol=0, atol=1e-6)
