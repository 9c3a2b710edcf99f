"""SplitMix64 noise: published answers, a sound mixer, and no infinite noise to buy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from auditor.kernels.splitmix import LARGEST_UNIFORM, bits53, flipped, gumbel, mix
from auditor.reference.noise import SCHEMES

WORD = st.integers(0, 2**64 - 1)
LAST = 2**53 - 1
# Fixed seeds: a sound generator fails one in ten million of these.
LEAST_P = 1e-7


def u64(*values):
    return np.array(values, np.uint64)


def mix_by_hand(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def unmix(z):
    """The mixer backwards: undo each xor-shift by repeating it, each product by its inverse."""
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        whole = z
        for _ in range(64 // shift + 1):
            whole = z ^ (whole >> shift)
        z = whole * pow(factor, -1, 2**64) % 2**64
    return z


def rows_of(seed, rows, vocabulary, scheme="gumbel-pos-v1"):
    keys = SCHEMES[scheme].row_keys(seed, 7, 0, rows)
    return bits53(keys, np.tile(np.arange(vocabulary), (rows, 1)))


@pytest.mark.parametrize(
    ("step_seed", "key", "bits"),
    [
        (1234, 0x182AAE38CFCCB83F, (0xF42F020D227A5, 0x12A523DC9028AB, 0xD8AE97ECBB06, 0x163234BC07FDE2)),
        (0, 0, (0x1C4415072F63B9, 0xDCF13CD54372C, 0xD88BA3100128, 0x1F1177150E4990)),
    ],
)
def test_vllm_cpu_keys_and_bits_are_those_of_the_engine(step_seed, key, bits):
    row = mix(u64(step_seed))
    assert row.tolist() == [key]
    assert bits53(row, np.arange(4)[None]).tolist() == [list(bits)]


@pytest.mark.parametrize(("step_seed", "winner"), [(882709079, 2224), (0, 3763), (2**31 - 1, 3725)])
def test_vllm_cpu_noise_alone_elects_the_engines_token(step_seed, winner):
    noise = gumbel(bits53(mix(u64(step_seed)), np.arange(4096)[None]), tail_safe=False)[0]
    assert noise.argmax() == winner
    if step_seed == 882709079:
        assert noise.max() == pytest.approx(9.413590, abs=5e-7)


@given(WORD)
def test_the_mixer_is_the_published_one_and_a_bijection(z):
    mixed = int(mix(u64(z))[0])
    assert mixed == mix_by_hand(z)
    assert unmix(mixed) == z


@given(WORD)
def test_one_flipped_bit_of_the_word_changes_about_half_of_the_result(z):
    changed = mix(u64(*(z ^ (1 << b) for b in range(64)))) ^ mix(u64(z))
    assert 24 < np.mean([int(word).bit_count() for word in changed.tolist()]) < 40


@given(st.integers(0, LAST), st.booleans())
def test_noise_of_any_bits_is_finite(bits, tail_safe):
    if bits == LAST and not tail_safe:
        return  # the engine's own +inf, see below
    value = gumbel(u64(bits), tail_safe=tail_safe)[0]
    assert np.isfinite(value)
    assert -4.0 < value < 38.0


@pytest.mark.parametrize("bits", [0, 1, 2**52 - 1, 2**52, 2**52 + 1, LAST - 1, LAST])
def test_tail_safe_noise_is_finite_at_the_ends_of_the_grid(bits):
    u = min((bits + 0.5) * 2.0**-53, 1 - 2.0**-53)
    value = gumbel(u64(bits), tail_safe=True)[0]
    assert value == pytest.approx(-math.log(-math.log1p(-u)), rel=1e-14)


def test_a_seed_made_for_infinite_noise_gets_finite_noise():
    """Every step from seed to bits can be undone, so an attacker can aim at the last grid point."""
    golden, domain, position, token = 0x9E3779B97F4A7C15, 0x8D2A5371DD512F83, 11, 3
    row_key = (unmix(2**64 - 1) - (token + 1) * golden) % 2**64
    seed = unmix((unmix(row_key) - (position + 1) * golden) % 2**64) ^ domain
    keys = SCHEMES["gumbel-pos-v1"].row_keys(seed, position, 0, 1)
    bits = bits53(keys, np.array([[token]]))
    assert int(bits[0, 0]) == LAST
    assert gumbel(bits, tail_safe=True)[0, 0] == pytest.approx(-3.6037789, abs=1e-6)


def test_the_classic_transform_keeps_the_engines_infinity():
    assert gumbel(u64(LAST), tail_safe=False)[0] == np.inf
    assert np.isfinite(gumbel(u64(LAST - 1), tail_safe=False)[0])


def test_the_transforms_mirror_each_other():
    bits = u64(*np.random.default_rng(0).integers(0, 2**50, 1000).tolist())
    assert np.allclose(
        gumbel(bits, tail_safe=True), gumbel(flipped(bits), tail_safe=False), rtol=0, atol=1e-3
    )
    assert not np.allclose(gumbel(bits, tail_safe=True), gumbel(bits, tail_safe=False), atol=0.5)


def test_noise_falls_with_the_bits_when_tail_safe_and_rises_when_classic():
    bits = u64(*sorted(np.random.default_rng(1).integers(0, 2**53, 1000).tolist()))
    assert (np.diff(gumbel(bits, tail_safe=True)) <= 0).all()
    assert (np.diff(gumbel(bits, tail_safe=False)) >= 0).all()
    assert LARGEST_UNIFORM < 1.0


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, -1])
def test_draws_of_every_token_are_uniform_across_positions(seed):
    rows, bins = 4096, 32
    bits = rows_of(seed, rows, 200)
    counts = np.stack(
        [np.bincount(column, minlength=bins) for column in (bits >> np.uint64(48)).astype(int).T]
    )
    statistic = ((counts - rows / bins) ** 2 / (rows / bins)).sum(axis=1)
    p = chi2.sf(statistic, bins - 1)
    assert p.min() > LEAST_P
    # The statistics themselves must follow their law: neither too rough nor too smooth.
    assert chi2.sf(statistic.sum(), 200 * (bins - 1)) > LEAST_P
    assert chi2.cdf(statistic.sum(), 200 * (bins - 1)) > LEAST_P


@pytest.mark.parametrize("shift", [0, 24, 48])
def test_neighbouring_positions_tokens_and_seeds_are_independent(shift):
    def bins(bits):
        return ((bits >> np.uint64(shift)) & np.uint64(15)).astype(int)

    here, there = bins(rows_of(5, 2000, 60)), bins(rows_of(6, 2000, 60))
    for a, b in ((here[:-1], here[1:]), (here[:, :-1], here[:, 1:]), (here, there)):
        table = np.bincount((a * 16 + b).ravel(), minlength=256)
        assert chisquare(table).pvalue > LEAST_P


@pytest.mark.parametrize("scheme", ["gumbel-pos-v1", "vllm-cpu-0.32/splitmix64"])
def test_winners_of_a_race_follow_the_softmax(scheme):
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01]))
    rows = 40_000
    noise = gumbel(rows_of(99, rows, 6, scheme), tail_safe=bool(SCHEMES[scheme].noise))
    wins = np.bincount((logits + noise).argmax(axis=1), minlength=6)
    assert chisquare(wins, np.exp(logits) * rows).pvalue > LEAST_P
