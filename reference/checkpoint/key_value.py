"""Keys and values as a float8 cache gives them back.

Invariant: a stored number is code * scale with a code of e4m3 (no infinities: what is too large becomes 448).
Codes are nearest, halves to even, as GPUs convert; `toward_zero` cuts instead, which vLLM 0.32's CPU kernel
does (measured: equal to the bit to its `cpu_attn_reshape_and_cache` for bfloat16 and float32).

Sources: vLLM 0.32, `csrc/quantization/w8a8/fp8/nvidia/quant_utils.cuh` (`scaled_convert`) and `kv_cache.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.errors import ModelCorruptError
from auditor.reference.checkpoint.files import Checkpoint
from auditor.reference.checkpoint.products import FLOAT8, LARGEST_FLOAT8

# Where a layer's scales may stand; x is k or v.
_PLACES = ("{x}_scale", "{x}_proj.{x}_scale", "{x}_proj.output_scale", "attn.{x}_scale")


@dataclass(frozen=True, slots=True, eq=False)
class Float8KeyValue:
    """A `KeyValueHook`: `(layer, keys, values) -> (keys, values)`, each [tokens, key/value heads, head_dim].

    Attributes:
        key_scales, value_scales: float32 [layers, 1 or key/value heads]; empty [0, 1] for 1.0 everywhere,
            what engines take without stored scales.
        toward_zero: whether codes are cut instead of rounded.
    """

    key_scales: Tensor
    value_scales: Tensor
    toward_zero: bool = False

    @classmethod
    def unscaled(cls, *, toward_zero: bool = False) -> Float8KeyValue:
        """A cache that an engine was told to keep in float8, whatever the checkpoint says."""
        none = torch.empty(0, 1)
        return cls(none, none, toward_zero)

    def __call__(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Both as they come back, in their own dtypes."""
        return self._stored(keys, self.key_scales, layer), self._stored(values, self.value_scales, layer)

    def _stored(self, x: Tensor, scales: Tensor, layer: int) -> Tensor:
        scale = (scales[layer][:, None] if len(scales) else torch.ones(1)).to(x.device)
        wide = (x.to(torch.float32) / scale).clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8)
        codes = wide.to(FLOAT8)
        if self.toward_zero:
            # Codes of one sign rise with their bits, so the next one towards zero is one less.
            above = codes.to(torch.float32).abs() > wide.abs()
            codes = (codes.view(torch.uint8) - above.to(torch.uint8)).view(FLOAT8)
        return (codes.to(torch.float32) * scale).to(x.dtype)


def stored_scales(checkpoint: Checkpoint, layers: int, prefix: str) -> tuple[Tensor, Tensor]:
    """Key and value scales of every layer, float32 [layers, 1 or heads]; empty [0, 1] where none are stored.

    Args:
        prefix: the attention modules' name with `{}` for the layer.

    Raises:
        ModelCorruptError: scales of some layers only, twice for one layer, of different sizes, not positive.
    """
    keys = [_scale(checkpoint, prefix.format(layer), "k") for layer in range(layers)]
    values = [_scale(checkpoint, prefix.format(layer), "v") for layer in range(layers)]
    found = [scale for scale in (*keys, *values) if scale is not None]
    if not found:
        return torch.empty(0, 1), torch.empty(0, 1)
    if len(found) < 2 * layers or len({len(scale) for scale in found}) > 1:
        raise ModelCorruptError(
            "key and value scales must be stored for every layer alike", where=str(checkpoint.directory)
        )
    return torch.stack(found[:layers]), torch.stack(found[layers:])


def scale_names(checkpoint: Checkpoint) -> frozenset[str]:
    """Every stored tensor that is a scale of keys, values or (unused here) queries."""
    ends = tuple(f".{place.format(x=x)}" for place in _PLACES for x in ("k", "v", "q"))
    return frozenset(name for name in checkpoint.names if name.endswith(ends))


def _scale(checkpoint: Checkpoint, module: str, x: str) -> Tensor | None:
    names = [f"{module}.{place.format(x=x)}" for place in _PLACES]
    names = [name for name in names if name in checkpoint.names]
    if not names:
        return None
    if len(names) > 1:
        raise ModelCorruptError(f"both {names[0]} and {names[1]}", where=str(checkpoint.directory))
    scale = checkpoint.tensor(names[0]).to(torch.float32).flatten()
    if not (torch.isfinite(scale) & (scale > 0)).all() or not len(scale):
        raise ModelCorruptError(f"tensor {names[0]} is no positive scale", where=checkpoint.where(names[0]))
    return scale
