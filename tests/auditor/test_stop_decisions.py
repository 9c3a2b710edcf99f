"""Ends of outputs: what contradicts the request is found, what any honest engine may do is not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from auditor.evidence import STOP_PRIOR, outside_log_e
from auditor.gathering import STOP_DECISIONS, Evidence, fused_log_e
from auditor.reference.demo.prompts import TARGET
from auditor.reference.sampling import SamplingSpec
from auditor.reference.stop_strings import stop_string_place
from auditor.reference.tokenizer import Tokenizer
from auditor.stop_decisions import stop_findings
from auditor.trace import Trace
from auditor.trace_files import read_traces

TRACES = Path(__file__).parent.parent / "traces"
CONTEXT = 512
END = 2


@cache
def tokenizer():
    return Tokenizer.load(TARGET)


def findings(output, finish_reason, *, prompt_tokens=10, **spec):
    trace = Trace("t", "demo", (1,), tuple(output), SamplingSpec(**spec), finish_reason=finish_reason)
    return stop_findings(trace, prompt_tokens, tokenizer(), CONTEXT)


def ids(text):
    return tokenizer().encode(text)


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.gz")), ids=lambda p: p.name)
def test_no_recorded_trace_of_a_real_engine_is_contradicted(path):
    """1,728 ends by end token, by length and by grammar, of three engines and a server."""
    for trace in read_traces(path):
        prompt = trace.prompt_token_ids or tokenizer().encode_chat(trace.messages)
        assert stop_findings(trace, len(prompt), tokenizer(), CONTEXT) == ()


WORDS = ids("Let us go one step at a time. First, the sum.")
SUM = ids(" the sum")

CONTRADICTED = {
    "goes on after end token 2 at output token 1": ([7, END, 9], "length", {"max_tokens": 3}),
    "goes on after stop token 9 at output token 0": (
        [9, 7],
        "length",
        {"max_tokens": 2, "stop_token_ids": (9,)},
    ),
    "is longer than max_tokens: 3 tokens, 2 asked": ([7, 8, END], "stop", {"max_tokens": 2}),
    "unexplained stop: token 8 at output token 1 does not end an output": ([7, 8], "stop", {"max_tokens": 9}),
    "unexplained length: 2 tokens, 9 asked": ([7, 8], "length", {"max_tokens": 9}),
}


@pytest.mark.parametrize("finding", CONTRADICTED)
def test_a_contradiction_is_found_in_stable_words(finding):
    output, reason, spec = CONTRADICTED[finding]
    assert findings(output, reason, **spec) == (finding,)


EXPLAINED = {
    "end token": ([7, END], "stop", {"max_tokens": 9}),
    "end token as the very last allowed": ([7, END], "stop", {"max_tokens": 2}),
    "end token at the limit, called length": ([7, END], "length", {"max_tokens": 2}),
    "stop token": ([7, 9], "stop", {"stop_token_ids": (9,)}),
    "length": ([7, 8], "length", {"max_tokens": 2}),
    "length without a logged limit": ([7, 8], "length", {}),
    "ignored end token": ([7, END, 8], "length", {"max_tokens": 3, "ignore_eos": True}),
    "an abort": ([7, 8], "abort", {"max_tokens": 9}),
    "no reason logged": ([7, 8], None, {"max_tokens": 9}),
    "a tool call": ([7, 8], "tool_calls", {"max_tokens": 9}),
}


@pytest.mark.parametrize("case", EXPLAINED)
def test_what_an_honest_engine_does_is_no_finding(case):
    output, reason, spec = EXPLAINED[case]
    assert findings(output, reason, **spec) == ()


def test_the_context_explains_a_short_length():
    assert findings([7, 8], "length", max_tokens=99, prompt_tokens=CONTEXT - 2) == ()
    assert findings([7, 8], "length", max_tokens=99, prompt_tokens=CONTEXT - 3) != ()


def test_a_stop_string_ends_at_the_token_that_completes_it():
    place = stop_string_place(tokenizer(), WORDS, ["step at"])
    assert tokenizer().decode(WORDS[: place + 1]).rstrip().endswith("step at")
    assert findings(WORDS[: place + 1], "stop", stop=("step at",)) == ()
    assert findings(WORDS[: place + 2], "stop", stop=("step at",)) == (
        f"goes on after a stop string complete at output token {place}",
    )
    assert "unexplained stop" in findings(WORDS[:place], "stop", stop=("step at",))[0]


def test_a_stop_string_within_min_tokens_does_not_count_but_a_later_one_does():
    twice = [*WORDS, *WORDS]
    first = stop_string_place(tokenizer(), twice, ["step"])
    later = stop_string_place(tokenizer(), twice, ["step"], min_tokens=first + 1)
    assert later == first + len(WORDS)
    assert findings(WORDS, "length", stop=("step",), min_tokens=first + 1, max_tokens=len(WORDS)) == ()


def test_a_stop_string_that_is_there_only_with_special_tokens_accuses_nobody():
    """Servers differ in whether their text has special tokens; the log does not say."""
    end = tokenizer().decode([END])
    output = [*WORDS[:2], END, *WORDS[2:4]]
    found = findings(output, "length", stop=(end,), max_tokens=len(output), ignore_eos=True)
    assert found == ()


def test_an_unfinished_character_is_no_text_yet():
    snow = ids("a ☃ b")
    place = stop_string_place(tokenizer(), snow, ["☃"])
    assert "☃" in tokenizer().decode(snow[: place + 1])
    assert "☃" not in tokenizer().decode(snow[:place])


def test_one_odd_end_convicts_nobody_and_a_habit_of_the_calibration_never_does():
    assert outside_log_e(0, 64, 1, 64, STOP_PRIOR) < 0
    assert outside_log_e(0, 64, 64, 64, STOP_PRIOR) > 50
    assert outside_log_e(64, 64, 64, 64, STOP_PRIOR) <= 0


def test_the_weights_of_fused_evidence_sum_to_one():
    ends = Evidence(STOP_DECISIONS, 0.0, 0.0)
    for others in (["token-difr"], ["token-difr", "outside-support"]):
        evidence = [*(Evidence(name, 0.0, 0.0) for name in others), ends]
        assert fused_log_e(evidence) == pytest.approx(0.0)
