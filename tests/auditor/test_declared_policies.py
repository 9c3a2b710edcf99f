"""A policy that is declared is replayed as declared; the same log without its declaration is not acquitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from auditor.calibration import calibrate
from auditor.errors import OptionError
from auditor.generation import Drafting, Provider, generate
from auditor.reference.demo.prompts import demo_conversations
from auditor.reference.deviations import HONEST
from auditor.reference.drafters import DRAFTERS
from auditor.reference.policies import Policy
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, replay
from auditor.verification import verify

TARGET = Path(__file__).parents[2] / "reference" / "demo" / "target"
LINE = "kv/streaming budget=48"
SPEC = SamplingSpec(max_tokens=48)


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


@pytest.fixture(scope="module")
def provider():
    return Provider.load(TARGET, batch_size=16)


def served(provider, seed, requests, line=LINE):
    policy = None if line is None else Policy.parse(line)
    asked = demo_conversations(requests, seed)
    return list(generate(provider, asked, deviation=HONEST, seed=seed, sampling=SPEC, policy=policy))


@pytest.fixture(scope="module")
def profiles(provider, reference):
    """Of honest traffic under the policy, and of honest traffic without one."""
    made = [
        calibrate(served(provider, seed, 40, line), reference, shadow_tokens=600)
        for seed, line in ((61_000, LINE), (62_000, None))
    ]
    return {profile.key: profile for profile in made}


@pytest.fixture(scope="module")
def log(provider):
    return served(provider, 63_000, 24)


def judged(log, reference, profiles):
    return verify(lambda: log, reference, find_profile=profiles.get, alpha=0.01, explain=False)


def test_a_log_under_a_declared_policy_is_replayed_to_consistent(log, reference, profiles):
    result = judged(log, reference, profiles)
    assert result.outcome == "consistent"
    assert result.matched / result.tokens > 0.99
    assert result.verdicts[0].recipe == (
        "auditor-0.1/bfloat16-wide/decode-b16 with kv/streaming budget=48 sinks=4"
    )


def test_the_same_log_without_its_declaration_is_inconsistent(log, reference, profiles):
    undeclared = [replace(trace, policy=None) for trace in log]
    assert judged(undeclared, reference, profiles).outcome == "inconsistent"


def test_a_tighter_budget_than_declared_is_inconsistent(provider, log, reference, profiles):
    declared = log[0].policy
    tighter = [replace(t, policy=declared) for t in served(provider, 64_000, 24, "kv/streaming budget=24")]
    assert judged(tighter, reference, profiles).outcome == "inconsistent"


def test_policies_of_several_requests_are_judged_apart_and_in_order(log, provider, reference):
    mixed = [log[0], served(provider, 65_000, 1, None)[0], log[1], replace(log[2], policy="kv/no-such")]
    scored = list(replay(mixed, reference))
    assert [s.trace for s in scored] == mixed
    alone = [next(replay([trace], reference)) for trace in mixed]
    assert [s.scores for s in scored] == [s.scores for s in alone]
    assert [s.problem is None for s in scored] == [True, True, True, False]
    assert scored[3].problem.code == "sampling-unsupported"
    assert "kv/no-such" in scored[3].problem.message


def test_an_unknown_policy_is_inconclusive(log, reference, profiles):
    unknown = [replace(trace, policy="kv/mystery budget=9") for trace in log]
    assert judged(unknown, reference, profiles).outcome == "inconclusive"


def test_drafts_beside_a_policy_are_refused(provider):
    drafting = Drafting("coupled", DRAFTERS["ngram"]())
    with pytest.raises(OptionError, match="under a policy"):
        next(
            generate(
                provider,
                demo_conversations(1, 1),
                deviation=HONEST,
                seed=1,
                drafting=drafting,
                policy=Policy.parse(LINE),
            )
        )


def test_a_log_of_inserted_spans_is_consistent_as_declared_only(provider, reference, profiles):
    """PIE: keys moved and values stale, in the engine and in the replay alike."""
    line = "kv/pie at=8 inserted=8"
    profile = calibrate(served(provider, 61_000, 40, line), reference, shadow_tokens=600)
    known = {profile.key: profile, **profiles}
    log = served(provider, 63_000, 24, line)
    result = judged(log, reference, known)
    assert result.outcome == "consistent"
    assert result.verdicts[0].recipe.endswith(" with kv/pie at=8 inserted=8")
    assert judged([replace(trace, policy=None) for trace in log], reference, known).outcome == "inconsistent"
