"""The head: honest engines match, numeric noise within the slack changes nothing, no miss is hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from auditor.reference.head import RowStats, effective_sampling, score_rows
from auditor.reference.model import Model
from auditor.reference.noise import SCHEMES, Draws
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec

TARGET = Path(__file__).parents[2] / "reference" / "demo" / "target"
GOLDEN = 0x9E3779B97F4A7C15
ICDF = "llama.cpp/mt19937-u64-icdf"
# What `Engine` below samples by; the others have their own plain engines in tests/reference/noise/.
NOISY = ["gumbel-pos-v1", "vllm-cpu-0.32/splitmix64", "torch-cpu-multinomial", ICDF]
RACES = [name for name in NOISY if name != ICDF]
SPECS = {
    "plain": SamplingSpec(),
    "cold": SamplingSpec(temperature=0.4),
    "hot": SamplingSpec(temperature=1.8),
    "top-k": SamplingSpec(top_k=5),
    "top-p": SamplingSpec(top_p=0.8, temperature=0.7),
    "min-p": SamplingSpec(min_p=0.05, temperature=1.3),
    "all": SamplingSpec(top_k=20, top_p=0.9, min_p=0.02, temperature=0.8),
}
UNFILTERED = ["plain", "cold", "hot"]
FILTERED = ["top-k", "top-p", "min-p", "all"]
V = 300
ROWS = 60


def rows_of(count=ROWS, vocabulary=V, spread=2.0, seed=0):
    return torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def uniforms_of_key(key, vocabulary):
    words = np.array([mix((key + (v + 1) * GOLDEN) % 2**64) >> 11 for v in range(vocabulary)], np.float64)
    return (words + 0.5) * 2.0**-53


class Engine:
    """Sampling as each engine's documentation has it, a token at a time; shares no code with the product."""

    def __init__(self, scheme, seed, prompt_tokens, spec):
        self.scheme, self.seed, self.position, self.spec = scheme, seed, prompt_tokens, spec
        self.generator = torch.Generator().manual_seed(seed)
        self.words = np.random.RandomState(seed % 2**32)

    def sample(self, z):
        if self.spec.temperature == 0:
            return int(z.argmax())
        if self.scheme == "torch-cpu-multinomial":
            return self._transformers(z)
        if self.scheme == ICDF:
            return self._llama_cpp(z.numpy())
        logits = self._vllm_filters(z).double().numpy()
        if self.scheme == "gumbel-pos-v1":
            base = mix((self.seed % 2**64) ^ 0x8D2A5371DD512F83)
            key = mix((base + (self.position + 1) * GOLDEN) % 2**64)
            self.position += 1
            noise = -np.log(-np.log1p(-uniforms_of_key(key, len(z))))
        else:
            step = int(torch.randint(0, 2**31, (1,), generator=self.generator))
            noise = -np.log(-np.log(uniforms_of_key(mix(step), len(z))))
        return int((logits + noise).argmax())

    def _vllm_filters(self, z):
        spec = self.spec
        x = z / torch.tensor(spec.temperature, dtype=torch.float32)
        if spec.min_p > 0:
            p = torch.softmax(x, 0)
            x = x.masked_fill(p < spec.min_p * p.max(), -torch.inf)
        if 0 < spec.top_k < len(z):
            x = x.masked_fill(x < x.topk(spec.top_k).values[-1], -torch.inf)
        if spec.top_p < 1:
            rising, ids = x.sort()
            gone = torch.softmax(rising, 0).cumsum(0) <= 1 - spec.top_p
            gone[-1] = False
            x = x.scatter(0, ids, rising.masked_fill(gone, -torch.inf))
        return x

    def _transformers(self, z):
        spec, x = self.spec, z[None]
        warpers = [TemperatureLogitsWarper(spec.temperature)]
        if spec.top_k:
            warpers.append(TopKLogitsWarper(spec.top_k))
        if spec.top_p < 1:
            warpers.append(TopPLogitsWarper(spec.top_p))
        if spec.min_p > 0:
            warpers.append(MinPLogitsWarper(spec.min_p))
        for warper in warpers:
            x = warper(None, x)
        return int(torch.multinomial(torch.softmax(x, -1), 1, generator=self.generator))

    def _llama_cpp(self, z):
        spec, ids = self.spec, np.arange(len(z))
        if spec.top_k or spec.top_p < 1:
            ids = np.argsort(-z, kind="stable")[: spec.top_k or len(z)]
        if spec.top_p < 1:
            p = np.exp(z[ids] - z.max())
            ids = ids[: int((np.cumsum(p / p.sum()) >= np.float32(spec.top_p)).argmax()) + 1]
        if spec.min_p > 0:
            ids = ids[z[ids] >= z.max() + np.float32(np.log(spec.min_p))]
        x = z[ids] / np.float32(spec.temperature)
        total = np.cumsum(np.exp(x - x.max()).astype(np.float64))
        first, second = (int(w) for w in self.words.randint(0, 2**32, 2, dtype=np.uint32))
        return int(ids[np.searchsorted(total, (first + second * 2**32) / 2**64 * total[-1])])


def honest_tokens(z, scheme, spec, seed=77, prompt_tokens=9):
    engine = Engine(scheme, seed, prompt_tokens, spec)
    return np.array([engine.sample(row) for row in z])


def score(z, claimed, scheme, spec, *, seed=77, prompt_tokens=9):
    draws = Draws(SCHEMES[scheme], seed, prompt_tokens, z.shape[1]).take(len(z))
    spec = effective_sampling(spec, SCHEMES[scheme])
    return score_rows(z, np.asarray(claimed, np.int64), spec, SCHEMES[scheme], draws)


def scored_claims(z, scheme, spec, seed=5):
    """Stats for claims at random, and for the least likely token of each row."""
    anything = np.random.default_rng(seed).integers(0, z.shape[1], len(z))
    return [score(z, claimed, scheme, spec) for claimed in (anything, z.argmin(dim=1).numpy())]


# --- honest providers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("scheme", NOISY)
def test_an_honest_engine_matches_at_margin_zero(scheme, name):
    z, spec = rows_of(), SPECS[name]
    stats = score(z, honest_tokens(z, scheme, spec), scheme, spec)
    clear = stats.slack > 1e-5
    assert clear.mean() > 0.9
    assert stats.matched[clear].all()
    assert (stats.margin[stats.matched] == 0).all()
    assert (stats.edge[stats.matched] == 0).all()
    assert not stats.outside[clear].any()
    assert (stats.rank[clear] == (-1 if scheme == ICDF else 0)).all()
    assert stats.filtered.all() == (name in FILTERED)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_honest_greedy_engine_matches_and_draws_nothing(scheme):
    z, spec = rows_of(), SamplingSpec(temperature=0.0, top_p=0.5)
    stats = score_rows(
        z, z.argmax(dim=1).numpy(), effective_sampling(spec, SCHEMES[scheme]), SCHEMES[scheme], None
    )
    assert stats.matched.all()
    assert (stats.margin == 0).all()


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.009, 0.01])
def test_vllm_raises_tiny_temperatures_and_takes_less_for_greedy(temperature):
    scheme = SCHEMES["vllm-cpu-0.32/splitmix64"]
    ours = effective_sampling(SamplingSpec(temperature=temperature, top_k=3), scheme)
    assert ours.temperature == (0.0 if temperature < 1e-5 else 0.01)
    assert ours.top_k == (0 if temperature < 1e-5 else 3)
    # The other engines divide as asked.
    for other in ("torch-cpu-multinomial", ICDF):
        assert (
            effective_sampling(SamplingSpec(temperature=temperature), SCHEMES[other]).temperature
            == temperature
        )


@pytest.mark.parametrize("scheme", NOISY)
def test_a_padded_vocabulary_changes_no_winner(scheme):
    """Rows of padding below all logits: keyed noise is the same, and it must not win."""
    z = rows_of(20)
    padded = torch.cat([z, torch.full((20, 53), -1e4)], dim=1)
    tokens = honest_tokens(padded, scheme, SPECS["plain"])
    assert (tokens < V).all()
    stats = score(padded, tokens, scheme, SPECS["plain"])
    assert stats.matched.all()
    if scheme != "torch-cpu-multinomial":  # which draws one number for each id, padding too
        assert tokens.tolist() == honest_tokens(z, scheme, SPECS["plain"]).tolist()
    claimed_padding = score(padded, np.full(20, V + 50), scheme, SPECS["plain"])
    assert not claimed_padding.matched.any()
    assert np.isfinite(claimed_padding.margin).all()
    assert (claimed_padding.margin > 10).all()


# --- margins and slacks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNFILTERED)
@pytest.mark.parametrize("scheme", [*RACES, "greedy"])
def test_the_margin_of_a_race_is_the_score_gap_in_logits(scheme, name):
    z, spec = rows_of(), SPECS[name]
    claimed = np.random.default_rng(1).integers(0, V, ROWS)
    stats = score(z, claimed, scheme, spec)
    noise = np.zeros((ROWS, V))
    if scheme == "torch-cpu-multinomial":
        noise = Draws(SCHEMES[scheme], 77, 9, V).take(ROWS)
    elif scheme != "greedy":
        keys = Draws(SCHEMES[scheme], 77, 9, V).take(ROWS).tolist()
        u = np.stack([uniforms_of_key(key, V) for key in keys])
        noise = -np.log(-np.log(1 - u)) if SCHEMES[scheme].noise == 1 else -np.log(-np.log(u))
    scores = z.double().numpy() + spec.temperature * noise
    here = np.arange(ROWS)
    assert stats.margin == pytest.approx(scores.max(axis=1) - scores[here, claimed], abs=1e-5)
    second = np.sort(scores, axis=1)[:, -2]
    assert stats.slack == pytest.approx(scores.max(axis=1) - second, abs=1e-5)
    assert stats.rank.tolist() == (scores > scores[here, claimed][:, None]).sum(axis=1).tolist()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("scheme", [*NOISY, "greedy"])
def test_margins_are_finite_at_least_the_slack_and_zero_only_for_the_winner(scheme, name):
    for stats in scored_claims(rows_of(spread=6.0), scheme, SPECS[name]):
        miss = ~stats.matched
        assert miss.any()
        assert np.isfinite(stats.margin).all()
        assert not np.isnan(stats.slack).any()
        assert (stats.slack >= 0).all()
        assert (stats.margin[miss] > 0).all()
        if scheme != ICDF:  # of an inverse CDF's edge tokens only the nearest is moved in
            assert (stats.margin[miss] >= stats.slack[miss] - 1e-9).all()
        assert (stats.margin[stats.matched] == 0).all()


@pytest.mark.parametrize("name", UNFILTERED)
def test_an_inverse_cdf_margin_is_at_least_the_slack(name):
    for stats in scored_claims(rows_of(), ICDF, SPECS[name]):
        miss = ~stats.matched
        assert (stats.margin[miss] >= stats.slack[miss] - 1e-9).all()


@pytest.mark.parametrize("name", UNFILTERED)
@pytest.mark.parametrize("scheme", [*NOISY, "greedy"])
@given(seed=st.integers(0, 2**20), share=st.floats(0.0, 0.99))
@settings(max_examples=10, deadline=None)
def test_noise_within_half_the_slack_changes_no_winner(scheme, name, seed, share):
    """A score gap, and T times a distance of log-odds, move by at most twice the sup-norm."""
    z, spec = rows_of(20, 120), SPECS[name]
    before = score(z, z.argmax(dim=1).numpy(), scheme, spec)
    bound = torch.from_numpy(np.where(before.slack > 1e-5, before.slack / 2, 0.0))
    signs = torch.rand(20, 120, generator=torch.Generator().manual_seed(seed)).round() * 2 - 1
    moved = (z.double() + signs * bound[:, None] * share).float()
    after = score(moved, before.winner, scheme, spec)
    assert (after.matched | (before.slack < 1e-4)).all()


@pytest.mark.parametrize("scheme", RACES)
def test_moving_logits_by_the_margin_makes_the_claimed_token_win(scheme):
    z, spec = rows_of(), SPECS["hot"]
    claimed = np.random.default_rng(2).integers(0, V, ROWS)
    stats = score(z, claimed, scheme, spec)
    for share, wins in ((0.999, False), (1.001, True)):
        moved = z.clone()
        moved[torch.arange(ROWS), torch.from_numpy(claimed)] += torch.from_numpy(stats.margin * share).float()
        after = score(moved, claimed, scheme, spec)
        assert (after.matched[~stats.matched] == wins).all()


@pytest.mark.parametrize("name", FILTERED)
@pytest.mark.parametrize("scheme", RACES)
def test_noise_far_within_the_slack_changes_no_winner_under_a_filter(scheme, name):
    z, spec = rows_of(), SPECS[name]
    before = score(z, z.argmax(dim=1).numpy(), scheme, spec)
    # The nucleus' edge is an average over tokens: a quarter of its distance cannot reach it.
    bound = torch.from_numpy(np.where(np.isfinite(before.slack), before.slack, 0.0) / 4)
    signs = torch.rand(ROWS, V, generator=torch.Generator().manual_seed(3)).round() * 2 - 1
    after = score((z.double() + signs * bound[:, None]).float(), before.winner, scheme, spec)
    assert (after.matched | (before.slack < 1e-4)).all()


@pytest.mark.parametrize("name", [name for name in FILTERED if name != "min-p"])  # which alone sorts nothing
@given(seed=st.integers(0, 2**20))
@settings(max_examples=10, deadline=None)
def test_candidates_that_nearly_tie_may_change_places_under_a_sorted_inverse_cdf(name, seed):
    """Borders hang on the order of logits: a swap costs the gap of two, however wide their intervals are."""
    generator = torch.Generator().manual_seed(seed)
    z, spec = rows_of(30), SPECS[name]
    z = (z * 4).round() / 4 + torch.rand(z.shape, generator=generator) * 2e-3
    before = score(z, z.argmax(dim=1).numpy(), ICDF, spec)
    bound = torch.from_numpy(np.where(np.isfinite(before.slack), before.slack, 0.0) / 4)
    signs = torch.rand(z.shape, generator=generator).round() * 2 - 1
    after = score((z.double() + signs * bound[:, None]).float(), before.winner, ICDF, spec)
    assert (after.matched | (before.slack < 1e-4)).all()
    # And what a swap explains is no larger a miss than the swap.
    shaken = (z + torch.rand(z.shape, generator=generator) * 4e-3).float()
    claims = score(shaken, z.argmax(dim=1).numpy(), ICDF, spec).winner
    assert score(z, claims, ICDF, spec).margin.max() < 0.02


def test_an_inverse_cdf_distance_is_zero_inside_the_interval_and_grows_outside():
    z = torch.log(torch.tensor([[0.2, 0.3, 0.1, 0.4]])).repeat(5, 1)
    scheme = SCHEMES[ICDF]
    inside, below, just_below, just_above, above = 0.4, 0.01, 0.199, 0.501, 0.99
    draws = np.array([inside, below, just_below, just_above, above])
    stats = score_rows(z, np.ones(5, np.int64), SamplingSpec(), scheme, draws)
    assert stats.winner.tolist() == [1, 0, 0, 2, 3]
    assert stats.margin[0] == 0
    assert 0 < stats.margin[2] < stats.margin[1]
    assert 0 < stats.margin[3] < stats.margin[4]

    def odds(p):
        return np.log(p) - np.log1p(-p)

    assert stats.margin[1] == pytest.approx(odds(0.2) - odds(0.01), abs=1e-6)
    assert stats.slack[0] == pytest.approx(min(odds(0.4) - odds(0.2), odds(0.5) - odds(0.4)), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_an_inverse_cdf_margin_is_in_logits_at_any_temperature(temperature):
    """The tilt of raw logits by the margin brings the draw to the border: odds move 1/T times as far."""
    z = torch.tensor([[1.0, 1.4, 0.2]])
    spec = SamplingSpec(temperature=temperature)
    draw = np.array([0.05])  # within token 0
    stats = score_rows(z, np.array([1]), spec, SCHEMES[ICDF], draw)
    assert not stats.matched[0]
    assert stats.margin[0] == pytest.approx(stats.slack[0])
    for share, winner in ((0.999, 0), (1.001, 1)):
        tilted = z.clone()
        tilted[0, 0] -= stats.margin[0] * share
        assert score_rows(tilted, np.array([1]), spec, SCHEMES[ICDF], draw).winner[0] == winner


@pytest.mark.parametrize("top_k", [0, 5])
def test_a_cold_inverse_cdf_knows_that_a_near_second_could_win(top_k):
    """At T = 0.001 the second has no interval in float64, but a twentieth of a logit would give it one."""
    z = torch.full((1, 10), -5.0)
    z[0, 4], z[0, 7] = 1.0, 0.95
    spec = SamplingSpec(temperature=0.001, top_k=top_k)
    stats = score_rows(z, np.array([7]), spec, SCHEMES[ICDF], np.array([0.5]))
    assert stats.winner[0] == 4
    assert 0.01 < stats.slack[0] <= stats.margin[0] + 1e-12 < 0.2


@pytest.mark.parametrize("draw", [0.0, 2.0**-64, 0.5, 1 - 2.0**-53, 1.0])
@pytest.mark.parametrize("name", SPECS)
def test_an_inverse_cdf_draw_at_the_end_of_its_range_gives_finite_margins(draw, name):
    z = rows_of(4)
    for claimed in (
        np.zeros(4, np.int64),
        np.full(4, V - 1),
        z.argmin(dim=1).numpy(),
        z.argmax(dim=1).numpy(),
    ):
        stats = score_rows(z, claimed, SPECS[name], SCHEMES[ICDF], np.full(4, draw))
        assert np.isfinite(stats.margin).all()
        assert not np.isnan(stats.slack).any()


@pytest.mark.parametrize("top_k", [0, 50])
@pytest.mark.parametrize("claimed", [20, 49, 99])
def test_a_claim_whose_probability_is_lost_in_rounding_is_a_gross_miss_not_a_free_one(top_k, claimed):
    """Its interval has no length in float64: once an infinite margin, and under a filter a margin of zero."""
    z = torch.full((1, 100), -60.0)
    z[0, :10] = torch.arange(10.0)
    z[0, 10:] -= torch.arange(90) * 1e-3
    stats = score_rows(z, np.array([claimed]), SamplingSpec(top_k=top_k), SCHEMES[ICDF], np.array([0.5]))
    assert not stats.matched[0]
    if stats.outside[0]:
        assert stats.margin[0] == stats.edge[0] > 0
    else:
        assert 30 < stats.margin[0] < 200


def test_llama_cpp_candidates_keep_vocabulary_order_under_min_p_alone():
    """Only top-k and top-p sort. Sorting here too would accuse an honest engine on most tokens."""
    z = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4, 1e-6]]))
    draw = np.array([0.05])
    by_id = score_rows(z, np.array([0]), SamplingSpec(min_p=0.01), SCHEMES[ICDF], draw)
    assert by_id.matched[0]
    for spec in (SamplingSpec(min_p=0.01, top_k=4), SamplingSpec(min_p=0.01, top_p=0.999)):
        assert score_rows(z, np.array([3]), spec, SCHEMES[ICDF], draw).matched[0]


# --- failures of released implementations -------------------------------------------------------------


@pytest.mark.parametrize("scheme", NOISY)
def test_random_tokens_do_not_match_when_top_k_is_off(scheme):
    """difr.md R1: 200 random tokens scored 100 % under `top_k=0`."""
    z = rows_of(200)
    claimed = np.random.default_rng(8).integers(0, V, 200)
    stats = score(z, claimed, scheme, SamplingSpec(top_k=0))
    assert stats.matched.mean() < 0.1
    assert stats.margin.mean() > 0.5


def test_another_seed_does_not_pass_for_the_declared_one():
    """difr.md R2: a scorer that ignores the seed accepts any."""
    z = rows_of()
    for scheme in NOISY:
        stats = score(z, honest_tokens(z, scheme, SPECS["hot"], seed=78), scheme, SPECS["hot"], seed=77)
        assert stats.matched.mean() < 0.5


def test_greedy_ignores_the_nucleus():
    """difr.md R3: at T = 0 the mask of T = 1 made a gross miss infinite, and so dropped it."""
    z = rows_of()
    worst = z.argmin(dim=1).numpy()
    stats = score(z, worst, "gumbel-pos-v1", SamplingSpec(temperature=0.0, top_p=0.1, top_k=2))
    assert not stats.outside.any()
    assert not stats.filtered.any()
    lead = z.max(dim=1).values - z.min(dim=1).values
    assert stats.margin == pytest.approx(lead.double().numpy())


@pytest.mark.parametrize("name", FILTERED)
@pytest.mark.parametrize("scheme", NOISY)
def test_a_token_outside_the_support_has_a_finite_edge_and_costs_at_least_that(scheme, name):
    z = rows_of()
    stats = score(z, z.argmin(dim=1).numpy(), scheme, SPECS[name])
    assert stats.outside.all()
    assert (stats.edge > 0).all()
    assert np.isfinite(stats.edge).all()
    assert (stats.margin >= stats.edge).all()


@pytest.mark.parametrize("scheme", NOISY)
def test_a_worse_token_never_lowers_the_mean_margin(scheme):
    """difr.md R3: replacing a token by a worse one must not improve the score."""
    z, spec = rows_of(), SPECS["plain"]
    honest = honest_tokens(z, scheme, spec)
    means = []
    for bad in (0, 5, 20, ROWS):
        claimed = honest.copy()
        claimed[:bad] = z.argmin(dim=1).numpy()[:bad]
        means.append(score(z, claimed, scheme, spec).margin.mean())
    assert means == sorted(means)
    assert means[0] < means[1] < means[3]


def test_a_seed_made_for_the_last_grid_point_gives_a_finite_margin():
    """The noise of one token is at its least there; it once was minus infinity."""
    z = rows_of(1)
    key = np.array([mix_inverse_key(token=3)], np.uint64)
    for backend in ("compiled", "reference"):
        for spec in (SamplingSpec(), SamplingSpec(top_p=0.999)):
            claimed = np.array([3])
            stats = score_rows(z, claimed, spec, SCHEMES["gumbel-pos-v1"], key, backend=backend)
            assert np.isfinite(stats.margin).all()
            assert stats.margin[0] < 50


def mix_inverse_key(token):
    """The row key whose noise bits of `token` are all ones."""
    z = 2**64 - 1
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        whole = z
        for _ in range(4):
            whole = z ^ (whole >> shift)
        z = whole * pow(factor, -1, 2**64) % 2**64
    return (z - (token + 1) * GOLDEN) % 2**64


# --- consistency --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["gumbel-pos-v1", "vllm-cpu-0.32/splitmix64"])
def test_a_filter_that_cuts_nothing_scores_as_no_filter(scheme):
    z = rows_of()
    for claimed in (honest_tokens(z, scheme, SPECS["plain"]), np.arange(ROWS)):
        plain = score(z, claimed, scheme, SamplingSpec())
        mild = score(z, claimed, scheme, SamplingSpec(min_p=1e-30))
        assert plain.winner.tolist() == mild.winner.tolist()
        assert plain.rank.tolist() == mild.rank.tolist()
        for name in ("margin", "slack", "log_probability"):
            np.testing.assert_allclose(getattr(mild, name), getattr(plain, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["gumbel-pos-v1", "vllm-cpu-0.32/splitmix64"])
def test_keyed_noise_written_out_scores_as_a_sequential_race(scheme):
    """The dense path takes rows of noise; given a keyed scheme's rows it must find the same."""
    z, spec = rows_of(), SPECS["cold"]
    claimed = np.random.default_rng(4).integers(0, V, ROWS)
    keyed = score(z, claimed, scheme, spec)
    keys = Draws(SCHEMES[scheme], 77, 9, V).take(ROWS)
    u = np.stack([uniforms_of_key(int(key), V) for key in keys])
    noise = -np.log(-np.log1p(-u)) if SCHEMES[scheme].noise == 1 else -np.log(-np.log(u))
    dense = score_rows(z, claimed, spec, SCHEMES["torch-cpu-multinomial"], noise)
    assert dense.winner.tolist() == keyed.winner.tolist()
    assert dense.rank.tolist() == keyed.rank.tolist()
    np.testing.assert_allclose(dense.margin, keyed.margin, atol=1e-5)
    np.testing.assert_allclose(dense.slack, keyed.slack, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("scheme", NOISY)
def test_the_log_probability_is_the_claimed_tokens_at_the_requests_temperature(scheme, name):
    z, spec = rows_of(), SPECS[name]
    claimed = np.arange(ROWS)
    stats = score(z, claimed, scheme, spec)
    expected = torch.log_softmax(z.double() / spec.temperature, dim=1)[range(ROWS), range(ROWS)]
    assert stats.log_probability == pytest.approx(expected.numpy(), abs=2e-5)


def test_rows_and_concatenate_are_inverse():
    z = rows_of()
    stats = score(z, np.arange(ROWS), "gumbel-pos-v1", SPECS["top-p"])
    joined = RowStats.concatenate([stats.rows(0, 13), stats.rows(13, ROWS)])
    for name in RowStats.__slots__:
        assert getattr(joined, name).tolist() == getattr(stats, name).tolist()


@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("scheme", NOISY)
def test_the_size_of_a_tile_changes_nothing(scheme, name):
    """A tile's rows share a matrix product, so margins may move in the last float32 places."""
    model = Model.load(TARGET)
    generator = torch.Generator().manual_seed(6)
    requests = [
        Request(
            tuple(torch.randint(5, 4000, (9,), generator=generator).tolist()),
            tuple(torch.randint(5, 4000, (40,), generator=generator).tolist()),
            SPECS[name],
            seed,
            SCHEMES[scheme],
        )
        for seed in (3, 4)
    ]
    whole = list(Runner(model).score(requests))
    one_row = list(Runner(model, tile_bytes=1).score(requests))
    alone = list(Runner(model, token_budget=1, tile_bytes=4 * 4096 * 7).score(requests))
    for a, b, c in zip(whole, one_row, alone, strict=True):
        assert len(a.claimed) == 40
        for other in (b, c):
            assert a.winner.tolist() == other.winner.tolist()
            assert a.rank.tolist() == other.rank.tolist()
            np.testing.assert_allclose(a.margin, other.margin, atol=1e-3)
