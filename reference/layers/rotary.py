"""Rotary positions: frequencies to the bit as transformers 5.19 computes them, and the rotation.

Source: `modeling_rope_utils.py`; Su et al., RoFormer, arXiv 2104.09864; Peng et al., YaRN, arXiv 2309.00071.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from auditor.reference.architecture import Rope


def frequencies(rope: Rope, dim: int, length: int = 0) -> Tensor:
    """Rotary frequencies, float32 [dim / 2]; `length` is the sequence's, which longrope asks for."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float) / dim
    powers = rope.theta**exponents
    if rope.rope_type == "longrope":
        long = length > rope.original_context_length
        divisors = rope.long_factors if long else rope.short_factors
        return 1.0 / (torch.tensor(divisors, dtype=torch.float) * powers)
    plain = 1.0 / powers
    if rope.rope_type == "linear":
        return plain / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(plain, rope)
    if rope.rope_type == "yarn":
        return _yarn(powers, rope, dim)
    return plain


def _llama3(plain: Tensor, rope: Rope) -> Tensor:
    """Long waves are stretched, short ones kept, those between interpolated."""
    low, high, original = rope.low_freq_factor, rope.high_freq_factor, rope.original_context_length
    wavelengths = 2 * math.pi / plain
    scaled = torch.where(wavelengths > original / low, plain / rope.factor, plain)
    smooth = (original / wavelengths - low) / (high - low)
    smoothed = (1 - smooth) * scaled / rope.factor + smooth * scaled
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, smoothed, scaled)


def _yarn(powers: Tensor, rope: Rope, dim: int) -> Tensor:
    def turns_to_dimension(turns: float) -> float:
        return (dim * math.log(rope.original_context_length / (turns * 2 * math.pi))) / (
            2 * math.log(rope.theta)
        )

    low, high = turns_to_dimension(rope.beta_fast), turns_to_dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return (1.0 / (rope.factor * powers)) * (1 - kept) + (1.0 / powers) * kept


def angles(
    rope: Rope, dim: int, positions: Tensor, dtype: torch.dtype, length: int = 0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [rows, 1, dim / 2] of int64 positions [rows], rounded to `dtype`; `length` as above."""
    turns = positions[:, None, None].float() * frequencies(rope, dim, length).to(positions.device)
    scale, dtype = rope.attention_factor, torch.float32 if rope.float32 else dtype
    return (turns.cos() * scale).to(dtype), (turns.sin() * scale).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotate the leading 2 * cos.shape[-1] dimensions of [rows, heads, dim]; the others pass."""
    dtype = x.dtype
    turned = 2 * cos.shape[-1]
    part, rest = x[..., :turned], x[..., turned:]
    first, second = (part[..., ::2], part[..., 1::2]) if interleaved else part.chunk(2, dim=-1)
    pieces = [first * cos - second * sin, second * cos + first * sin]
    if rest.shape[-1]:
        pieces.append(rest)
    return torch.cat(pieces, dim=-1).to(dtype)
