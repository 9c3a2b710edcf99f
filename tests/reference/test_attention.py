"""Attention: equal to the plain formula, the same bits however rows are cut, and partials that merge."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.reference import attention
from auditor.reference.attention import Softmax, causal, merge, newest, partial, rowwise

SHAPES = [(4, 2, 8, 8), (3, 3, 16, 16), (6, 1, 8, 12)]
KINDS = {
    "plain": Softmax(0.3),
    "window": Softmax(0.3, window=70),
    "narrow-window": Softmax(0.3, window=5),
    "softcap": Softmax(0.3, softcap=2.0),
}


def inputs(length, shape, dtype=torch.float32, seed=0):
    heads, kept, key_dim, value_dim = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = ((heads, key_dim), (kept, key_dim), (kept, value_dim))
    return [torch.randn(length, *size, generator=generator).to(dtype) for size in sizes]


def attended(queries, keys, values, start, softmax, how=causal):
    out = queries.new_empty(*queries.shape[:2], values.shape[-1])
    how(queries, keys, values, start, softmax, out)
    return out


def plainly(queries, keys, values, softmax, seen):
    """The definition, in float64."""
    queries, keys, values = (x.double() for x in (queries, keys, values))
    group = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * softmax.scale
    if softmax.softcap:
        scores = torch.tanh(scores / softmax.softcap) * softmax.softcap
    scores = scores.masked_fill(~seen, -torch.inf)
    if softmax.sinks is not None:
        sinks = softmax.sinks.double()[:, None, None].expand(-1, len(queries), 1)
        weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values)


def causal_mask(length, window):
    age = torch.arange(length)[:, None] - torch.arange(length)
    return (age >= 0) & (age < (window or length))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("how", [causal, attention._causal_tiles])
def test_causal_attention_is_its_definition(shape, kind, length, how):
    softmax = KINDS[kind]
    q, k, v = inputs(length, shape)
    truth = plainly(q, k, v, softmax, causal_mask(length, softmax.window))
    assert (attended(q, k, v, 0, softmax, how) - truth).abs().max() < 3e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -2.0, 3.0, 0.0])])
def test_heads_on_threads_of_their_own_give_the_same_bits(monkeypatch, kind, sinks):
    softmax = replace(KINDS[kind], sinks=sinks)
    q, k, v = inputs(90, SHAPES[0])
    alone = attended(q, k, v, 0, softmax)
    monkeypatch.setattr(attention, "WORTH_THREADS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(attended(q, k, v, 0, softmax), alone)


@pytest.mark.parametrize("near", [64, 128])
def test_far_and_near_keys_merge_to_the_same_attention(monkeypatch, near):
    monkeypatch.setattr(attention, "NEAR", near)
    attention._near_mask.cache_clear()
    q, k, v = inputs(300, SHAPES[0])
    truth = plainly(q, k, v, Softmax(0.3), causal_mask(300, None))
    assert (attended(q, k, v, 0, Softmax(0.3), attention._causal_tiles) - truth).abs().max() < 3e-6
    attention._near_mask.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_many_sequences_at_once_gives_the_bits_of_each_alone(dtype):
    lengths, softmax = [1, 7, 33, 300], Softmax(0.3)
    queries = torch.randn(len(lengths), 4, 16).to(dtype)
    keys, values = (torch.randn(400, 2, 16).to(dtype) for _ in range(2))
    runs, start = [], 5
    for length in lengths:
        runs.append((start, length))
        start += length + 2
    together = newest(queries, keys, values, runs, softmax)
    for row, (first, count) in enumerate(runs):
        own = slice(first, first + count)
        alone = rowwise(queries[row : row + 1], keys[own], values[own], count - 1, softmax, None)
        assert torch.equal(together[row : row + 1], alone)


def test_sinks_take_weight_and_give_nothing():
    softmax = Softmax(0.3, sinks=torch.tensor([0.5, -2.0, 3.0, 0.0]))
    q, k, v = inputs(90, SHAPES[0])
    truth = plainly(q, k, v, softmax, causal_mask(90, None))
    for how in (causal, attention._causal_tiles):
        assert (attended(q, k, v, 0, softmax, how) - truth).abs().max() < 3e-6
    assert (rowwise(q[88:], k, v, 88, softmax, None) - truth[88:]).abs().max() < 3e-6


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 700),
    cut=st.integers(0, 700),
    kind=st.sampled_from(["plain", "window", "narrow-window"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_cut_anywhere_changes_no_bit(length, cut, kind, dtype):
    cut = min(cut, length - 1)
    q, k, v = inputs(length, SHAPES[0], dtype)
    whole = attended(q, k, v, 0, KINDS[kind])
    assert torch.equal(attended(q[cut:], k, v, cut, KINDS[kind]), whole[cut:])
    if cut:
        assert torch.equal(attended(q[:cut], k[:cut], v[:cut], 0, KINDS[kind]), whole[:cut])


@settings(deadline=None, max_examples=40)
@given(
    start=st.integers(0, 40),
    parents=st.lists(st.integers(0, 100), min_size=1, max_size=12),
    kind=st.sampled_from(["plain", "narrow-window", "softcap"]),
)
def test_a_tree_node_sees_what_was_committed_and_its_ancestors(start, parents, kind):
    """I2: each node's output is that of a chain that holds its ancestors only."""
    softmax = KINDS[kind]
    count = len(parents)
    ancestors = torch.eye(count, dtype=torch.bool)
    for node in range(1, count):
        ancestors[node] |= ancestors[parents[node] % node]
    q, k, v = inputs(start + count, SHAPES[0])
    got = rowwise(q[start:], k, v, start, softmax, ancestors)
    for node in range(count):
        path = [*range(start), *(start + torch.nonzero(ancestors[node])[:, 0]).tolist()]
        alone = plainly(q[path], k[path], v[path], softmax, causal_mask(len(path), softmax.window))
        assert (got[node] - alone[-1]).abs().max() < 3e-6


def test_partials_merge_in_any_split():
    q, k, v = inputs(50, (2, 2, 8, 8))
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    whole, lse = partial(q, k, v, None, Softmax(0.3))
    parts = [partial(q, k[:, a:b], v[:, a:b], None, Softmax(0.3)) for a, b in ((0, 7), (7, 40), (40, 50))]
    joined, joined_lse = merge(merge(parts[0], parts[1]), parts[2])
    assert (joined - whole).abs().max() < 1e-6
    assert (joined_lse - lse).abs().max() < 1e-6
