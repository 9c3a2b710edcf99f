"""The wrapper around transformers' `generate`, on the demo model: what is recorded is what ran."""

from __future__ import annotations

import pytest
import torch
import transformers

from auditor.capture import recorded_generate
from auditor.errors import OptionError, SamplingUnsupportedError
from auditor.preparation import prepare
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.tokenizer import Tokenizer
from auditor.replay import Reference, replay
from auditor.trace_files import read_traces


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


@pytest.fixture(scope="module")
def prompts():
    tokenizer = Tokenizer.load(TARGET)
    return [torch.tensor([tokenizer.encode_chat(m)]) for m in demo_conversations(2, 611)]


SAMPLED = {"do_sample": True, "max_new_tokens": 16}


@pytest.mark.parametrize(
    "options",
    [
        SAMPLED,
        SAMPLED | {"temperature": 0.7, "top_k": 30, "top_p": 0.9},
        SAMPLED | {"min_p": 0.05, "temperature": 1.2},
        {"max_new_tokens": 16, "do_sample": False},
    ],
)
def test_every_token_is_replayed(model, reference, prompts, tmp_path, options):
    log = tmp_path / "traces.jsonl"
    for i, prompt in enumerate(prompts):
        whole = recorded_generate(model, prompt, seed=2**32 + 91 + i, log=log, **options)
        assert whole.shape[1] > prompt.shape[1]
    traces = list(read_traces(log))
    assert len(traces) == len(prompts)
    for scored in replay(traces, reference):
        assert scored.problem is None
        assert scored.scores.matched == scored.scores.tokens


def test_what_is_recorded_is_what_generate_gives_without_it(model, prompts, tmp_path):
    recorded = recorded_generate(model, prompts[0], seed=5, log=tmp_path / "a.jsonl", top_k=20, **SAMPLED)
    torch.manual_seed(5)
    assert torch.equal(recorded, model.generate(prompts[0], top_k=20, **SAMPLED))
    (trace,) = read_traces(tmp_path / "a.jsonl")
    assert list(trace.prompt_token_ids) == prompts[0][0].tolist()
    assert list(trace.output_token_ids) == recorded[0, prompts[0].shape[1] :].tolist()


def test_the_callers_generator_is_where_it_was(model, prompts, tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    recorded_generate(model, prompts[0], seed=5, log=tmp_path / "a.jsonl", **SAMPLED)
    assert torch.equal(before, torch.get_rng_state())


def test_transformers_own_default_of_top_k_is_recorded(model, prompts, tmp_path):
    own = model.generation_config
    model.generation_config = transformers.GenerationConfig(eos_token_id=2, pad_token_id=0)
    try:
        recorded_generate(model, prompts[0], seed=5, log=tmp_path / "a.jsonl", **SAMPLED)
    finally:
        model.generation_config = own
    (trace,) = read_traces(tmp_path / "a.jsonl")
    assert trace.sampling.top_k == 50


def test_the_record_says_who_ran_what(model, prompts, tmp_path):
    messages = [{"role": "user", "content": "hello"}]
    log = tmp_path / "a.jsonl"
    recorded_generate(
        model, prompts[0], seed=5, log=log, messages=messages, **SAMPLED | {"max_new_tokens": 3}
    )
    (trace,) = read_traces(log)
    version = transformers.__version__
    assert trace.engine.recipe == f"transformers-{version}/torch-2.13.0/float32/sdpa/dynamic-cache"
    assert (trace.noise, trace.finish_reason, trace.sampling.max_tokens) == (
        "torch-cpu-multinomial",
        "length",
        3,
    )
    assert trace.messages == tuple(messages)


def test_typical_p_is_recorded_and_replayed(model, reference, prompts, tmp_path):
    recorded_generate(model, prompts[0], seed=5, log=tmp_path / "a.jsonl", **SAMPLED, typical_p=0.6)
    (trace,) = read_traces(tmp_path / "a.jsonl")
    assert trace.sampling.typical_p == 0.6
    (rows,) = reference.runner.score([prepare(trace, reference)])
    assert rows.matched.all()


@pytest.mark.parametrize("option", [{"top_h": 0.9}, {"no_repeat_ngram_size": 2}])
def test_a_parameter_that_no_trace_models_is_recorded_and_stops_the_replay(
    model, reference, prompts, tmp_path, option
):
    recorded_generate(model, prompts[0], seed=5, log=tmp_path / "a.jsonl", **SAMPLED, **option)
    (trace,) = read_traces(tmp_path / "a.jsonl")
    with pytest.raises(SamplingUnsupportedError, match=next(iter(option))):
        prepare(trace, reference)


def test_what_shares_noise_or_hides_choices_is_refused(model, prompts, tmp_path):
    log = tmp_path / "a.jsonl"
    two = torch.cat([prompts[0], prompts[0]])
    with pytest.raises(OptionError, match="one prompt"):
        recorded_generate(model, two, seed=5, log=log, **SAMPLED)
    for option in ({"num_beams": 2}, {"num_return_sequences": 2}):
        with pytest.raises(OptionError, match="num_beams"):
            recorded_generate(model, prompts[0], seed=5, log=log, **SAMPLED, **option)
    processors = transformers.LogitsProcessorList()
    with pytest.raises(OptionError, match="logits_processor"):
        recorded_generate(model, prompts[0], seed=5, log=log, logits_processor=processors, **SAMPLED)
    mask = torch.ones_like(prompts[0])
    mask[0, 0] = 0
    with pytest.raises(OptionError, match="padded"):
        recorded_generate(model, prompts[0], seed=5, log=log, attention_mask=mask, **SAMPLED)
    assert not log.exists()
