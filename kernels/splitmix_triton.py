# ruff: noqa: ANN001 - kernels take tensors of the compiler's
"""`splitmix.mix` for the kernels that run on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def token_words(keys, tokens):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """`splitmix.mix` of keys and tokens, uint64."""
    z = keys + (tokens + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)
