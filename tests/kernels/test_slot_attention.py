"""Attention of few rows by slot: the compiled loops against the plain ones, and the same bits in any company."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.kernels.row_parts import add_and_norm
from auditor.kernels.slot_attention import Places, attend_slots

SLOTS = 512


def cache_of(generator, key_heads, dim):
    return tuple(generator.normal(size=(SLOTS, key_heads, dim)).astype(np.float32) for _ in range(2))


def chains(lengths, rows, generator):
    """Sequences with so many committed positions and new rows, each row seeing those before it."""
    slots = generator.permutation(SLOTS)
    keep, past, sequence, seen = [], [], [], []
    for number, (length, count) in enumerate(zip(lengths, rows, strict=True)):
        own, slots = slots[: length + count], slots[length + count :]
        past.append(own[:length])
        keep.append(own[length:])
        first = len(sequence)
        seen += [list(range(first, first + n + 1)) for n in range(count)]
        sequence += [number] * count
    ends = np.cumsum([0, *map(len, seen)])
    most = max(map(len, past)) + max(map(len, seen))
    return Places(
        np.concatenate(keep),
        np.array(sequence),
        np.concatenate(past),
        np.cumsum([0, *lengths]),
        np.concatenate(seen),
        ends,
        most,
    )


@pytest.mark.parametrize(
    ("heads", "key_heads", "dim"), [(4, 2, 64), (3, 1, 32), (7, 1, 8), (2, 2, 20), (10, 2, 6)]
)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 7)), min_size=1, max_size=4),
)
def test_compiled_and_plain_agree(heads, key_heads, dim, seed, sizes):
    generator = np.random.default_rng(seed)
    places = chains(*zip(*sizes, strict=True), generator)
    rows = len(places.keep)
    qkv = generator.normal(size=(rows + 2, (heads + 2 * key_heads) * dim)).astype(np.float32)
    turns = generator.uniform(0, 6, (rows, dim // 2))
    angles = tuple(part.astype(np.float32) for part in (np.cos(turns), np.sin(turns)))
    found = {}
    for backend in ("compiled", "reference"):
        held = cache_of(np.random.default_rng(seed), key_heads, dim)
        out = np.zeros((rows + 2, heads * dim), np.float32)
        attend_slots(qkv.copy(), angles, held, places, dim**-0.5, out, backend=backend)
        found[backend] = (out, *held)
    for compiled, plain in zip(found["compiled"], found["reference"], strict=True):
        np.testing.assert_allclose(compiled, plain, atol=2e-5, rtol=2e-5)


def test_a_row_has_the_same_bits_beside_its_predecessors_as_behind_them():
    generator = np.random.default_rng(3)
    heads, key_heads, dim, length, count = 4, 2, 64, 37, 6
    qkv = generator.normal(size=(count, (heads + 2 * key_heads) * dim)).astype(np.float32)
    angles = (np.ones((count, dim // 2), np.float32), np.zeros((count, dim // 2), np.float32))
    together = chains([length], [count], np.random.default_rng(4))
    slots = np.concatenate([together.past, together.keep])
    held = cache_of(np.random.default_rng(5), key_heads, dim)
    out = np.zeros((count, heads * dim), np.float32)
    attend_slots(qkv.copy(), angles, held, together, 0.125, out)
    again = cache_of(np.random.default_rng(5), key_heads, dim)
    for row in range(count):
        at = length + row
        one = Places(
            slots[at : at + 1],
            np.zeros(1, int),
            slots[:at],
            np.array([0, at]),
            np.zeros(1, int),
            np.array([0, 1]),
            at + 1,
        )
        alone = np.zeros((1, heads * dim), np.float32)
        attend_slots(qkv[row : row + 1].copy(), tuple(a[:1] for a in angles), again, one, 0.125, alone)
        assert (alone[0] == out[row]).all()


def test_the_norm_of_a_sum():
    generator = np.random.default_rng(6)
    x, update = (generator.normal(size=(n, 1500)).astype(np.float32) for n in (5, 8))
    weight = generator.normal(size=1500).astype(np.float32)
    found = {}
    for backend in ("compiled", "reference"):
        summed, out = x.copy(), np.full((8, 1500), 7, np.float32)
        add_and_norm(summed, update, weight, 1e-5, out, backend=backend)
        assert (summed == x + update[:5]).all()
        assert (out[5:] == 7).all()
        found[backend] = out
    np.testing.assert_allclose(found["compiled"], found["reference"], atol=1e-5)
