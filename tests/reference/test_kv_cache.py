"""`KVCache`: ragged lengths, growing, and dropping finished sequences."""

from __future__ import annotations

import pytest
import torch

from auditor.errors import ContextLengthError, OptionError
from auditor.reference.config import ModelConfig, Rope
from auditor.reference.kv_cache import KVCache

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=16,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    context_length=20,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    sliding_windows=(None, None),
    rope=Rope(),
)


def cache(batch=3, capacity=6):
    return KVCache(CONFIG, batch=batch, capacity=capacity, dtype=torch.float32)


def rows(count):
    return torch.randn(count, 2, 4), torch.randn(count, 2, 4)


def test_a_prompt_lands_in_its_row_only():
    ours = cache()
    keys, values = rows(5)
    ours.write_prompt(1, 2, keys, values)
    assert torch.equal(ours.keys[1, 2, :, :5], keys.transpose(0, 1))
    assert torch.equal(ours.values[1, 2, :, :5], values.transpose(0, 1))
    assert ours.keys[0].abs().sum() == 0
    assert ours.keys[1, :2].abs().sum() == 0
    assert ours.keys[1, 2, :, 5].abs().sum() == 0


def test_the_next_token_lands_at_each_rows_own_length():
    ours = cache()
    ours.lengths[:] = torch.tensor([0, 3, 5])
    keys, values = rows(3)
    ours.write_next(0, keys, values)
    for row, length in enumerate([0, 3, 5]):
        assert torch.equal(ours.keys[0, row, :, length], keys[row])
        assert torch.equal(ours.values[0, row, :, length], values[row])
    assert int((ours.keys[0].abs().sum(dim=(1, 3)) > 0).sum()) == 3


def test_growing_keeps_what_is_stored_and_at_least_doubles():
    ours = cache()
    ours.keys.normal_()
    ours.values.normal_()
    keys, values = ours.keys.clone(), ours.values.clone()
    ours.grow(7)
    assert ours.capacity == 12
    assert torch.equal(ours.keys[:, :, :, :6], keys)
    assert torch.equal(ours.values[:, :, :, :6], values)
    assert ours.keys[:, :, :, 6:].abs().sum() == 0
    ours.grow(3)
    assert ours.capacity == 12
    ours.grow(13)
    assert ours.capacity == CONFIG.context_length


@pytest.mark.parametrize("chosen", [torch.tensor([2, 0]), torch.tensor([], dtype=torch.int64)])
def test_keeping_rows_in_a_given_order(chosen):
    ours = cache()
    ours.lengths[:] = torch.tensor([1, 2, 3])
    ours.keys.normal_()
    before = ours.keys.clone()
    ours.keep(chosen)
    assert ours.batch == len(chosen)
    assert ours.lengths.tolist() == [int(row) + 1 for row in chosen]
    assert torch.equal(ours.keys, before[:, chosen])


def test_keeping_rows_by_a_mask():
    ours = cache()
    ours.lengths[:] = torch.tensor([1, 2, 3])
    ours.keep(torch.tensor([True, False, True]))
    assert ours.lengths.tolist() == [1, 3]


def test_a_row_that_is_not_there():
    with pytest.raises(IndexError):
        cache().keep(torch.tensor([3]))


def test_the_context_is_the_limit():
    with pytest.raises(ContextLengthError):
        cache().grow(21)
    for batch, capacity in ((-1, 4), (1, 0), (1, 21)):
        with pytest.raises(OptionError):
            cache(batch, capacity)
