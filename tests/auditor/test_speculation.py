"""Providers that decode speculatively: what is replayed, what is only tested, and what is never called fraud."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from auditor.calibration import calibrate
from auditor.generation import Drafting, Provider, generate
from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
from auditor.reference.deviations import HONEST, deviation
from auditor.reference.drafters import ModelDrafter
from auditor.reference.loading import load_model
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, replay
from auditor.trace import Speculation
from auditor.trace_format import parse_trace, trace_to_line
from auditor.verdict import judge
from auditor.verification import verify

ALPHA = 0.01


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


@pytest.fixture(scope="module")
def provider():
    return Provider.load(TARGET, dtype="bfloat16", batch_size=64)


@pytest.fixture(scope="module")
def drafter():
    return load_model(DRAFT, dtype=torch.bfloat16, wide_matmul=True)


@pytest.fixture(scope="module")
def serve(provider, drafter):
    @functools.cache
    def run(seed, requests, cause="honest", sampling=None):
        kind = HONEST if cause == "honest" else deviation(cause)
        drafting = Drafting("standard", ModelDrafter(drafter, noise_aware=False))
        conversations = demo_conversations(requests, seed)
        return list(
            generate(
                provider,
                conversations,
                deviation=kind,
                seed=seed,
                sampling=sampling,
                drafting=drafting,
                other_model=drafter,
            )
        )

    return run


def unlogged(traces):
    """The same without their drafts."""
    return [replace(t, speculation=Speculation("standard")) for t in traces]


@pytest.fixture(scope="module")
def profiles(serve, reference):
    """Calibrated with and without logged drafts; power is measured with them."""
    traces = serve(31_000, 40)
    return {
        "drafted": calibrate(traces, reference, shadow_tokens=1500),
        "speculated": calibrate(unlogged(traces), reference, shadow_tokens=0),
    }


def verdict_of(traces, profile, reference, alpha=ALPHA):
    return judge(list(replay(traces, reference)), profile, alpha=alpha)


def test_an_honest_log_is_not_accused_and_with_its_drafts_acquitted(serve, profiles, reference):
    traces = serve(30_000, 48)
    logged = verdict_of(traces, profiles["drafted"], reference)
    dark = verdict_of(unlogged(traces), profiles["speculated"], reference)
    assert [v.outcome for v in (logged, dark)] == ["consistent", "inconclusive"]
    assert dark.log_e < 0
    assert {t.scored.mode for t in logged.traces} == {"drafted"}
    assert {t.scored.mode for t in dark.traces} == {"speculated"}
    match = [sum(t.scored.scores.matched for t in v.traces) for v in (logged, dark)]
    assert match[1] >= match[0] > 0.98 * sum(t.scored.scores.tokens for t in logged.traces)


@pytest.mark.parametrize("cause", ["seed/wrong", "weights/int4"])
@pytest.mark.parametrize("mode", ["drafted", "speculated"])
def test_speculation_hides_no_cheat(serve, profiles, reference, cause, mode):
    traces = serve(33_000, 24, cause)
    traces = traces if mode == "drafted" else unlogged(traces)
    verdict = verdict_of(traces, profiles[mode], reference)
    assert verdict.outcome == "inconsistent"


def test_the_trace_says_what_was_drafted_and_survives_its_file(serve):
    trace = serve(34_000, 2)[0]
    assert trace.speculation.rule == "standard"
    assert any(trace.speculation.draft_token_ids)
    again = parse_trace(trace_to_line(trace), file="log", line=1)
    assert again.speculation == trace.speculation


def test_a_profile_of_plain_decoding_does_not_acquit_a_speculative_log(serve, provider, reference):
    plain = list(generate(provider, demo_conversations(8, 35_000), deviation=HONEST, seed=35_000))
    profile = calibrate(plain, reference, shadow_tokens=200)
    verdict = verdict_of(serve(32_000, 32), profile, reference)
    assert verdict.outcome == "inconclusive"
    assert "sampled this way" in verdict.reasons[0]


@pytest.mark.parametrize("rule", ["block", "target-only", "k-seq"])
def test_lossless_rules_whose_seed_decides_nothing_are_tested_by_their_distribution(
    serve, profiles, reference, rule
):
    traces = [replace(t, speculation=Speculation(rule)) for t in serve(32_000, 32)[:16]]
    verdict = verdict_of(traces, profiles["drafted"], reference)
    assert verdict.outcome == "inconclusive"
    assert "seed-free-rank" in {e.name for e in verdict.evidence}
    other = [replace(t, speculation=Speculation(rule)) for t in serve(38_000, 40, "model/substituted")]
    assert verdict_of(other, profiles["drafted"], reference).outcome == "inconsistent"


def test_a_synchronised_rule_is_replayed_as_plain_sampling(provider, reference):
    traces = list(generate(provider, demo_conversations(4, 39_000), deviation=HONEST, seed=39_000))
    coupled = [replace(t, speculation=Speculation("coupled")) for t in traces]
    plain, same = ([s.scores.matched for s in replay(log, reference)] for log in (traces, coupled))
    assert plain == same


def test_greedy_requests_are_scored_as_if_nothing_had_been_drafted(serve, reference):
    spec = SamplingSpec(temperature=0.0, max_tokens=40)
    traces = serve(40_000, 4, sampling=spec)
    assert all(s.problem is None and s.mode == "greedy" for s in replay(traces, reference))
    blocks = [replace(t, speculation=Speculation("block")) for t in traces]
    assert all(s.problem is None for s in replay(blocks, reference))


@pytest.mark.parametrize(
    ("speculation", "code"),
    [
        (Speculation("relaxed-top-n"), "sampling-unsupported"),
        (Speculation("standard", ((), (1, 2))), "trace-field"),
        (Speculation("standard", ((), (5_000_000,))), "token-out-of-range"),
    ],
)
def test_what_cannot_be_replayed_is_named(serve, reference, speculation, code):
    trace = serve(41_000, 1)[0]
    if speculation.draft_token_ids is not None:
        trace = replace(trace, output_token_ids=trace.output_token_ids[:2])
        if code == "trace-field":
            trace = replace(trace, output_token_ids=(*trace.output_token_ids, 7, 7, 7, 7))
    scored = next(replay([replace(trace, speculation=speculation)], reference))
    assert scored.problem is not None
    assert scored.problem.code == code


@pytest.fixture(scope="module")
def plain_profile(provider, reference):
    traces = generate(provider, demo_conversations(32, 42_000), deviation=HONEST, seed=42_000)
    return calibrate(traces, reference, shadow_tokens=0)


@pytest.fixture(scope="module")
def outcome_of(reference, plain_profile):
    def run(traces):
        recipe = plain_profile.key.provider_recipe
        result = verify(
            lambda: traces, reference, find_profile=lambda _key: plain_profile, alpha=ALPHA, explain=False
        )
        assert {v.recipe for v in result.verdicts} == {recipe}
        return result.verdicts[0].outcome, result.synchrony[0]

    return run


def test_an_honest_log_is_synchronised(provider, outcome_of):
    traces = list(generate(provider, demo_conversations(16, 43_000), deviation=HONEST, seed=43_000))
    assert outcome_of(traces)[1].found == "synchronised"


def test_undeclared_lossless_speculation_is_named_and_not_taken_for_another_model(serve, outcome_of):
    hidden = [replace(t, speculation=Speculation()) for t in serve(30_000, 48)]
    outcome, synchrony = outcome_of(hidden)
    assert outcome == "inconsistent"  # with what was declared
    assert synchrony.found == "distribution-lossless"
    assert synchrony.admitted >= 0.97 * synchrony.unexpected > 100


def test_another_seed_is_told_from_another_model(provider, outcome_of):
    wrong = deviation("seed/wrong")
    traces = list(generate(provider, demo_conversations(24, 44_000), deviation=wrong, seed=44_000))
    outcome, synchrony = outcome_of(traces)
    assert (outcome, synchrony.found) == ("inconsistent", "distribution-lossless")
    assert synchrony.admitted is None
    assert synchrony.match == pytest.approx(synchrony.unrelated, abs=0.02)


@pytest.mark.parametrize(
    "cause", ["weights/int4", "depth/skip-layer", "temperature/+0.1", "model/substituted"]
)
def test_what_changes_the_distribution_is_never_called_lossless(provider, drafter, outcome_of, cause):
    traces = generate(
        provider,
        demo_conversations(40, 45_000),
        deviation=deviation(cause),
        seed=45_000,
        other_model=drafter,
    )
    outcome, synchrony = outcome_of(list(traces))
    assert (outcome, synchrony.found) == ("inconsistent", "neither")
