"""Rows under typical-p, top-n-sigma and XTC: an honest engine matches, and a margin is a movement of logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TypicalLogitsWarper

from auditor.kernels.mersenne import words
from auditor.reference.head import draw_rows, effective_sampling, score_rows
from auditor.reference.noise import SCHEMES, Draws
from auditor.reference.sampling import SamplingSpec
from auditor.reference.shape_filters import FAR
from tests.reference.test_shape_filters import F32, PlainLlamaCpp, row_of

V, ROWS = 150, 24
LLAMA, TORCH, CUDA = "llama.cpp/mt19937-u64-icdf", "torch-cpu-multinomial", "torch-cuda-multinomial"
TYPICAL = SamplingSpec(typical_p=0.8, temperature=0.9)
CASES = {
    "typical-p of generate": (TORCH, TYPICAL),
    "typical-p and top-k of generate": (TORCH, SamplingSpec(typical_p=0.6, top_k=30, temperature=1.2)),
    "typical-p of generate on a GPU": (CUDA, TYPICAL),
    "typical-p of llama.cpp": (LLAMA, TYPICAL),
    "typical-p and top-p of llama.cpp": (LLAMA, SamplingSpec(typical_p=0.8, top_p=0.9)),
    "top-n-sigma": (LLAMA, SamplingSpec(top_n_sigma=1.2, temperature=1.5)),
    "top-n-sigma and top-p": (LLAMA, SamplingSpec(top_n_sigma=1.5, top_p=0.9)),
    "XTC": (LLAMA, SamplingSpec(xtc_probability=0.5, xtc_threshold=0.05)),
    "XTC, top-k and top-n-sigma": (
        LLAMA,
        SamplingSpec(xtc_probability=0.6, xtc_threshold=0.02, top_k=60, top_n_sigma=2.0, temperature=0.8),
    ),
}


def tile(kind="spread", seed=0):
    return np.stack([row_of(kind, V, seed * 1000 + r) for r in range(ROWS)])


def draws_of(scheme, spec, seed):
    return Draws(SCHEMES[scheme], seed, 7, V, spec).take(ROWS)


def scored(z, claimed, name, seed=11):
    scheme, spec = CASES[name]
    return score_rows(
        torch.from_numpy(z),
        np.asarray(claimed, np.int64),
        spec,
        SCHEMES[scheme],
        draws_of(scheme, spec, seed),
    )


def winners(z, name, seed=11):
    scheme, spec = CASES[name]
    return draw_rows(torch.from_numpy(z), spec, SCHEMES[scheme], draws_of(scheme, spec, seed))


def by_generate(z, spec, seed):
    """`generate`'s own processors and torch's own draw, a row a step."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(spec.temperature)])
    if spec.top_k:
        warpers.append(TopKLogitsWarper(spec.top_k))
    warpers.append(TypicalLogitsWarper(spec.typical_p))
    generator = torch.Generator().manual_seed(seed)
    scores = [warpers(None, torch.from_numpy(row)[None]) for row in z]
    return [int(torch.multinomial(s.softmax(dim=-1), 1, generator=generator)) for s in scores]


def by_llama_cpp(z, spec, seed):
    """The chain and its draw by the letter: two generators of one seed."""
    drawn, coins, chosen = words(seed, 0, 2 * len(z)).astype(object), words(seed, 0, len(z)), []
    for r, row in enumerate(z):
        chain = PlainLlamaCpp(row)
        ids = chain.run(spec, F32(coins[r]) / F32(2**32))
        scaled = np.array([c[1] for c in chain.candidates if np.isfinite(c[1])]) / F32(spec.temperature)
        upper = np.cumsum(np.exp(scaled - scaled.max()), dtype=np.float64)
        u = (drawn[2 * r] + drawn[2 * r + 1] * 2**32) / 2**64
        chosen.append(ids[int((upper < u * upper[-1]).sum())])
    return chosen


@pytest.mark.parametrize("kind", ["spread", "flat", "peaked"])
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] != CUDA])
def test_an_honest_engine_matches_at_margin_zero(name, kind):
    scheme, spec = CASES[name]
    misses = 0
    for seed in (11, 12, 2**31 + 5):
        z = tile(kind, seed % 100)
        sampled = (by_llama_cpp if scheme == LLAMA else by_generate)(z, spec, seed)
        stats = scored(z, sampled, name, seed)
        misses += int((~stats.matched).sum())
        assert (stats.margin[stats.matched] == 0).all()
        assert (stats.margin < 1e-4).all()
        assert stats.filtered.all()
        assert not stats.outside[stats.matched].any()
    assert misses <= 1  # float32 rounding at a border


@pytest.mark.parametrize("kind", ["spread", "flat", "peaked"])
@pytest.mark.parametrize("name", CASES)
def test_margins_are_finite_at_least_the_slack_and_zero_only_for_the_winner(name, kind):
    z = tile(kind)
    winner = winners(z, name)
    for shift in range(0, V, 17):
        stats = scored(z, (winner + shift) % V, name)
        assert (stats.winner == winner).all()
        assert (stats.margin < FAR).all()
        assert ((stats.margin == 0) == stats.matched).all() or name.endswith("GPU")
        missed = ~stats.matched
        assert (stats.margin[missed] >= stats.slack[missed] * (1 - 1e-9)).all() or name.endswith("GPU")
        assert (stats.margin >= stats.edge).all()
        assert (stats.edge[stats.outside] > 0).all()
        assert np.isfinite(stats.log_probability).all()


@pytest.mark.parametrize("name", CASES)
@given(
    seed=st.integers(0, 2**20), share=st.floats(0.0, 0.99), kind=st.sampled_from(["spread", "flat", "peaked"])
)
@settings(max_examples=8, deadline=None)
def test_noise_within_the_slack_changes_no_winner(name, seed, share, kind):
    if CASES[name][1].top_p < 1:
        share /= 5  # the nucleus is of what the filter before it leaves: its costs hold while that does
    z = tile(kind, seed % 50)
    stats = scored(z, winners(z, name), name)
    movement = np.minimum(stats.slack, 5.0) * share - 2e-6  # an eye on float32
    rng = np.random.default_rng(seed)
    noise = (rng.random((ROWS, V)) - 0.5) * np.maximum(movement, 0)[:, None]
    again = winners((z + noise).astype(F32), name)
    assert (again == stats.winner)[movement > 0].all()


@pytest.mark.parametrize("name", CASES)
def test_another_seed_does_not_pass_for_the_declared_one(name):
    z = tile()
    stats = scored(z, winners(z, name, seed=12), name)
    assert stats.matched.mean() < 0.5
    assert np.median(stats.margin[~stats.matched]) > 0.03


@pytest.mark.parametrize("name", CASES)
def test_tokens_of_an_engine_without_the_filter_show(name):
    scheme, spec = CASES[name]
    off = SamplingSpec(temperature=spec.temperature, top_k=spec.top_k, top_p=spec.top_p)
    z = tile("flat") * F32(8)
    unfiltered = draw_rows(torch.from_numpy(z), off, SCHEMES[scheme], draws_of(scheme, off, 11))
    stats = scored(z, unfiltered, name)
    assert not stats.matched.all()


def test_xtc_drops_the_likeliest_exactly_where_its_coin_says_so():
    z = np.tile(np.array([3.0, 2.9, 2.8, 0.0], F32), (400, 1))
    spec = SamplingSpec(xtc_probability=0.3, xtc_threshold=0.1)
    draws = Draws(SCHEMES[LLAMA], 5, 0, 4, spec).take(400)
    assert draws.shape == (400, 2)
    drawn = draw_rows(torch.from_numpy(z), spec, SCHEMES[LLAMA], draws)
    fires = words(5, 0, 400) / 2**32 <= 0.3
    assert draws[:, 1].tolist() == pytest.approx((words(5, 0, 400) / 2**32).tolist(), abs=1e-7)
    assert set(drawn[fires]) == {2, 3}
    assert set(drawn[~fires]) == {0, 1, 2, 3}
    none = Draws(SCHEMES[LLAMA], 5, 0, 4).take(400)
    assert none.tolist() == draws[:, 0].tolist()


def test_a_row_without_an_entropy_is_no_evidence():
    z = np.array([[0.0, 1.0, -300.0]], F32)
    spec = SamplingSpec(typical_p=0.9)
    stats = score_rows(torch.from_numpy(z), np.array([2]), spec, SCHEMES[LLAMA], np.array([0.5]))
    assert stats.unmodelled.all()
    assert not stats.evidence.any()


def test_greedy_drops_these_filters_too():
    spec = SamplingSpec(temperature=0.0, typical_p=0.5, top_n_sigma=1.0, xtc_probability=0.5)
    assert not effective_sampling(spec, SCHEMES["greedy"]).shaped


def test_states_of_a_sequential_generator_score_as_its_rows():
    spec = SamplingSpec(typical_p=0.8, top_k=40)
    z = torch.from_numpy(tile())
    states, rows = (Draws(SCHEMES[TORCH], 3, 7, V, s).take(ROWS) for s in (spec, SamplingSpec(typical_p=0.8)))
    assert states.dtype == np.uint32
    assert (
        draw_rows(z, spec, SCHEMES[TORCH], states).tolist()
        == draw_rows(z, spec, SCHEMES[TORCH], rows).tolist()
    )
