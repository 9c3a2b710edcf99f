"""Every family: equal to transformers, the same by prefill and by decoding, in any company, however cut."""

from __future__ import annotations

import pytest
import torch

from auditor.reference.batch import Span, extend
from auditor.reference.model import Model
from auditor.reference.slots import Sequence

LENGTHS = [40, 5, 150, 1, 66]


def random_sequences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 128, (length,), generator=generator) for length in lengths]


def worst(ours, theirs):
    """Largest difference as a share of the largest entry."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def append(model, cache, sequence, tokens, *, exact):
    hidden = model.forward([extend(cache, sequence, tokens)], cache, exact=exact)
    sequence.length += len(tokens)
    return hidden


def test_float32_is_transformers(architecture, checkpoint_of, transformers_logits):
    sequences = random_sequences(LENGTHS)
    model = Model.load(checkpoint_of(architecture))
    ours = model.logits(model.prefill(sequences))
    theirs = transformers_logits(checkpoint_of(architecture), sequences)
    assert worst(ours, theirs) < 1e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("wide_matmul", [False, True])
def test_bfloat16_errs_as_transformers_does(architecture, wide_matmul, checkpoint_of, transformers_logits):
    sequences = random_sequences(LENGTHS)
    directory = checkpoint_of(architecture)
    exact = Model.load(directory)
    half = Model.load(directory, dtype=torch.bfloat16, wide_matmul=wide_matmul)
    truth, ours = (model.logits(model.prefill(sequences)) for model in (exact, half))
    theirs = transformers_logits(directory, sequences, torch.bfloat16)
    # Medians: where a row's experts change, its error is of another kind, and both models have such rows.
    ratio = float((ours - truth).abs().median() / (theirs - truth).abs().median())
    assert torch.equal(ours, ours.bfloat16().float())
    assert 0.8 < ratio < 1.25


def test_decoding_one_by_one_is_prefill(architecture, checkpoint_of):
    model = Model.load(checkpoint_of(architecture))
    (tokens,) = random_sequences([140])
    cache, sequence = model.new_cache(), Sequence()
    first = append(model, cache, sequence, tokens[:30], exact=True)
    rest = [append(model, cache, sequence, token[None], exact=False) for token in tokens[30:]]
    assert worst(torch.cat([first, *rest]), model.prefill([tokens])) < 1e-5


def test_several_rows_at_a_time_are_prefill(architecture, checkpoint_of):
    model = Model.load(checkpoint_of(architecture))
    (tokens,) = random_sequences([140])
    cache, sequence = model.new_cache(), Sequence()
    parts = [append(model, cache, sequence, part, exact=False) for part in tokens.split(7)]
    assert worst(torch.cat(parts), model.prefill([tokens])) < 1e-5


def test_cutting_and_company_do_not_change_a_bit(architecture, checkpoint_of):
    for dtype in (torch.float32, torch.bfloat16):
        model = Model.load(checkpoint_of(architecture), dtype=dtype)
        tokens, *others = random_sequences([150, 9, 70])
        alone = model.prefill([tokens])
        company = model.forward([Span(others[0]), Span(tokens), Span(others[1])])
        assert torch.equal(company[9:159], alone)
        cache, sequence = model.new_cache(), Sequence()
        cut = [
            append(model, cache, sequence, part, exact=True) for part in tokens.split([1, 2, 60, 1, 70, 16])
        ]
        assert torch.equal(torch.cat(cut), alone)


def test_hooked_weights_are_all_parameters(architecture, checkpoint_of):
    model = Model.load(checkpoint_of(architecture))
    seen = set()

    def record(name, tensor):
        seen.add(name)
        return tensor

    same = model.replace(weights=record)
    assert seen == set(model.parameters)
    sequences = random_sequences([20])
    assert torch.equal(same.prefill(sequences), model.prefill(sequences))
