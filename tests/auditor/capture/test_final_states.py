"""Fingerprints from recorders: of the states that tokens were sampled from, and of no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from auditor.capture import recorded_generate
from auditor.capture.final_states import recorded_kind
from auditor.errors import CaptureError
from auditor.fingerprints.activation_difr import FingerprintKind
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.tokenizer import Tokenizer
from auditor.replay import Reference, replay
from auditor.trace_files import read_traces

OPTIONS = {"do_sample": True, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts():
    tokenizer = Tokenizer.load(TARGET)
    return [torch.tensor([tokenizer.encode_chat(m)]) for m in demo_conversations(2, 612)]


@pytest.fixture
def recorded(model, prompts, tmp_path):
    log = tmp_path / "traces.jsonl"
    whole = [
        recorded_generate(model, prompt, seed=7, log=log, fingerprints="bf16:16", **OPTIONS)
        for prompt in prompts
    ]
    return whole, list(read_traces(log))


def test_transformers_states_are_those_that_the_reference_computes_at_each_token(recorded):
    _, traces = recorded
    for scored in replay(traces, Reference.load(TARGET)):
        assert scored.fingerprint_problem is None
        assert scored.trace.grade == "A"
        (score,) = scored.fingerprints
        assert score.windows == len(scored.trace.output_token_ids)
        assert score.distance < 1e-3


def test_the_states_of_another_checkpoint_are_far(model, prompts, recorded, tmp_path):
    _, (trace, _) = recorded
    norm = model.model.norm.weight
    log = tmp_path / "other.jsonl"
    kept = norm.data.clone()
    try:
        norm.data[:16] *= 1.5
        recorded_generate(model, prompts[0], seed=7, log=log, fingerprints="bf16:16", **OPTIONS)
    finally:
        norm.data.copy_(kept)
    (other,) = read_traces(log)
    (scored,) = replay([replace(other, model_digest=trace.model_digest)], Reference.load(TARGET))
    assert scored.fingerprints[0].distance > 0.1


def test_watching_changes_no_token_and_leaves_no_hook(model, prompts, recorded, tmp_path):
    whole, _ = recorded
    log = tmp_path / "plain.jsonl"
    assert torch.equal(whole[0], recorded_generate(model, prompts[0], seed=7, log=log, **OPTIONS))
    (plain,) = read_traces(log)
    assert not plain.fingerprints
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_without_an_output_matrix_is_refused_and_nothing_is_logged(model, prompts, tmp_path):
    log = tmp_path / "traces.jsonl"
    bare = transformers.AutoModel.from_pretrained(TARGET, dtype=torch.float32)
    bare.generation_config = model.generation_config
    with pytest.raises(CaptureError, match="output matrix"):
        recorded_generate(bare, prompts[0], seed=7, log=log, fingerprints="int8:16", **OPTIONS)
    assert not log.exists()


def test_a_kind_is_read():
    assert recorded_kind("int4:8:32", where="X") == FingerprintKind("int4", 8, 32)


@pytest.mark.parametrize(("text", "said"), [("int8", "names no kind"), ("int8:16:1:2", "after layer 2")])
def test_what_recorders_cannot_fingerprint_is_refused(text, said):
    """States after the final norm under a layer's name would convict an honest provider."""
    with pytest.raises(CaptureError, match=said):
        recorded_kind(text, where="AUDITOR_CAPTURE_FINGERPRINTS")
