"""Drafters change no token: every one, under any sampler, batch, cache size, chunking and preemption."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.reference.engine import Engine
from tests.reference.drafters.identity import (
    DRAFTERS,
    TARGET,
    check_invariants,
    pool,
    same_as_plain,
    write_random_model,
)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random-model")
    write_random_model(folder)
    return folder


@pytest.mark.parametrize("name", DRAFTERS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_drafter_gives_the_tokens_of_the_plain_loop(random_model, name, seed):
    same_as_plain(random_model, name, seed, count=54, longest=30, most=24, requests=8, deep_every=5)


@pytest.mark.parametrize("name", [name for name in DRAFTERS if name != "none"])
def test_every_drafter_gives_them_on_the_demo_model(name):
    for seed in range(2):
        same_as_plain(TARGET, name, seed, count=18, longest=24, most=16, requests=4)


def test_a_draft_model_goes_on_with_a_sequence_that_waited(random_model):
    """It was asked twice at one length: the second time there was no token left for it to read."""
    same_as_plain(random_model, "draft model", 541, count=54, longest=30, most=24, requests=8)


def test_a_slot_that_belongs_to_another_prefix_is_noticed(random_model):
    """B2, the stale keys of a rejected guess: the check that the others rely on."""
    model, asks, _ = pool(random_model, 54, 30, 24)
    engine = Engine(model)
    engine.add(next(ask for ask in asks if ask.max_tokens > 9 and len(ask.prompt) > 4))
    for _ in range(3):
        engine.step()
    check_invariants(engine, deep=True)
    sequence = engine.live[0].sequence
    sequence.table[torch.tensor([1, 2])] = sequence.table[torch.tensor([2, 1])]
    with pytest.raises(AssertionError, match="another prefix"):
        check_invariants(engine, deep=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTERS)
@settings(max_examples=170, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_two_thousand_cases(random_model, name, seed):
    same_as_plain(random_model, name, seed, count=54, longest=30, most=24, requests=8)
