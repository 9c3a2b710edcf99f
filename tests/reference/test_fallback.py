"""`load_model`: families through `Model`, everything else through transformers, with the same interface."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from auditor.errors import (
    ContextLengthError,
    ModelCorruptError,
    ModelNotFoundError,
    ModelUnsafeError,
    ModelUnsupportedError,
    OptionError,
    TokenOutOfRangeError,
)
from auditor.reference.batch import Span, extend
from auditor.reference.checkpoint.digests import weights_digest
from auditor.reference.decode import Ask, generate
from auditor.reference.fallback import FallbackModel
from auditor.reference.loading import load_model
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence

TARGET = Path(__file__).parents[2] / "reference" / "demo" / "target"
IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
UNKNOWN = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4, **IDS)
    ),
    "cohere": lambda: CohereForCausalLM(
        CohereConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            logit_scale=0.3,
            **IDS,
        )
    ),
    "falcon_mamba": lambda: FalconMambaForCausalLM(
        FalconMambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4, **IDS)
    ),
}


@pytest.fixture(params=UNKNOWN)
def checkpoint(request, tmp_path):
    torch.manual_seed(3)
    UNKNOWN[request.param]().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def gpt2(tmp_path):
    torch.manual_seed(3)
    UNKNOWN["gpt2"]().save_pretrained(tmp_path)
    return tmp_path


def change(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def tokens_of(length, seed=0):
    return torch.randint(0, 96, (length,), generator=torch.Generator().manual_seed(seed))


def test_a_known_architecture_is_a_model_and_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(load_model(TARGET, dtype=torch.bfloat16, wide_matmul=True)) is Model


def test_an_unknown_one_is_transformers_and_warns_once(checkpoint):
    with pytest.warns(UserWarning, match="many times slower") as caught:
        model = load_model(checkpoint)
    assert len([w for w in caught if "slower" in str(w.message)]) == 1
    assert type(model) is FallbackModel
    sequences = [tokens_of(20), tokens_of(1, 1), tokens_of(33, 2)]
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")
    with torch.no_grad():
        expected = torch.cat([theirs(tokens[None], use_cache=False).logits[0] for tokens in sequences])
    assert torch.equal(model.logits(model.prefill(sequences)), expected)
    assert model.config.vocab_size == model.config.hidden_size == 96
    assert model.config.num_hidden_layers == 2
    assert model.config.context_length in (64, 2**31 - 1)
    assert (model.digest, model.dtype) == (weights_digest(checkpoint), torch.float32)


@pytest.mark.filterwarnings("ignore:.*many times slower")
def test_company_cuts_and_unwanted_rows_change_nothing(checkpoint):
    model = load_model(checkpoint, dtype=torch.bfloat16)
    tokens = tokens_of(40)
    alone = model.prefill([tokens])
    company = model.forward([Span(tokens_of(9, 1)), Span(tokens, wanted=30)])
    assert torch.equal(company[9:], alone[30:])
    cache, sequence, rows = model.new_cache(), Sequence(), []
    for part in tokens.split([7, 1, 1, 31]):
        rows.append(model.forward([extend(cache, sequence, part)], cache, exact=False)[-1])
        sequence.length += len(part)
    assert torch.equal(rows[-1], alone[-1])
    assert torch.allclose(torch.stack(rows[:-1]).float(), alone[[6, 7, 8]].float(), atol=0.02)


@pytest.mark.filterwarnings("ignore:.*many times slower")
def test_what_it_cannot_do_is_said_in_one_line(gpt2):
    model = load_model(gpt2)
    with pytest.raises(OptionError, match="modified gpt2"):
        model.replace(skip_layers=frozenset({0}))
    with pytest.raises(OptionError, match="not there"):
        model.forward([Span(tokens_of(3), past=torch.arange(4))])
    with pytest.raises(OptionError, match="draft tree"):
        model.forward([Span(tokens_of(3), ancestors=torch.eye(3, dtype=torch.bool))])
    with pytest.raises(TokenOutOfRangeError):
        model.prefill([torch.tensor([96])])
    with pytest.raises(ContextLengthError):
        model.prefill([tokens_of(65)])
    assert model.prefill([]).shape == (0, 96)
    with pytest.raises(OptionError):
        load_model(gpt2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model_type": "nobody_has_this", "architectures": None}, ModelUnsupportedError, "nobody_has_this"),
        ({"model_type": None}, ModelUnsupportedError, "cannot load"),
        ({"model_type": "bert"}, (ModelUnsupportedError, ModelCorruptError), "tensor|model_type"),
        ({"quantization_config": {"quant_method": "awq"}}, ModelUnsupportedError, "quantization_config"),
        ({"auto_map": {"AutoModel": "evil.Evil"}}, ModelUnsafeError, "auto_map"),
        ({"n_layer": 3}, ModelCorruptError, "missing or misshapen"),
        ({"n_layer": 1}, ModelUnsupportedError, "no place"),
        ({"n_embd": 40}, (ModelCorruptError, ModelUnsupportedError), "gpt2|tensor"),
    ],
)
def test_bad_checkpoints_are_one_line(gpt2, fields, error, message):
    change(gpt2, **fields)
    with pytest.raises(error, match=message) as caught:
        load_model(gpt2)
    assert "\n" not in str(caught.value)
    assert str(gpt2) in str(caught.value)


def test_pickles_nan_adapters_and_nothing(gpt2, tmp_path):
    weights = gpt2 / "model.safetensors"
    tensors = load_file(weights)
    tensors["transformer.h.0.ln_1.weight"][3] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelCorruptError, match="NaN"):
        load_model(gpt2)
    (gpt2 / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelUnsupportedError, match="adapter"):
        load_model(gpt2)
    (gpt2 / "adapter_config.json").unlink()
    weights.rename(gpt2 / "pytorch_model.bin")
    with pytest.raises(ModelUnsafeError):
        load_model(gpt2)
    with pytest.raises(ModelNotFoundError):
        load_model(tmp_path / "absent")


def test_without_transformers_the_message_says_so(gpt2, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModelUnsupportedError, match="transformers is not installed"):
        load_model(gpt2)


@pytest.mark.filterwarnings("ignore:.*many times slower")
def test_it_generates_and_is_scored_like_any_model(gpt2):
    model, scheme = load_model(gpt2), noise_scheme("gumbel-pos-v1")
    prompt, spec = tuple(tokens_of(12).tolist()), SamplingSpec(max_tokens=9, ignore_eos=True)
    (output,) = generate(model, [Ask(prompt, len(prompt), spec, 5, scheme, 9, frozenset())])
    for budget in (8, 500):
        (rows,) = Runner(model, token_budget=budget).score([Request(prompt, output, spec, 5, scheme)])
        assert rows.winner.tolist() == list(output)
