"""Phi-3: longrope on both sides of the original context length, and heads that turn in part."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from auditor.errors import ModelCorruptError, ModelUnsupportedError, OptionError
from auditor.reference.batch import Span, extend
from auditor.reference.model import Model
from auditor.reference.slots import Sequence

ORIGINAL = 40
PHI3 = {
    "model_type": "phi3",
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 160,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.0, 2.0, 4.0, 9.0]}


@pytest.fixture
def long(tmp_path):
    torch.manual_seed(5)
    config = Phi3Config(
        **PHI3,
        initializer_range=0.2,
        pad_token_id=None,
        rope_scaling=dict(LONGROPE),
        original_max_position_embeddings=ORIGINAL,
    )
    Phi3ForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def random_tokens(length, seed=0):
    return torch.randint(0, 128, (length,), generator=torch.Generator().manual_seed(seed))


def test_long_sequences_turn_otherwise_each_for_itself(long, transformers_logits):
    model = Model.load(long)
    for length in (ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 150):
        tokens = random_tokens(length, seed=length)
        theirs = transformers_logits(long, [tokens])
        company = [Span(random_tokens(9)), Span(tokens), Span(random_tokens(160))]
        ours = model.logits(model.forward(company)[9 : 9 + length])
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5
        assert torch.equal(ours, model.logits(model.prefill([tokens])))


def test_a_sequence_that_outgrows_the_original_length_is_refused(long):
    model = Model.load(long)
    cache, sequence = model.new_cache(), Sequence()
    model.forward([extend(cache, sequence, random_tokens(ORIGINAL))], cache)
    sequence.length = ORIGINAL
    with pytest.raises(OptionError, match=f"beyond {ORIGINAL} tokens"):
        model.forward([extend(cache, sequence, random_tokens(1))], cache, exact=False)
    assert not model.config.shares_prefixes


def test_a_long_sequence_goes_on(long):
    model = Model.load(long)
    tokens, cache, sequence = random_tokens(90), model.new_cache(), Sequence()
    parts = []
    for part in tokens.split([50, 1, 39]):
        parts.append(model.forward([extend(cache, sequence, part)], cache, exact=False))
        sequence.length += len(part)
    assert torch.allclose(torch.cat(parts), model.prefill([tokens]), atol=1e-4)


def test_how_much_attention_grows(read):
    def of(**fields):
        return read(PHI3, **fields).layers[0].mixer.rope

    grown = math.sqrt(1 + math.log(4) / math.log(ORIGINAL))
    fields = {"original_max_position_embeddings": ORIGINAL, "rope_scaling": LONGROPE}
    assert of(**fields).attention_factor == pytest.approx(grown)
    assert of(**fields | {"rope_scaling": LONGROPE | {"type": "su"}}).attention_factor == pytest.approx(grown)
    assert of(**fields | {"rope_scaling": LONGROPE | {"attention_factor": 1.5}}).attention_factor == 1.5
    assert of(rope_scaling=LONGROPE).attention_factor == 1.0  # 4096 positions to begin with, 160 now
    assert of(partial_rotary_factor=0.75).rotary_dim == 6
    assert of().rope_type == "default"


def test_short_contexts_share_prefixes(read):
    assert read(PHI3, rope_scaling=LONGROPE).shares_prefixes
    assert read(PHI3).shares_prefixes


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"rope_scaling": LONGROPE | {"short_factor": [1.0]}}, ModelCorruptError),
        ({"rope_scaling": LONGROPE | {"long_factor": 3}}, ModelCorruptError),
        ({"rope_scaling": LONGROPE | {"long_factor": [1.0, 2.0, "x", 3.0]}}, ModelCorruptError),
        ({"rope_scaling": LONGROPE, "partial_rotary_factor": 0.75}, ModelCorruptError),
        ({"partial_rotary_factor": 0.4}, ModelCorruptError),
        ({"partial_rotary_factor": 1.5}, ModelCorruptError),
        ({"rope_scaling": LONGROPE | {"type": "yarn"}}, ModelUnsupportedError),
        ({"rope_scaling": LONGROPE | {"short_mscale": 1.2}}, ModelUnsupportedError),
        ({"attention_bias": True}, ModelUnsupportedError),
    ],
)
def test_what_is_refused(read, fields, error):
    with pytest.raises(error):
        read(PHI3, **fields)
