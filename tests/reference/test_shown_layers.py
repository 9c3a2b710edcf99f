"""The residual stream after any layer: beside the final states, or alone with the later layers never computed."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from auditor.errors import OptionError
from auditor.reference.batch import Span
from auditor.reference.demo.prompts import TARGET
from auditor.reference.model import Model

WIDTH = 256
SEQUENCES = [torch.arange(5, 45), torch.arange(100, 117)]


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return Model.load(TARGET)


def states(model, wanted=0):
    return model.forward([Span(tokens, wanted=wanted) for tokens in SEQUENCES])


def test_every_layers_stream_is_that_of_transformers(model):
    theirs = LlamaForCausalLM.from_pretrained(TARGET, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = theirs.model(SEQUENCES[0][None], output_hidden_states=True).hidden_states
    for layer in range(4):  # transformers' last entry is after the final norm
        own = model.up_to(layer).forward([Span(SEQUENCES[0])])
        torch.testing.assert_close(own, expected[layer + 1][0], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("wanted", [0, 9])
@pytest.mark.parametrize("stream", [False, True])
def test_shown_beside_or_computed_alone_a_layer_has_the_same_bits(wanted, stream):
    model = Model.load(TARGET, dtype=torch.bfloat16, wide_matmul=True, stream=stream)
    shown = states(model.showing((1, 4, 0)), wanted)
    assert torch.equal(shown[:, :WIDTH], states(model, wanted))
    for place, layer in enumerate((1, 4, 0), start=1):
        own = shown[:, place * WIDTH : (place + 1) * WIDTH]
        assert torch.equal(own, states(model.up_to(layer), wanted))


def test_logits_look_at_the_final_states_only(model):
    assert torch.equal(model.logits(states(model)), model.logits(states(model.showing((2,)))))
    assert model.showing((2, 3)).forward([]).shape == (0, 3 * WIDTH)


def test_a_layer_left_out_shows_what_came_before_it(model):
    cut = model.replace(skip_layers=frozenset({0, 2}))
    shown = states(cut.showing((0, 1, 2)))
    assert torch.equal(shown[:, 2 * WIDTH : 3 * WIDTH], shown[:, 3 * WIDTH :])
    embedded = model.parameters["model.embed_tokens.weight"][torch.cat(SEQUENCES)]
    assert torch.equal(shown[:, WIDTH : 2 * WIDTH], embedded)


def test_a_model_that_stops_early_can_be_changed(model):
    half = model.up_to(1)
    assert torch.equal(states(half.replace(weights=lambda _name, weight: weight)), states(half))


@pytest.mark.parametrize("layer", [-1, 5])
def test_a_layer_that_does_not_exist_is_refused(model, layer):
    with pytest.raises(OptionError):
        model.up_to(layer)
    with pytest.raises(OptionError):
        model.showing((layer,))
