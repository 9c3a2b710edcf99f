"""Choosing what to audit: repeatable, never blind to any request, and blind to what the draws decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.errors import OptionError
from auditor.reference.sampling import SamplingSpec
from auditor.selection import Candidate, candidate_of, select, uniform, weight_of
from auditor.trace import Trace

candidates_of = st.lists(st.tuples(st.integers(1, 50), st.floats(0.5, 1000.0)), min_size=1, max_size=60).map(
    lambda rows: [Candidate(i, f"sha256:{i}", tokens, weight) for i, (tokens, weight) in enumerate(rows)]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(candidates_of, st.integers(1, 2000), st.text(max_size=8))
def test_budget_is_spent_and_hardly_overspent(candidates, budget, seed):
    at_random, by_weight = select(candidates, budget, seed)
    assert not at_random & by_weight
    spent = sum(c.tokens for c in candidates if c.place in at_random | by_weight)
    assert spent >= min(budget, sum(c.tokens for c in candidates))
    assert spent < budget + 50
    assert sum(c.tokens for c in candidates if c.place in at_random) >= min(
        0.1 * budget, sum(c.tokens for c in candidates)
    )
    assert select(candidates, budget, seed) == (at_random, by_weight)


def test_heavier_requests_come_first_and_light_ones_are_not_safe():
    candidates = [Candidate(i, str(i), 10, 50.0 if i < 50 else 1.0) for i in range(100)]
    picked = np.zeros(100)
    for seed in range(400):
        at_random, by_weight = select(candidates, 200, str(seed))
        picked[list(at_random | by_weight)] += 1
    assert picked[:50].mean() > 5 * picked[50:].mean()
    assert picked.min() > 0
    # two of about twenty requests come without weights, so a light one is met at least that often
    assert picked[50:].mean() / 400 > 0.9 * 2 / 100


def test_random_part_ignores_weights():
    light = [Candidate(i, str(i), 10, 1.0) for i in range(100)]
    heavy = [replace(c, weight=1e6) if c.place < 5 else c for c in light]
    assert select(light, 500, "k")[0] == select(heavy, 500, "k")[0]


def trace_of(**changes):
    spec = SamplingSpec(max_tokens=100)
    base = Trace("a", "m", (1, 2, 3), (4, 5), spec, seed=1, raw_digest="sha256:0")
    return replace(base, **changes)


def test_weight_sees_what_the_client_sent_and_nothing_the_provider_drew():
    base = weight_of(trace_of())
    assert weight_of(trace_of(output_token_ids=(9,) * 90, text="x", finish_reason="length")) == base
    assert weight_of(trace_of(prompt_token_ids=(1,) * 500)) > base
    assert weight_of(trace_of(sampling=SamplingSpec(max_tokens=1000))) > base
    assert weight_of(trace_of(sampling=SamplingSpec(temperature=0.0, max_tokens=100))) == base / 2


def test_text_only_requests_cost_something():
    assert candidate_of(0, trace_of(output_token_ids=None, text="four" * 10)).tokens == 10
    assert candidate_of(0, trace_of(output_token_ids=None, text=None)).tokens == 1


def test_key_decides_everything_else_does_not():
    one = Candidate(3, "sha256:3", 10, 1.0)
    values = [uniform(str(seed), "weight", one) for seed in range(2000)]
    assert 0.0 < min(values) < max(values) < 1.0
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)
    assert uniform("k", "random", one) != uniform("k", "weight", one)


def test_a_smaller_random_share_than_a_tenth_is_refused():
    for options in ({"random_share": 0.05}, {"random_share": 1.5}):
        with pytest.raises(OptionError):
            select([Candidate(0, "", 1, 1.0)], 10, "k", **options)
    with pytest.raises(OptionError):
        select([Candidate(0, "", 1, 1.0)], 0, "k")


def test_honest_verdict_stays_valid_under_selection():
    """Requests of unequal kind, each with an exact e-value; the product over the picked ones is still one."""
    generator = np.random.default_rng(11)
    alpha, convicted, runs = 0.05, 0, 4000
    candidates = [Candidate(i, str(i), 10 + i % 7, 1.0 + (i % 5) ** 3) for i in range(40)]
    sizes = np.array([0.1 + 0.1 * (i % 5) for i in range(40)])  # heavier requests bet more
    for run in range(runs):
        log_e = sizes * generator.normal(size=40) - sizes**2 / 2
        at_random, by_weight = select(candidates, 150, str(run))
        convicted += log_e[list(at_random | by_weight)].sum() >= -np.log(alpha)
    assert convicted / runs <= alpha
