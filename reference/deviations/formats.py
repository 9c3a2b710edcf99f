"""Weights through the formats of llama.cpp, and merged models: what a cheaper copy of a model is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from auditor.reference.deviations.base import Deviation
from auditor.reference.deviations.rounding import low_rank_update
from auditor.reference.deviations.weights import projections
from auditor.reference.loading import ReferenceModel
from auditor.reference.model import Model
from auditor.reference.quantizer import grouped

_BLOCK = 32


def _half(scale: Tensor) -> Tensor:
    """Scales as they are stored, in half precision."""
    return scale.half().float()


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def q4_0(weight: Tensor) -> Tensor:
    """Four bits, 32 weights a scale: the entry of largest size is -8 steps."""
    flat = grouped(weight, _BLOCK)
    scale = flat.gather(-1, flat.abs().argmax(-1, keepdim=True)) / -8
    codes = (flat * _inverse(scale) + 8.5).trunc().clamp(0, 15) - 8
    return (codes * _half(scale)).reshape(weight.shape)


def q4_1(weight: Tensor) -> Tensor:
    """Four bits between the least and the largest of 32 weights."""
    flat = grouped(weight, _BLOCK)
    low = flat.amin(-1, keepdim=True)
    scale = (flat.amax(-1, keepdim=True) - low) / 15
    codes = ((flat - low) * _inverse(scale) + 0.5).trunc().clamp(0, 15)
    return (codes * _half(scale) + _half(low)).reshape(weight.shape)


def q8_0(weight: Tensor) -> Tensor:
    """Eight bits, 32 weights a scale: the entry of largest size is 127 steps."""
    flat = grouped(weight, _BLOCK)
    scale = flat.abs().amax(-1, keepdim=True) / 127
    whole = flat * _inverse(scale)
    away = whole.sign() * (whole.abs() + 0.5).floor()
    return (away * _half(scale)).reshape(weight.shape)


def soup(weight: Tensor) -> Tensor:
    """The mean of two fine-tunes of a matrix, each a low-rank update of a twentieth of its norm."""
    one = low_rank_update(weight, rank=4, size=0.05)
    other = low_rank_update(weight.flip(0), rank=16, size=0.05).flip(0)
    return (one + other) / 2


def _neighbours_merged(model: ReferenceModel, other: ReferenceModel | None) -> ReferenceModel:
    """The third layer becomes the mean of itself and the fourth, which is left out."""
    del other
    low, high = "model.layers.2.", "model.layers.3."
    parameters = cast("Model", model).parameters

    def change(name: str, tensor: Tensor) -> Tensor:
        if not name.startswith(low):
            return tensor
        mean: Tensor = (tensor + parameters[name.replace(low, high)]) / 2
        return mean

    return model.replace(weights=change).replace(skip_layers=frozenset({3}))


def _entry(name: str, gain: str, source: str, change: Callable[[Tensor], Tensor]) -> Deviation:
    return Deviation(f"weights/{name}", gain, source, model=projections(change))


_GGML = "llama.cpp, ggml-quants.c (block of 32)"
DEVIATIONS = (
    _entry("gguf-q4_0", "4.5 bits a weight", _GGML, q4_0),
    _entry("gguf-q4_1", "5 bits a weight", _GGML, q4_1),
    _entry("gguf-q8_0", "8.5 bits a weight", _GGML, q8_0),
    _entry("merged-fine-tunes", "another model under the old name", "Model soups, arXiv 2203.05482", soup),
    Deviation(
        name="depth/neighbours-merged",
        gain="one layer's compute and cache, less of it lost",
        source="LaCo, arXiv 2402.11187 (a layer's weights folded into the one below)",
        model=_neighbours_merged,
    ),
)
