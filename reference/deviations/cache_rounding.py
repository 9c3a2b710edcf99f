"""A cheaper cache: keys and values rounded, of fewer dimensions, shared, merged, or left where they were."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from auditor.reference.architecture import Rope
from auditor.reference.batch import Attending
from auditor.reference.deviations.base import Deviation
from auditor.reference.layers.rotary import frequencies, rotate
from auditor.reference.loading import ReferenceModel
from auditor.reference.model import Model
from auditor.reference.policies.rounding import integer_cache
from auditor.reference.policies.selection import everything

Change = Callable[[ReferenceModel, ReferenceModel | None], ReferenceModel]


def _cache(keys_bits: int | None, values_bits: int | None) -> Change:
    hook = integer_cache(keys_bits, values_bits)
    return lambda model, _other: model.replace(key_value=hook)


def _shared_layers(model: ReferenceModel, other: ReferenceModel | None) -> ReferenceModel:
    """Every odd layer reads the cache of the layer below (cross-layer sharing)."""
    del other
    below = threading.local()

    def hook(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer % 2 == 0:
            below.kept = keys, values
            return keys, values
        return cast("tuple[Tensor, Tensor]", below.kept)

    return model.replace(key_value=hook)


def _changed(change: Callable[[Attending], Attending]) -> Change:
    return lambda model, _other: model.replace(attention=lambda asked: everything(change(asked)))


def _merged(asked: Attending, *, old: int = 32) -> Attending:
    """Pairs of neighbours in the prompt become their mean, but for its last `old` keys."""
    upto = max(0, asked.prompt - old) // 2 * 2
    both = []
    for part in (asked.keys, asked.values):
        means = torch.unflatten(part[:upto], 0, (-1, 2)).mean(1) if upto else part[:0]
        both.append(torch.cat([means.repeat_interleave(2, 0), part[upto:]]))
    return replace(asked, keys=both[0], values=both[1])


def _fewer_channels(asked: Attending, *, share: float) -> Attending:
    """The keys' weakest channels are 0 (ThinK)."""
    strength = asked.keys.float().square().sum(0)
    cut = strength.kthvalue(int((1 - share) * strength.shape[1]), dim=1, keepdim=True).values
    return replace(asked, keys=asked.keys * (strength > cut))


def _low_rank(asked: Attending, *, rank: int) -> Attending:
    """Keys of each head as the best `rank` directions of its sequence."""
    wide = asked.keys.float().transpose(0, 1)
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    near = (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]
    return replace(asked, keys=near.transpose(0, 1).to(asked.keys.dtype))


def _rope_of(model: ReferenceModel) -> Rope:
    rope = getattr(cast("Model", model).config.layers[0].mixer, "rope", None)
    assert isinstance(rope, Rope), "a model with rotary positions"
    return rope


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate rows [n, heads, dim] further by angles [n, dim / 2]."""
    return rotate(x.float(), turns.cos()[:, None], turns.sin()[:, None]).to(x.dtype)


def _stale_positions(shift: int) -> Change:
    """The prompt's middle keeps the keys it had `shift` positions earlier: a cached chunk spliced in."""

    def model_of(model: ReferenceModel, other: ReferenceModel | None) -> ReferenceModel:
        del other
        rope = _rope_of(model)

        def change(asked: Attending) -> Attending:
            rows, dim = len(asked.keys), asked.keys.shape[-1]
            place = torch.arange(rows)
            stale = (place >= asked.prompt // 3) & (place < 2 * asked.prompt // 3)
            turns = -(shift * stale.float())[:, None] * frequencies(rope, dim)
            return replace(asked, keys=_turned(asked.keys, turns))

        return model.replace(attention=lambda asked: everything(change(asked)))

    return model_of


def _other_frequencies(change: Callable[[Rope], Rope]) -> Change:
    """Positions turned by other frequencies than the model was trained with."""

    def model_of(model: ReferenceModel, other: ReferenceModel | None) -> ReferenceModel:
        del other
        rope = _rope_of(model)

        def hook(asked: Attending) -> Tensor:
            dim = asked.keys.shape[-1]
            wrong = frequencies(change(rope), dim) - frequencies(rope, dim)
            turns = torch.arange(len(asked.keys))[:, None] * wrong
            queries, keys = _turned(asked.queries, turns), _turned(asked.keys, turns)
            return everything(replace(asked, queries=queries, keys=keys))

        return model.replace(attention=hook)

    return model_of


def _entry(name: str, gain: str, source: str, model: Change, *, decodes: bool = False) -> Deviation:
    return Deviation(name=name, gain=gain, source=source, model=model, decodes=decodes)


_KIVI = "Liu et al., KIVI, arXiv 2402.02750"
DEVIATIONS = (
    _entry("kv/int8", "half the cache memory", _KIVI, _cache(8, 8), decodes=True),
    _entry("kv/int3", "a fifth of the cache memory", _KIVI, _cache(3, 3), decodes=True),
    _entry("kv/int2", "an eighth of the cache memory", _KIVI, _cache(2, 2), decodes=True),
    _entry("kv/keys-int4", "three eighths of the cache memory saved", _KIVI, _cache(4, None), decodes=True),
    _entry("kv/values-int4", "three eighths of the cache memory saved", _KIVI, _cache(None, 4), decodes=True),
    _entry("kv/shared-layers", "half the cache memory", "CLA, arXiv 2405.12981, converted silently",
           _shared_layers),
    _entry("kv/merged-pairs", "nearly half the prompt's cache", "KVMerger, arXiv 2407.08454 (means of pairs)",
           _changed(_merged)),
    *(
        _entry(f"kv/channels-{share:.0%}", "narrower keys", "ThinK, arXiv 2407.21018",
               _changed(partial(_fewer_channels, share=share)))
        for share in (0.75, 0.5)
    ),
    *(
        _entry(f"kv/rank-{rank}", "narrower keys", "EigenAttention, arXiv 2408.05646 (keys)",
               _changed(partial(_low_rank, rank=rank)))
        for rank in (32, 16)
    ),
    *(
        _entry(f"kv/stale-positions-{shift}", "a cached chunk used again elsewhere",
               "PIE, arXiv 2407.03157 (its control: spliced without rotation)", _stale_positions(shift))
        for shift in (1, 16)
    ),
    _entry("position/theta-doubled", "none: a configuration read wrongly", "RoPE base of another release",
           _other_frequencies(lambda rope: replace(rope, theta=2 * rope.theta))),
    _entry("position/stretched-2x", "a longer context than the model was trained for",
           "linear position interpolation; Chen et al., arXiv 2306.15595",
           _other_frequencies(lambda rope: replace(rope, rope_type="linear", factor=2.0))),
)  # fmt: skip
