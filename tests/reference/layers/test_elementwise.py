"""Activations: torch's values, and the same bits wherever an element lies."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from auditor.reference.layers.elementwise import gelu_tanh, sigmoid, silu, softplus

PAIRS = {
    "sigmoid": (sigmoid, torch.sigmoid),
    "silu": (silu, functional.silu),
    "gelu_tanh": (gelu_tanh, lambda x: functional.gelu(x, approximate="tanh")),
    "softplus": (softplus, functional.softplus),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_are_torchs(name):
    ours, theirs = PAIRS[name]
    x = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38])])
    expected = theirs(x.double())
    assert torch.allclose(ours(x).double(), expected, rtol=1e-6, atol=2e-7)
    for dtype in (torch.bfloat16, torch.float16):
        half = x.clamp(-6e4, 6e4).to(dtype)
        assert ours(half).dtype == dtype
        assert torch.allclose(ours(half).float(), theirs(half.float()), rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_element_has_the_same_bits_wherever_it_lies(name, threads):
    ours, _ = PAIRS[name]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for width in (1, 5, 80, 2001):
            x = torch.randn(300, 2 * width, generator=torch.Generator().manual_seed(width)) * 3
            whole = ours(x)
            assert torch.equal(ours(x[:, ::2]), whole[:, ::2])
            for count in (1, 2, 3, 17, 150):
                assert torch.equal(ours(x[7 : 7 + count].clone()), whole[7 : 7 + count])
    finally:
        torch.set_num_threads(before)
