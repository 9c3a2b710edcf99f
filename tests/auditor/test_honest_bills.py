"""Bills beside honest ones, and the lengthening probe: what convicts, what is a habit, what is only a signal."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from auditor.commands import cli
from auditor.errors import OptionError
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer
from auditor.token_counts.honest_bills import Condition, ExcessBound, HonestBills, script_of
from auditor.token_counts.lengthening import (
    LENGTHEN,
    Lengths,
    compare_lengthening,
    lengthened,
    lengthening,
    lengths_of,
)
from auditor.trace import Trace, Usage
from auditor.trace_files import read_traces, write_traces

TRACES = Path(__file__).parent.parent / "traces"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TARGET)


@pytest.fixture(scope="module")
def texts():
    """126 honest responses of two engines, without their ids."""
    names = ("vllm-cpu-bf16-plain", "transformers-bf16-plain")
    logs = [read_traces(TRACES / f"{name}.jsonl.gz") for name in names]
    return [
        replace(t, output_token_ids=None, seed=None, noise=None, model="demo") for log in logs for t in log
    ]


def billed(traces, extra):
    return [
        replace(t, usage=replace(t.usage, completion_tokens=t.usage.completion_tokens + extra))
        for t in traces
    ]


def test_padding_convicts_beside_honest_bills_and_the_same_habit_on_both_sides_does_not(texts, tokenizer):
    honest, audited = texts[0::2], texts[1::2]
    fair = HonestBills(honest, tokenizer).judge(audited, 0.001)
    assert not fair.convicts
    assert len(fair.responses) + len(fair.refused) == len(audited)
    assert fair.unmatched < len(audited) / 2
    for extra in (1, 2, 3):
        padded = HonestBills(honest, tokenizer).judge(billed(audited[:20], extra), 0.001)
        assert padded.convicts, extra
        habit = HonestBills(billed(honest, extra), tokenizer).judge(billed(audited, extra), 0.001)
        assert not habit.convicts, extra
    # What is billed less than the text takes is no room for padding either.
    assert HonestBills(billed(honest, -1), tokenizer).judge(audited[:20], 0.001).convicts


def test_honest_logs_are_hardly_ever_convicted_whatever_the_calibrations_luck(texts, tokenizer):
    generator = np.random.default_rng(5)
    alpha, runs, wrong = 0.05, 200, 0
    spread = generator.poisson(0.3, size=(runs, len(texts)))
    for extra in spread:
        drawn = [billed([t], int(n))[0] for t, n in zip(texts, extra, strict=True)]
        wrong += HonestBills(drawn[:60], tokenizer).judge(drawn[60:], alpha).convicts
    assert wrong / runs <= alpha + 2 * np.sqrt(alpha * (1 - alpha) / runs)


def test_a_response_logged_twice_counts_once_and_far_larger_bills_are_told(texts, tokenizer):
    bills = HonestBills(texts[:60], tokenizer)
    found = bills.judge([texts[60]] * 30 + billed([texts[61]], 500), 0.001)
    assert len(found.responses) == 1
    assert [problem.code for problem in found.refused] == ["cannot-score"]


def test_texts_without_their_special_tokens_are_not_held_against_texts_with_them(texts, tokenizer):
    """A server that skips `<|answer|>` bills it all the same: one token more than the text takes, every time."""
    with_marks = [t for t in texts if "<|answer|>" in t.text]
    skipped = [replace(t, text=t.text.replace("<|answer|>", "")) for t in with_marks]
    found = HonestBills(with_marks[:50], tokenizer).judge(skipped[50:], 0.001)
    assert found.unmatched == len(found.responses) > 10
    assert not found.convicts
    assert not HonestBills(skipped[:50], tokenizer).judge(skipped[50:], 0.001).convicts


def test_conditions_keep_apart_what_honest_excess_depends_on(texts, tokenizer):
    trace = texts[0]
    own = Condition.of(trace, marks=True)
    assert own.script == "LATIN"
    others = [
        replace(trace, model="other"),
        replace(trace, text="это другой язык"),
        replace(trace, sampling=replace(trace.sampling, temperature=0.5)),
        replace(trace, sampling=replace(trace.sampling, grammar={"regex": "a*"})),
    ]
    assert len({own, Condition.of(trace, marks=False), *(Condition.of(t, marks=True) for t in others)}) == 6
    assert [script_of(text) for text in ("", "12 + 3", "好的 a", "Ωμέγα")] == ["NONE", "NONE", "CJK", "GREEK"]
    bills = HonestBills(texts[:60], tokenizer)
    found = bills.judge(billed([replace(texts[70], model="other")], 3), 0.001)
    assert (found.unmatched, found.convicts, found.conditions) == (1, False, ())
    few = HonestBills(texts[:19], tokenizer).judge(billed(texts[60:], 5), 0.001)
    assert few.unmatched == len(few.responses) > 0


def test_conformal_excess_is_valid_and_knows_when_it_knows_too_little():
    generator = np.random.default_rng(4)
    alpha, runs = 0.1, 2000
    wrong = 0
    for _ in range(runs):
        drawn = generator.poisson(0.5, size=30)
        wrong += ExcessBound(tuple(drawn[:29].tolist())).p_value(int(drawn[29])) <= alpha
    assert wrong / runs <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)
    bound = ExcessBound((0,) * 998 + (2,))
    assert bound.quantile(0.999) == 2.0
    assert bound.overbilled_at_least(7) == 5.0
    assert bound.p_value(7) == 0.001
    assert ExcessBound((0,)).quantile(0.999) == float("inf")
    assert ExcessBound((0,)).overbilled_at_least(9) == 0.0


def test_nothing_honest_to_count_is_refused(texts, tokenizer):
    with pytest.raises(OptionError):
        HonestBills([replace(texts[0], text=None)], tokenizer)
    with pytest.raises(OptionError):
        HonestBills(texts[:60], tokenizer).judge(texts[60:], 1.5)


def tokens(*words):
    return CliRunner().invoke(cli, ["tokens", *map(str, words)])


def test_audit_tokens_convicts_only_beside_honest_bills(texts, tmp_path):
    at = tmp_path.__truediv__
    write_traces(at("honest.jsonl"), texts[0::2])
    write_traces(at("fair.jsonl"), texts[1:13:2])
    write_traces(at("padded.jsonl"), billed(texts[1:25:2], 2))
    alone = tokens(at("padded.jsonl"))
    assert alone.exit_code == 0, alone.output
    padded = tokens(at("padded.jsonl"), "--honest", at("honest.jsonl"), "--format", "json")
    assert padded.exit_code == 1, padded.output
    assert isinstance(padded.exception, SystemExit), padded.exception
    found = json.loads(padded.stdout)["against_honest"]
    assert found["convicts"]
    assert found["alpha"] == 0.001
    (condition,) = found["conditions"]
    assert condition["e_value"] >= condition["needed"] == 2000.0
    assert len(found["responses"]) == 12
    known = [row["p_value"] for row in found["responses"] if row["p_value"] is not None]
    assert len(known) == condition["responses"] == 12 - found["unmatched"] > 6
    assert max(known) <= 0.05
    fair = tokens(at("fair.jsonl"), "--honest", at("honest.jsonl"))
    assert fair.exit_code == 0, fair.output
    assert "nothing to accuse of at alpha 0.001" in fair.stdout


def answers(plain, longer, cut=()):
    """Traces of questions asked both ways, with these numbers of output tokens."""
    found = []
    conversations = demo_conversations(len(plain), 9)
    for i, (messages, n, more) in enumerate(zip(conversations, plain, longer, strict=True)):
        for asked, tokens_made in ((messages, n), (lengthened(messages), more)):
            found.append(
                Trace(
                    f"req-{i}-{tokens_made}",
                    "demo",
                    (1,),
                    (5,) * int(tokens_made),
                    SamplingSpec(),
                    messages=tuple(asked),
                    usage=Usage(1, int(tokens_made)),
                    finish_reason="length" if i in cut else "stop",
                )
            )
    return found


def simulated(seed, *, rambles):
    """Lengths of a model that lengthens three- to sixfold, or of one that is made to ramble already."""
    generator = np.random.default_rng([7, seed])
    plain = generator.integers(60, 120, size=20)
    if rambles:
        return plain * 8, plain * 8 * generator.uniform(1.0, 1.3, size=20)
    return plain, plain * generator.uniform(3, 6, size=20)


def test_a_saturated_service_lengthens_less_and_an_honest_one_is_not_blamed():
    trusted = answers(*simulated(0, rambles=False), cut={3})
    rambling = compare_lengthening(answers(*simulated(1, rambles=True)), trusted)
    assert rambling.p_value < 0.001
    assert (rambling.questions, rambling.limited) == (20, 1)
    assert np.exp(rambling.service) < 1.4 < 3.0 < np.exp(rambling.trusted)
    values = [
        compare_lengthening(answers(*simulated(seed, rambles=False)), trusted).p_value
        for seed in range(2, 32)
    ]
    assert sum(p <= 0.05 for p in values) <= 5, "1.5 of 30 are expected; the draws are fixed"


def test_questions_are_paired_by_what_was_asked_whatever_the_order_and_repeated_answers_are_averaged():
    log = answers([10, 20], [30, 80])
    again = [replace(log[0], usage=Usage(1, 30))]
    found = lengths_of([*reversed(log), *again, replace(log[0], messages=None)])
    assert sorted((q.plain, q.lengthened) for q in found.values()) == [(20.0, 30.0), (20.0, 80.0)]
    assert lengths_of(log[:1]) == {}


def test_lengthening_refuses_what_it_cannot_compare():
    generator = np.random.default_rng(0)
    with pytest.raises(OptionError):
        lengthening([Lengths(1, 2)] * 4, [Lengths(1, 2)] * 4, generator)
    with pytest.raises(OptionError):
        lengthening([Lengths(1, 2)] * 5, [Lengths(1, 2)] * 6, generator)
    with pytest.raises(OptionError):
        compare_lengthening(answers([1] * 4, [2] * 4), answers([1] * 4, [2] * 4))
    asked = lengthened([{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}])
    assert asked[1]["content"] == f"Why? {LENGTHEN}"
    with pytest.raises(OptionError):
        lengthened([{"role": "user", "content": [{"type": "image"}]}])


def test_audit_tokens_prints_the_lengthening_beside_a_trusted_copy(tmp_path):
    write_traces(tmp_path / "service.jsonl", answers(*simulated(1, rambles=True)))
    write_traces(tmp_path / "trusted.jsonl", answers(*simulated(0, rambles=False)))
    words = (tmp_path / "service.jsonl", "--trusted", tmp_path / "trusted.jsonl")
    shown = tokens(*words)
    assert shown.exit_code == 0, shown.output
    assert "lengthening: 20 questions" in shown.stdout
    assert "no proof" in shown.stdout
    found = json.loads(tokens(*words, "--format", "json").stdout)["lengthening"]
    assert found["p_value"] < 0.001
    few = tokens(tmp_path / "service.jsonl", "--trusted", TRACES / "vllm-cpu-bf16-plain.jsonl.gz")
    assert isinstance(few.exception, OptionError)
    assert len(list(itertools.islice(read_traces(tmp_path / "service.jsonl"), 50))) == 40
