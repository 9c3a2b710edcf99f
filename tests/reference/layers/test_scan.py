"""The chunked scan against the recurrence it stands for, and against itself cut elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.reference.layers.scan import CHUNK, Steps, branch, nothing, recurrence, scan

HEADS, GROUPS, KEY, VALUE = 6, 2, 5, 3


def random_steps(rows, strength=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    decays = -strength * torch.rand(rows, HEADS, generator=generator).pow(8)
    return Steps(draw(rows, HEADS, VALUE), decays, draw(rows, GROUPS, KEY), draw(rows, GROUPS, KEY))


def empty():
    return nothing(HEADS, GROUPS, KEY, VALUE, torch.device("cpu"))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1e4])
@pytest.mark.parametrize("rows", [1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
@pytest.mark.parametrize("exact", [True, False])
def test_it_is_the_recurrence(rows, strength, exact):
    steps = random_steps(rows, strength)
    wide = Steps(*(getattr(steps, name).double() for name in Steps.__slots__))
    truth, memory = recurrence(torch.zeros(HEADS, KEY, VALUE, dtype=torch.float64), wide)
    ours, after = scan(empty(), steps, exact=exact)
    assert float((ours - truth).abs().max() / truth.abs().max()) < 1e-5
    assert len(after.pending) == rows % CHUNK
    # One more step that brings nothing and forgets nothing reads the memory.
    probe = Steps(
        torch.zeros(1, HEADS, VALUE), torch.zeros(1, HEADS), torch.zeros(1, GROUPS, KEY), steps.queries[:1]
    )
    read, _ = scan(after, probe, exact=exact)
    expected = torch.einsum(
        "hk,hkv->hv", steps.queries[0].repeat_interleave(HEADS // GROUPS, 0).double(), memory
    )
    assert float((read[0] - expected).abs().max()) < 1e-5 * float(truth.abs().max())


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_cuts_do_not_change_a_bit(cuts):
    steps = random_steps(sum(cuts), 0.3, seed=len(cuts))
    whole, _ = scan(empty(), steps, exact=True)
    memory, parts, start = empty(), [], 0
    for count in cuts:
        outputs, memory = scan(memory, steps[start : start + count], exact=True)
        parts.append(outputs)
        start += count
    assert torch.equal(torch.cat(parts), whole)


def test_one_at_a_time_is_all_at_once():
    steps = random_steps(2 * CHUNK + 5, 0.3)
    whole, _ = scan(empty(), steps, exact=True)
    memory, parts = empty(), []
    for row in range(len(steps)):
        outputs, memory = scan(memory, steps[row : row + 1], exact=False)
        parts.append(outputs)
    assert float((torch.cat(parts) - whole).abs().max() / whole.abs().max()) < 1e-6


@settings(deadline=None, max_examples=30)
@given(before=st.integers(0, 2 * CHUNK), parents=st.lists(st.integers(-1, 30), min_size=1, max_size=12))
def test_a_tree_is_the_recurrence_along_each_path(before, parents):
    steps = random_steps(before + len(parents), 0.3, seed=before)
    ancestors = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if 0 <= parent % (node + 1) < node:
            ancestors[node] |= ancestors[parent % (node + 1)]
    memory = empty() if before == 0 else scan(empty(), steps[:before], exact=False)[1]
    outputs = branch(memory, steps[before:], ancestors)
    start = torch.zeros(HEADS, KEY, VALUE)
    if before:
        start = recurrence(start, steps[:before])[1]
    for node in range(len(parents)):
        places = before + ancestors[node].nonzero()[:, 0]
        path = Steps(*(getattr(steps, name)[places] for name in Steps.__slots__))
        truth, _ = recurrence(start, path)
        assert float((outputs[node] - truth[-1]).abs().max()) < 1e-4 * max(float(truth[-1].abs().max()), 1.0)
