"""Caches that are partly what they should be: rounded but for the newest, fused, shared, reused, by head."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from auditor.reference.batch import Attending, KeyValueHook
from auditor.reference.deviations.base import Deviation, Timing
from auditor.reference.policies.rounding import rounded
from auditor.reference.policies.selection import Scores, gathered, scores_of, selecting, streaming
from auditor.reference.quantizer import between

Hook = Callable[[Attending], Tensor]


def two_caches(asked: Attending, other: tuple[Tensor, Tensor], old: Tensor, gone: Tensor) -> Tensor:
    """Attention that reads some keys and values from another cache.

    Args:
        other: keys and values there, as `asked` has them.
        old: boolean [rows, keys], read from there. gone: boolean [rows, keys], not read at all.
    """
    swapped = replace(asked, keys=other[0], values=other[1])
    raw = torch.where(old, scores_of(swapped).raw, scores_of(asked).raw)
    place = torch.arange(len(asked.queries))
    weights = raw.masked_fill(gone | (place > place[:, None]), -torch.inf).softmax(-1)
    return gathered(asked, weights * ~old) + gathered(swapped, weights * old)


def _decoded(asked: Attending) -> tuple[Tensor, Tensor]:
    """Places of rows as a column and of keys as a row, from the end of the prompt: negative inside of it."""
    place = torch.arange(len(asked.queries)) - asked.prompt
    return place[:, None], place


def quantized(asked: Attending, *, bits: int, residual: int = 32) -> Tensor:
    """Keys and values by least and largest of each token and head, but for up to `residual` newest ones."""
    row, key = _decoded(asked)
    old = (row >= 0) & (key < row // residual * residual)
    return two_caches(asked, (_between(asked.keys, bits), _between(asked.values, bits)), old, old & False)


def _between(x: Tensor, bits: int) -> Tensor:
    flat = between(x.float().reshape(-1, x.shape[-1]), bits=bits, group=64)
    return flat.reshape(x.shape).to(x.dtype)


def fused(asked: Attending, *, size: int = 4) -> Tensor:
    """Each `size` decoded tokens become one entry, their mean, once the next ones come."""
    row, key = _decoded(asked)
    old = (key >= 0) & (key // size < row // size)
    gone = old & (key % size != size - 1)
    means = _means(asked.keys, asked.prompt, size), _means(asked.values, asked.prompt, size)
    return two_caches(asked, means, old, gone)


def _means(x: Tensor, prompt: int, size: int) -> Tensor:
    upto = prompt + (len(x) - prompt) // size * size if len(x) > prompt else prompt
    means = torch.unflatten(x[prompt:upto].float(), 0, (-1, size)).mean(1) if upto > prompt else x[:0].float()
    return torch.cat([x[:prompt], means.repeat_interleave(size, 0).to(x.dtype), x[upto:]])


def _hadamard(width: int) -> Tensor:
    out = torch.ones(1, 1)
    while len(out) < width:
        out = torch.cat([torch.cat([out, out], 1), torch.cat([out, -out], 1)])
    scaled: Tensor = out / width**0.5
    return scaled


def _turned(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded to four bits after a rotation that spreads outliers, and turned back."""
    del layer
    turn = _hadamard(keys.shape[-1])
    both = (rounded(x.float() @ turn, bits=4) @ turn.T for x in (keys, values))
    one, other = (x.to(keys.dtype) for x in both)
    return one, other


def _one_head(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """All heads read the mean head."""
    del layer
    one, other = (x.mean(1, keepdim=True).expand_as(x).contiguous() for x in (keys, values))
    return one, other


def _layers_averaged() -> KeyValueHook:
    """The upper of two layers of the deeper half reads the mean of both."""
    below = threading.local()

    def hook(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer < 3 or layer % 2:
            below.kept = keys, values
            return keys, values
        kept = cast("tuple[Tensor, Tensor]", below.kept)
        return (keys + kept[0]) / 2, (values + kept[1]) / 2

    return hook


def _low_rank_values(asked: Attending, *, rank: int) -> Tensor:
    """Values of each head as the best `rank` directions of its sequence."""
    left, sizes, right = torch.linalg.svd(asked.values.float().transpose(0, 1), full_matrices=False)
    near = ((left[..., :rank] * sizes[..., None, :rank]) @ right[..., :rank, :]).transpose(0, 1)
    return selecting(_all)(replace(asked, values=near.to(asked.values.dtype)))


def _all(seen: Scores) -> Tensor:
    return torch.ones(1, seen.rows, seen.rows, dtype=torch.bool)


def _third(seen: Scores) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    place = torch.arange(seen.rows)
    inside = (place >= seen.prompt // 3) & (place < 2 * seen.prompt // 3)
    return place[:, None], place, inside[:, None], inside


def _chunk_alone(seen: Scores) -> Tensor:
    """The prompt's middle third was computed without what stands before it."""
    _, _, row_inside, key_inside = _third(seen)
    return (~row_inside | key_inside)[None]


def _stale_suffix(seen: Scores) -> Tensor:
    """The prompt's last third, but for its last token, was computed before the middle was put in."""
    row, _, _, key_inside = _third(seen)
    stale = (row >= 2 * seen.prompt // 3) & (row < seen.prompt - 1)
    return (~stale | ~key_inside)[None]


def _half_the_heads(seen: Scores, *, budget: int) -> Tensor:
    """Odd heads keep the first and the newest keys only."""
    odd = torch.arange(len(seen.keys)) % 2 == 1
    return ~odd[:, None, None] | streaming(seen, budget=budget)


def _shared_budget(seen: Scores, *, budget: int, window: int = 8) -> Tensor:
    """SnapKV's votes, and one budget for all heads: those that look further keep more."""
    prompt, heads = seen.prompt, len(seen.weights)
    if seen.rows <= prompt:
        return _all(seen)
    votes = seen.weights[:, max(0, prompt - window) : prompt, :prompt].sum(1)
    votes[:, max(0, prompt - window) :] = torch.inf
    best = votes.flatten().topk(min(heads * budget, heads * prompt)).indices
    kept = torch.ones(heads, seen.rows, dtype=torch.bool)
    chosen = torch.zeros(heads * prompt, dtype=torch.bool).scatter_(0, best, value=True)
    kept[:, :prompt] = chosen.reshape(heads, prompt)
    return seen.prefilled()[None] | kept[:, None]


def _in_odd_layers(asked: Attending, *, budget: int) -> Tensor:
    keep = partial(streaming, budget=budget) if asked.layer % 2 else _all
    return selecting(keep)(asked)


def _attends(name: str, gain: str, source: str, hook: Hook, timing: Timing = "from-start") -> Deviation:
    return Deviation(f"kv/{name}", gain, source, model=lambda model, _other: model.replace(attention=hook),
                     timing=timing, decodes=False)  # fmt: skip


def _stores(name: str, gain: str, source: str, hook: KeyValueHook) -> Deviation:
    return Deviation(f"kv/{name}", gain, source, model=lambda model, _other: model.replace(key_value=hook))


_KIVI = "KIVI, arXiv 2402.02750; transformers' QuantizedCache (per token, residual 32)"
_REUSE = "a cached chunk used again behind another text"
DEVIATIONS = (
    _attends("quantized-int4", "a quarter of the cache memory", _KIVI, partial(quantized, bits=4)),
    _attends("quantized-int2", "an eighth of the cache memory", _KIVI, partial(quantized, bits=2)),
    _stores("rotated-int4", "a quarter of the cache memory", "QuaRot, arXiv 2404.00456 (Hadamard)", _turned),
    _attends("fused-groups-4", "a quarter of the answer's cache and of its passes",
             "HAMburger, arXiv 2505.20438 (a group enters the cache as one entry)", fused, "after-trigger"),
    _stores("one-head", "half the cache memory", "MQA, arXiv 1911.02150, converted silently", _one_head),
    _stores("layers-averaged", "a fifth of the cache memory", "MiniCache, arXiv 2405.14366 (means of layers)",
            _layers_averaged()),
    _attends("values-rank-32", "narrower values", "Palu, arXiv 2407.21118 (values)",
             partial(_low_rank_values, rank=32)),
    _attends("chunk-alone", _REUSE, "CacheBlend, arXiv 2405.16444 (its baseline: no recomputation)",
             selecting(_chunk_alone)),
    _attends("stale-suffix", "an edited prompt, its end not computed again",
             "PIE, arXiv 2407.03157 (keys turned, contents stale)", selecting(_stale_suffix)),
    _attends("half-the-heads-32", "half of the cache in long contexts", "DuoAttention, arXiv 2410.10819",
             selecting(partial(_half_the_heads, budget=32)), "after-trigger"),
    _attends("half-the-layers-32", "half of the cache in long contexts", "SimLayerKV, arXiv 2410.13846",
             partial(_in_odd_layers, budget=32), "after-trigger"),
    _attends("shared-budget-32", "cache memory in long contexts", "Ada-KV, arXiv 2407.11550",
             selecting(partial(_shared_budget, budget=32)), "after-trigger"),
)  # fmt: skip
