"""Any-subset speculative decoding: always the tokens of the plain loop, in never more passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import OptionError, TokenOutOfRangeError
from auditor.reference.any_subset import AnyOrderModel, decode, decode_one_by_one

MODELS = [
    AnyOrderModel.random(seed, length=24, scale=scale) for seed, scale in ((1, 0.3), (2, 1.0), (3, 3.0))
]


def split(model, seed, share):
    """Known tokens, and the other positions in a random order."""
    generator = np.random.default_rng(seed)
    places = generator.permutation(model.length).tolist()
    count = round(share * model.length)
    known = {place: int(generator.integers(model.vocabulary)) for place in places[:count]}
    return known, places[count:]


@settings(max_examples=120, deadline=None)
@given(
    model=st.sampled_from(MODELS),
    seed=st.integers(0, 2**63),
    share=st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    guesses=st.integers(1, 30),
)
def test_guesses_change_no_token_and_cost_no_pass(model, seed, share, temperature, guesses):
    known, order = split(model, seed % 2**32, share)
    plain = decode_one_by_one(model, known, order, seed=seed, temperature=temperature)
    quick = decode(model, known, order, seed=seed, temperature=temperature, guesses=guesses)
    assert quick.tokens == plain.tokens
    assert quick.passes <= plain.passes == len(order)
    assert all(quick.tokens[place] == token for place, token in known.items())


def test_where_the_context_decides_little_most_passes_are_saved():
    model = AnyOrderModel.random(4, length=48, scale=0.02)
    known, order = split(model, 5, 0.05)
    quick = decode(model, known, order, seed=6, guesses=10)
    assert quick.passes < len(order) / 2


def test_a_query_sees_neither_itself_nor_what_comes_later():
    model = MODELS[1]
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(model.vocabulary, (model.length,), generator=generator)
    ranks = torch.randperm(model.length, generator=generator)
    everything = torch.arange(model.length)
    logits = model.logits(tokens, ranks, ranks, everything)
    place = int((ranks == 10).nonzero())
    changed = tokens.clone()
    changed[place] = (tokens[place] + 1) % model.vocabulary
    moved = (model.logits(changed, ranks, ranks, everything) - logits).abs().amax(1) > 1e-12
    assert torch.equal(moved, ranks > 10)


def test_the_order_decides_and_noise_is_the_positions_own():
    model = MODELS[2]
    known, order = split(model, 8, 0.1)
    one, other = (decode(model, known, o, seed=9) for o in (order, order[::-1]))
    assert one.tokens != other.tokens
    assert decode(model, known, order, seed=10).tokens != one.tokens
    # The first in the order sees the same in either, whatever its turn was in the other.
    alone = decode_one_by_one(model, known, [order[-1], *order[:-1]], seed=9)
    assert alone.tokens[order[-1]] == other.tokens[order[-1]]


@pytest.mark.parametrize(
    ("known", "order", "error"),
    [
        ({0: 1}, list(range(24)), OptionError),
        ({0: 1}, list(range(2, 24)), OptionError),
        ({0: 64}, list(range(1, 24)), TokenOutOfRangeError),
        ({0: -1}, list(range(1, 24)), TokenOutOfRangeError),
    ],
)
def test_positions_must_be_named_once_and_tokens_exist(known, order, error):
    with pytest.raises(error):
        decode(MODELS[0], known, order, seed=1)


def test_other_lengths_and_no_guesses_are_refused():
    model = MODELS[0]
    few = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(OptionError):
        model.logits(few, few, few, few[:1])
    with pytest.raises(OptionError):
        decode(model, {}, list(range(24)), seed=1, guesses=0)
