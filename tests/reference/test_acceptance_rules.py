"""Rules of acceptance: lossless ones leave the distribution alone, lossy ones do not, and each does what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.reference.demo.prompts import DRAFT, TARGET
from auditor.reference.deviations.acceptance.multi_draft import accepted, k_seq, ratio
from auditor.reference.deviations.acceptance.play import play
from auditor.reference.deviations.acceptance.rules import (
    RULES,
    At,
    BlindTrust,
    Cascade,
    Deferred,
    Ratio,
    RelaxedTop,
    StepRouting,
    TargetThresholds,
    TokenRouting,
    Typical,
    entropy,
    sampled,
)
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.running import Ask
from auditor.reference.sampling import SamplingSpec

P = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
Q = np.array([0.2, 0.4, 0.1, 0.25, 0.05])
LOSSLESS = {"exact", "ratio"}
MANY = 12_000


def noise(generator):
    return -np.log(-np.log(generator.random(len(P))))


SURE = np.array([0.02, 0.95, 0.01, 0.01, 0.01])
NEAR = np.array([0.35, 0.35, 0.18, 0.08, 0.04])
# What some rules need before they accept anything.
DRAFTED = {"blind-trust": SURE, "token-routing": SURE, "cascade": NEAR, "inside-clip": SURE}
AHEAD = {"deferred": [(P, 0), (P, 0)]}


def frequencies(rule, *, drafted=Q, count=MANY, ahead=()):
    """How often each token comes out when drafts are drawn from q."""
    generator = np.random.default_rng(3)
    found = np.zeros(len(P))
    for _ in range(count):
        draft = int(generator.choice(len(P), p=drafted))
        at = At(noise(generator), ahead=ahead)
        stands = rule.accept(P, drafted, draft, generator.random(), at)
        found[draft if stands else rule.instead(P, drafted, draft, at)] += 1
    return found / count


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_lossless_or_is_not(name):
    count = MANY if name in LOSSLESS else 4_000
    found = frequencies(RULES[name], drafted=DRAFTED.get(name, Q), count=count, ahead=AHEAD.get(name, ()))
    far = np.abs(found - P).max()
    # Five standard errors of the likeliest token.
    assert far < 0.023 if name in LOSSLESS else far > 0.03, far


def test_sglangs_thresholds_of_one_are_lossless():
    assert np.abs(frequencies(TargetThresholds(1.0, 1.0)) - P).max() < 0.023


def test_a_certain_draft_leaves_the_rest_of_p():
    generator = np.random.default_rng(5)
    found = np.zeros(len(P))
    for _ in range(MANY):
        at = At(noise(generator))
        stands = Ratio().accept(P, None, 1, generator.random(), at)
        found[1 if stands else Ratio().instead(P, None, 1, at)] += 1
    assert np.abs(found / MANY - P).max() < 0.023


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=6),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=6),
)
def test_the_ratio_of_k_seq_balances_its_scan(k, one, other):
    size = min(len(one), len(other))
    p, q = (np.array(own[:size]) / sum(own[:size]) for own in (one, other))
    rho = ratio(p, q, k)
    beta = accepted(p, q, rho)
    assert 1 <= rho <= k
    assert 1 - (1 - beta) ** k <= rho * beta + 1e-9


def test_k_seq_is_lossless():
    generator = np.random.default_rng(7)
    found = np.zeros(len(P))
    for _ in range(MANY):
        drafts = generator.choice(len(P), size=3, p=Q).tolist()
        found[k_seq(P, Q, drafts, generator.random(3), generator.random())] += 1
    assert np.abs(found / MANY - P).max() < 0.023


def test_each_rule_accepts_what_it_says():
    at = At(np.zeros(len(P)))
    assert sampled(P, at.noise) == 0
    assert Typical().accept(P, None, 1, 0.5, at)
    assert not Typical().accept(P, None, 4, 0.5, at)
    assert RelaxedTop(top=3, delta=0.3).accept(P, None, 1, 0.5, at)
    assert not RelaxedTop(top=1, delta=0.3).accept(P, None, 1, 0.5, at)
    assert not RelaxedTop(top=3, delta=0.1).accept(P, None, 1, 0.5, at)
    thinking = At(at.noise, text=(9, 7))
    answering = At(at.noise, text=(7, 5, 8))
    relaxed = RelaxedTop(top=3, delta=0.3, think=7, answer=8)
    assert relaxed.accept(P, None, 1, 0.5, thinking)
    assert not relaxed.accept(P, None, 1, 0.5, answering)
    agreeing = At(at.noise, ahead=[(P, 0), (P, 0)])
    assert Deferred().accept(P, None, 2, 0.5, agreeing)
    assert not Deferred().accept(P, None, 2, 0.5, At(at.noise, ahead=[(P, 0), (P, 1)]))
    assert not Deferred().accept(P, None, 2, 0.5, At(at.noise, ahead=[(P, 0)]))
    sure = np.array([0.95, 0.05, 0, 0, 0])
    assert BlindTrust().accept(P, sure, 4, 0.5, at)
    assert not BlindTrust().accept(P, sure, 4, 0.5, At(at.noise, number=3))
    assert StepRouting().accept(P, None, 0, 0.5, at)
    assert not StepRouting().accept(P, None, 4, 0.5, at)
    assert entropy(np.array([0.5, 0.5])) == pytest.approx(np.log(2))


@pytest.fixture(scope="module")
def models():
    return Model.load(TARGET), Model.load(DRAFT)


def played(models, rule, bug=None, tokens=32):
    spec = SamplingSpec(ignore_eos=True)
    asks = [
        Ask(prompt, len(prompt), spec, seed, noise_scheme("gumbel-pos-v1"), tokens, frozenset())
        for seed, prompt in enumerate([(1, 300, 41, 77), (1, 512, 9, 1000, 1001, 2222, 48)])
    ]
    found = [play(*models, ask, rule, bug=bug) for ask in asks]
    requests = [
        Request(ask.prompt, out.output, spec, ask.seed, ask.scheme)
        for ask, out in zip(asks, found, strict=True)
    ]
    return found, list(Runner(models[0]).score(requests))


def test_a_provider_that_plays_the_exact_rule_is_the_reference(models):
    found, scores = played(models, RULES["exact"])
    assert all(out.replaced == 0 for out in found)
    assert all(rows.matched.all() for rows in scores)


@pytest.mark.parametrize(
    "rule",
    [RULES["lenience"], RULES["synthetic"], RULES["mixture"], TokenRouting(3.0), Cascade(0.3)],
    ids=["lenience", "synthetic", "mixture", "token-routing", "cascade"],
)
def test_a_lossy_rule_leaves_the_seeded_tokens(models, rule):
    found, scores = played(models, rule)
    missed = [int((~rows.matched).sum()) for rows in scores]
    assert missed == [out.replaced for out in found]
    assert sum(missed) > 3


@pytest.mark.parametrize(
    "bug", ["position-after-rejection", "stale-keys", "bonus-keys-missing", "pad-attended"]
)
def test_a_bug_shows_even_under_the_exact_rule(models, bug):
    _, scores = played(models, RULES["exact"], bug)
    assert sum(int((~rows.matched).sum()) for rows in scores) > 0
