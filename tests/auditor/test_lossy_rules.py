"""Lossy acceptance that is declared is a contract: replayed as declared, and no excuse for another rule."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from auditor.calibration import calibrate
from auditor.generation import Drafting, Provider, generate
from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
from auditor.reference.deviations import HONEST
from auditor.reference.drafters import ModelDrafter
from auditor.reference.loading import load_model
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, replay
from auditor.trace import Speculation
from auditor.verdict import judge

LOSSY = ["lenient", "typical"]
SPEC = SamplingSpec(max_tokens=64)


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


@pytest.fixture(scope="module")
def serve():
    provider = Provider.load(TARGET, dtype="bfloat16", batch_size=64)
    drafter = load_model(DRAFT, dtype=torch.bfloat16, wide_matmul=True)

    @functools.cache
    def run(rule, seed, requests, sampling=SPEC):
        drafting = Drafting(rule, ModelDrafter(drafter, noise_aware=False))
        asked = demo_conversations(requests, seed)
        return list(
            generate(provider, asked, deviation=HONEST, seed=seed, sampling=sampling, drafting=drafting)
        )

    return run


@pytest.fixture(scope="module")
def profiles(serve, reference):
    return {rule: calibrate(serve(rule, 71_000, 40), reference, shadow_tokens=600) for rule in LOSSY}


def verdict_of(traces, profile, reference):
    return judge(list(replay(traces, reference)), profile, alpha=0.01)


def declared(traces, rule):
    return [replace(t, speculation=replace(t.speculation, rule=rule)) for t in traces]


@pytest.mark.parametrize(("rule", "outcome"), [("lenient", "consistent"), ("typical", "inconclusive")])
def test_what_is_declared_is_replayed_as_declared(serve, profiles, reference, rule, outcome):
    """Typical acceptance keeps nearly every draft at any temperature: excluding a wrong one takes the long log below."""
    verdict = verdict_of(serve(rule, 72_000, 40), profiles[rule], reference)
    assert verdict.outcome == outcome
    assert verdict.log_e < 0
    assert outcome == "consistent" or "temperature/+0.1 (power 0." in verdict.reasons[0]
    assert {t.scored.mode for t in verdict.traces} == {f"drafted-{rule}"}
    scores = [t.scored.scores for t in verdict.traces]
    assert sum(s.matched for s in scores) > 0.98 * sum(s.tokens for s in scores)


@pytest.mark.slow
def test_a_long_log_of_typical_acceptance_is_consistent(serve, reference):
    """3,861 tokens, and four times as many simulated to know what a temperature does to them."""
    spec = SamplingSpec(max_tokens=160)
    profile = calibrate(serve("typical", 71_000, 60, spec), reference, shadow_tokens=6000)
    traces = serve("typical", 72_000, 40, spec)
    verdict = verdict_of(traces, profile, reference)
    assert verdict.outcome == "consistent", verdict.reasons
    bare = [replace(t, speculation=Speculation()) for t in traces]
    assert verdict_of(bare, profile, reference).outcome == "inconsistent"


@pytest.mark.parametrize("rule", LOSSY)
@pytest.mark.parametrize("said", ["none", "standard", "other"])
def test_without_its_declaration_or_under_another_it_is_inconsistent(serve, profiles, reference, rule, said):
    traces = serve(rule, 72_000, 40)
    if said == "none":
        traces = [replace(t, speculation=Speculation()) for t in traces]
    else:
        other = LOSSY[1 - LOSSY.index(rule)]
        traces = declared(traces, other if said == "other" else said)
    assert verdict_of(traces, profiles[rule], reference).outcome == "inconsistent"


@pytest.mark.parametrize("rule", LOSSY)
def test_a_stricter_provider_than_declared_is_no_contract_kept_either(serve, profiles, reference, rule):
    strict = declared(serve("standard", 73_000, 40), rule)
    assert verdict_of(strict, profiles[rule], reference).outcome == "inconsistent"


def test_without_drafts_nothing_is_said_of_a_lossy_rule(serve, profiles, reference):
    traces = [replace(t, speculation=Speculation("lenient")) for t in serve("lenient", 72_000, 40)[:4]]
    verdict = verdict_of(traces, profiles["lenient"], reference)
    assert verdict.outcome == "inconclusive"
    assert not [e for e in verdict.evidence if e.name.startswith("seed-free")]
    assert "hangs on its drafts" in " ".join(verdict.reasons)


@pytest.mark.parametrize("rule", LOSSY)
def test_filters_and_greedy_requests_take_part(serve, reference, rule):
    spec = replace(SPEC, top_p=0.9, max_tokens=40)
    for sampling in (spec, replace(SPEC, temperature=0.0, max_tokens=24)):
        scored = list(replay(serve(rule, 74_000, 6, sampling), reference))
        assert all(s.problem is None for s in scored)
        assert sum(s.scores.matched for s in scored) > 0.97 * sum(s.scores.tokens for s in scored)
