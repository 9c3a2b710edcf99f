"""What `audit generate` samples under a request's own rules, the audit replays under the same."""

from __future__ import annotations

import importlib.metadata
import json
import re
from dataclasses import replace
from functools import cache

import pytest
from click.testing import CliRunner

from auditor.calibration import calibrate
from auditor.commands.generate import generate as command
from auditor.errors import OptionError, SamplingUnsupportedError
from auditor.generation import Provider, generate
from auditor.reference.decode import Ask
from auditor.reference.decode import generate as decode
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import DEVIATIONS, HONEST
from auditor.reference.drafters import ModelDrafter
from auditor.reference.noise import noise_scheme
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation import find_rule
from auditor.replay import Reference, replay
from auditor.trace import Engine
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


def made(spec, deviation=HONEST, seed=5, noise="gumbel-pos-v1"):
    asked = demo_conversations(3, seed)
    return list(generate(provider(), asked, deviation=deviation, seed=seed, sampling=spec, noise=noise))


LLAMA, TORCH = "llama.cpp/mt19937-u64-icdf", "torch-cpu-multinomial"
SHAPED = {
    "typical-p of generate": (TORCH, SamplingSpec(typical_p=0.8, top_k=200, max_tokens=40)),
    "typical-p of llama.cpp": (LLAMA, SamplingSpec(typical_p=0.8, max_tokens=40)),
    "top-n-sigma": (LLAMA, SamplingSpec(top_n_sigma=1.0, presence_penalty=0.3, max_tokens=40)),
    "XTC": (LLAMA, SamplingSpec(xtc_probability=0.5, max_tokens=40)),
}


def as_if_served(traces):
    """Our own engine is none that these schemes are known for."""
    return [replace(trace, engine=Engine(recipe="served/elsewhere")) for trace in traces]


@pytest.mark.parametrize("name", SHAPED)
def test_generation_under_filters_that_keep_no_prefix_is_replayed_and_calibrated_on(name):
    noise, spec = SHAPED[name]
    honest = as_if_served(made(spec, noise=noise))
    for scored in replay(honest, reference()):
        assert scored.problem is None
        assert scored.mode == ("penalised" if spec.penalised else "nucleus")
        assert scored.scores.filtered == scored.scores.tokens
        assert all(slack < 1e-3 for _, _, slack in scored.scores.misses)
    profile = calibrate(honest, reference(), shadow_tokens=60)
    assert {"sampled", "nucleus"} <= set(profile.deviations["seed/wrong"].requests)
    wrong = as_if_served(made(spec, DEVIATIONS["seed/wrong"], noise=noise))
    assert sum(len(scored.scores.misses) for scored in replay(wrong, reference())) > 5


def test_such_filters_are_refused_while_drafts_decide_and_without_a_seed_nothing_is_said_of_them():
    ask = Ask((1, 2), 2, SHAPED["XTC"][1], 5, noise_scheme(LLAMA), 4, frozenset())
    model, rule = provider().model, find_rule("standard", noise_scheme("gumbel-pos-v1"), None)
    with pytest.raises(SamplingUnsupportedError, match="under speculation"):
        list(decode(model, [replace(ask, speculation=rule)], drafter=ModelDrafter(model)))
    trace = replace(as_if_served(made(SHAPED["XTC"][1], noise=LLAMA))[0], seed=None)
    (scored,) = replay([trace], reference())
    assert scored.problem.code == "trace-incomplete"
    assert scored.seed_free is None


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
