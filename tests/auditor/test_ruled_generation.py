"""What `audit generate` samples under a request's own rules, the audit replays under the same."""

from __future__ import annotations

import importlib.metadata
import json
import re
from functools import cache

import pytest
from click.testing import CliRunner

from auditor.commands.generate import generate as command
from auditor.errors import OptionError
from auditor.generation import Provider, generate
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import DEVIATIONS, HONEST
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, replay
from auditor.trace_files import read_traces

SCHEMA = {
    "type": "object",
    "required": ["sure"],
    "additionalProperties": False,
    "properties": {"sure": {"type": "boolean"}},
}


@cache
def provider():
    return Provider.load(TARGET, dtype="float32")


@cache
def reference():
    return Reference.load(TARGET)


def grammar(**fields):
    return {"library": "xgrammar", "version": importlib.metadata.version("xgrammar"), **fields}


SPECS = {
    "penalties": SamplingSpec(
        repetition_penalty=1.3, presence_penalty=0.3, frequency_penalty=0.2, max_tokens=40
    ),
    "bias and masks": SamplingSpec(
        logit_bias={205: 2.0}, bad_words=("the", "step"), min_tokens=30, max_tokens=40, temperature=0.7
    ),
    "greedy penalties": SamplingSpec(temperature=0.0, repetition_penalty=1.2, max_tokens=40),
    "json": SamplingSpec(grammar=grammar(kind="json_schema", schema=SCHEMA), max_tokens=60, top_p=0.9),
    "stop string": SamplingSpec(stop=("at", "on"), max_tokens=40),
    "ignored end": SamplingSpec(ignore_eos=True, logit_bias={2: 6.0}, max_tokens=30),
}


def made(spec, deviation=HONEST, seed=5):
    return list(
        generate(provider(), demo_conversations(3, seed), deviation=deviation, seed=seed, sampling=spec)
    )


@pytest.mark.parametrize("name", SPECS)
def test_honest_generation_is_replayed_to_the_token_and_nothing_contradicts(name):
    for scored in replay(made(SPECS[name]), reference()):
        assert scored.problem is None
        assert scored.contradictions == ()
        assert scored.scores.evidence > 0
        assert all(slack < 1e-3 for _, _, slack in scored.scores.misses)


def test_generated_json_is_of_its_schema():
    finished = [t for t in made(SPECS["json"]) if t.finish_reason == "stop"]
    assert finished
    assert all(json.loads(t.text).keys() == {"sure"} for t in finished)


def test_a_stop_string_ends_the_output_and_is_not_in_its_text():
    traces = made(SPECS["stop string"])
    assert any(t.finish_reason == "stop" for t in traces)
    for trace in traces:
        assert "at" not in trace.text and "on" not in trace.text


def test_an_ignored_penalty_shows_and_is_declared():
    traces = made(SPECS["penalties"], DEVIATIONS["penalty/ignored"])
    assert {t.sampling for t in traces} == {SPECS["penalties"]}
    scores = [s.scores for s in replay(traces, reference())]
    assert sum(s.matched for s in scores) < 0.97 * sum(s.evidence for s in scores)


def test_the_command_takes_rules_and_logs_library_version_and_digest(tmp_path):
    out = tmp_path / "ruled.jsonl"
    options = ["--requests", "2", "--max-tokens", "12", "--dtype", "float32", "--logit-bias", "300=-1.5"]
    options += ["--regex", "[a-z ]+", "--repetition-penalty", "1.1", "--stop-token", "9"]
    done = CliRunner().invoke(command, ["--out", str(out), *options])
    assert done.exit_code == 0, done.output
    for trace in read_traces(out):
        assert re.fullmatch("[a-z ]*", trace.text)
        spec = trace.sampling
        assert (spec.logit_bias, spec.repetition_penalty, spec.stop_token_ids) == ({300: -1.5}, 1.1, (9,))
        assert spec.grammar["library"] == "xgrammar"
        assert spec.grammar["digest"].startswith("sha256:")


@pytest.mark.parametrize("bias", ["x=1", "7", "7=a"])
def test_a_bias_that_is_none_is_refused(tmp_path, bias):
    done = CliRunner().invoke(command, ["--out", str(tmp_path / "t.jsonl"), "--logit-bias", bias])
    assert isinstance(done.exception, OptionError)
    assert "ID=LOGITS" in str(done.exception)
