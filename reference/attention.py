"""Softmax attention of packed rows: one seam for CPU and GPU, partials merged in a fixed order.

A *partial* is (output, log-sum-exp) over some of the keys a query sees. Everything else is made of partials:
a long context is its far keys and its near ones, a draft tree its committed keys and its ancestors, an
attention sink a partial without a value, a shard of a sequence-parallel run the keys that it holds.

Invariant: what a query gets in `causal` depends on its position and on what it may see, not on how rows were
cut into calls. In float32 on a CPU a loop of ours sees to it (`kernels/causal_attention.py`). Elsewhere rows
are computed in tiles that begin at multiples of `TILE` in the *sequence*, each tile always [TILE rows, keys
to the tile's end], with zeros where a call has no row or no key, so the library sees the same shapes whatever
the batch, the token budget or the shared prefix.

Sources: Dao, FlashAttention, arXiv 2205.14135 (log-sum-exp); TokenRing, arXiv 2412.20501 (merge).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from auditor.kernels.causal_attention import causal_attention
from auditor.reference.device import on_gpu
from auditor.reference.layers.elementwise import compiled
from auditor.reference.side_by_side import side_by_side

TILE = 32
# Query elements times keys from which heads are worth a thread each.
WORTH_THREADS = 1 << 25
# Keys nearer than this share one masked call; all farther ones need no mask.
NEAR = 512

# The public function returns no log-sum-exp.
_FUSED_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Softmax:
    """How scores become weights.

    Attributes:
        scale: of the scores.
        window: newest positions seen, one's own included; None for all.
        softcap: scores become c * tanh(scores / c); 0 leaves them (Gemma 2).
        sinks: [heads], a logit per head that takes weight and gives nothing (gpt-oss); None without.
    """

    scale: float
    window: int | None = None
    softcap: float = 0.0
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether it is what the fused call computes by itself."""
        return self.window is None and not self.softcap and self.sinks is None


def partial(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Attend to some keys.

    Args:
        queries: [key/value heads, rows, dim]; the query heads of a group are rows of their own.
        keys, values: [key/value heads, keys, dim], values perhaps of another dim.
        mask: additive, [rows, keys] in the queries' dtype, or None.

    Returns:
        Output [key/value heads, rows, value dim] in the queries' dtype, log-sum-exp float32 [heads, rows].
    """
    if softmax.softcap or keys.shape[-1] != values.shape[-1] or on_gpu(queries.device):
        return _partial_plain(queries, keys, values, mask, softmax)
    out, lse = _FUSED_CPU(queries[None], keys[None], values[None], attn_mask=mask, scale=softmax.scale)
    return out[0], lse[0]


def _partial_plain(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Do the same step by step: the reference of the fused call, and the path for what it cannot do."""
    scores = torch.matmul(queries, keys.transpose(-1, -2)).float() * softmax.scale
    if softmax.softcap:
        scores = torch.tanh(scores / softmax.softcap) * softmax.softcap
    if mask is not None:
        scores = scores + mask.float()
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp()
    return torch.matmul(weights.to(values.dtype), values), lse


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Join partials over disjoint keys; the result is rounded to the outputs' dtype once."""
    (out, lse), (other, other_lse) = first, second
    share = torch.sigmoid(other_lse - lse)[..., None]
    joined = out.float() - share * (out.float() - other.float())
    return joined.to(out.dtype), torch.logaddexp(lse, other_lse)


def causal(queries: Tensor, keys: Tensor, values: Tensor, start: int, softmax: Softmax, out: Tensor) -> None:
    """Set `out` to what a sequence's new rows, at positions start.., gather from positions up to their own.

    Args:
        queries: [rows, heads, dim]. keys, values: [start + rows, key/value heads, dim], from position 0,
            values perhaps of another dim.
        out: [rows, heads, value dim].
    """
    if compiled(queries) and not softmax.softcap:
        _causal_compiled(queries, keys, values, softmax, out)
    else:
        _causal_tiles(queries, keys, values, start, softmax, out)


def _causal_compiled(queries: Tensor, keys: Tensor, values: Tensor, softmax: Softmax, out: Tensor) -> None:
    """All key/value heads one after another, or side by side where that pays."""
    shared, group = keys.shape[1], queries.shape[1] // keys.shape[1]
    asked, held, worth, gathered = (x.numpy() for x in (queries, keys, values, out))
    sinks = None if softmax.sinks is None else softmax.sinks.float().numpy()

    def attend(first: int, last: int) -> None:
        own, kept = slice(first * group, last * group), slice(first, last)
        causal_attention(
            asked[:, own],
            held[:, kept],
            worth[:, kept],
            softmax.scale,
            softmax.window,
            None if sinks is None else sinks[own],
            gathered[:, own],
        )

    lanes = torch.get_num_threads() if queries.numel() * len(keys) >= WORTH_THREADS else 1
    if lanes == 1:
        attend(0, shared)
        return
    for _ in side_by_side(lambda head: attend(head, head + 1), range(shared), lanes):
        pass


def _causal_tiles(
    queries: Tensor, keys: Tensor, values: Tensor, start: int, softmax: Softmax, out: Tensor
) -> None:
    rows, heads, dim = queries.shape
    shared, group = keys.shape[1], heads // keys.shape[1]
    end, before = start + rows, start % TILE
    padded = -end % TILE
    keys, values = (_padded(x, 0, padded).transpose(0, 1) for x in (keys, values))
    tiles = _padded(queries, before, padded).view(-1, TILE, shared, group, dim)
    tiles = tiles.permute(0, 2, 3, 1, 4).reshape(-1, shared, group * TILE, dim)
    attended = [
        _tile(own, keys, values, start - before + number * TILE, group, softmax)
        for number, own in enumerate(tiles.unbind())
    ]
    joined = torch.stack(attended).view(-1, shared, group, TILE, values.shape[-1]).permute(0, 3, 1, 2, 4)
    out[:] = joined.reshape(-1, heads, values.shape[-1])[before : before + rows]


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    """Zeros for positions that no row has."""
    return functional.pad(x, (0, 0, 0, 0, before, after)) if before or after else x.contiguous()


def _tile(queries: Tensor, keys: Tensor, values: Tensor, tile: int, group: int, softmax: Softmax) -> Tensor:
    """Attention of the rows at positions tile..tile + TILE - 1 of every head, [heads, group * TILE, dim]."""
    seen = tile + TILE
    if softmax.window is not None:
        first = max(0, tile - softmax.window + 1) // TILE * TILE
        mask = _near_mask(tile - first, group, softmax.window, queries.dtype, queries.device)
        return with_sinks(
            partial(queries, keys[:, first:seen], values[:, first:seen], mask, softmax), group, softmax
        )
    near = tile // NEAR * NEAR
    mask = _near_mask(tile - near, group, None, queries.dtype, queries.device)
    joined = partial(queries, keys[:, near:seen], values[:, near:seen], mask, softmax)
    if near:
        joined = merge(partial(queries, keys[:, :near], values[:, :near], None, softmax), joined)
    return with_sinks(joined, group, softmax)


def rowwise(
    queries: Tensor, keys: Tensor, values: Tensor, start: int, softmax: Softmax, ancestors: Tensor | None
) -> Tensor:
    """Attention of few new rows of one sequence without padding them: decoding, and draft trees.

    Args:
        queries: [rows, heads, dim]. keys, values: [start + rows, key/value heads, dim].
        ancestors: boolean [rows, rows], which new rows each new row sees, itself included; None for a chain.
    """
    rows, heads, _ = queries.shape
    group = heads // keys.shape[1]
    keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    grouped = by_group(queries, keys.shape[0]).flatten(1, 2)
    if rows == 1:
        first = 0 if softmax.window is None else max(0, start + 1 - softmax.window)
        joined = partial(grouped, keys[:, first:], values[:, first:], None, softmax)
        return by_row(with_sinks(joined, group, softmax), group)
    if ancestors is None:
        ancestors = torch.ones(rows, rows, dtype=torch.bool, device=queries.device).tril()
    depth = ancestors.sum(1) - 1
    if softmax.window is not None:
        ancestors = ancestors & (depth[:, None] - depth < softmax.window)
    own = _additive(ancestors, queries.dtype).repeat(group, 1)
    joined = partial(grouped, keys[:, start:], values[:, start:], own, softmax)
    if start:
        far = slice(0, start)
        committed = None
        if softmax.window is not None:
            age = (start + depth)[:, None] - torch.arange(start, device=queries.device)
            committed = age < softmax.window
        mask = None if committed is None else _additive(committed, queries.dtype).repeat(group, 1)
        out, lse = partial(grouped, keys[:, far], values[:, far], mask, softmax)
        if committed is not None:  # the fused call has no log-sum-exp for rows that see nothing
            blind = ~committed.any(1).repeat(group)
            out, lse = out.masked_fill(blind[:, None], 0.0), lse.masked_fill(blind, -torch.inf)
        joined = merge((out, lse), joined)
    return by_row(with_sinks(joined, group, softmax), group)


def tree_mask(ancestors: Tensor, start: int, group: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Additive mask [group * rows, start + rows] of a draft tree behind `start` committed positions."""
    committed = ancestors.new_ones(len(ancestors), start)
    if window is not None:
        depth = ancestors.sum(1) - 1
        ancestors = ancestors & (depth[:, None] - depth < window)
        committed = (start + depth)[:, None] - torch.arange(start, device=depth.device) < window
    return _additive(torch.cat([committed, ancestors], 1), dtype).repeat(group, 1)


def branching(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, softmax: Softmax) -> Tensor:
    """`rowwise` of a draft tree in one call, its mask made once for all layers."""
    keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    group = queries.shape[1] // keys.shape[0]
    joined = partial(by_group(queries, keys.shape[0]).flatten(1, 2), keys, values, mask, softmax)
    return by_row(with_sinks(joined, group, softmax), group)


def newest(
    queries: Tensor, keys: Tensor, values: Tensor, runs: Sequence[tuple[int, int]], softmax: Softmax
) -> Tensor:
    """Attention of one new row of each of many sequences: `rowwise`, to the bit, with less around it.

    Args:
        queries: [sequences, heads, dim]. keys, values: storage [slots, key/value heads, dim].
        runs: each sequence's first slot and number of slots, its new row's included.
        softmax: without a window, softcap or sinks.
    """
    rows, heads, _ = queries.shape
    far, near = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    grouped = torch.split(queries.reshape(rows, far.shape[1], heads // far.shape[1], -1), 1)
    attended = [
        _FUSED_CPU(own, far.narrow(2, *run), near.narrow(2, *run), scale=softmax.scale)[0]
        for own, run in zip(grouped, runs, strict=True)
    ]
    return torch.cat(attended).flatten(1, 2)


def with_sinks(joined: tuple[Tensor, Tensor], group: int, softmax: Softmax) -> Tensor:
    """A partial over every key a query sees, [key/value heads, group * rows, dim], less what sinks take."""
    out, lse = joined
    if softmax.sinks is None:
        return out
    sinks = softmax.sinks.float().view(-1, group, 1).expand(-1, -1, out.shape[1] // group).flatten(1)
    return (out.float() * torch.sigmoid(lse - sinks)[..., None]).to(out.dtype)


@lru_cache(maxsize=256)
def _near_mask(
    before: int, group: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Additive mask [group * TILE, before + TILE] of a tile whose keys begin `before` positions earlier."""
    age = torch.arange(before, before + TILE)[:, None] - torch.arange(before + TILE)
    seen = age >= 0 if window is None else (age >= 0) & (age < window)
    return _additive(seen, dtype).repeat(group, 1).to(device)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def by_group(queries: Tensor, key_value_heads: int) -> Tensor:
    """[rows, heads, dim] as [key/value heads, group, rows, dim]."""
    rows, heads, dim = queries.shape
    return queries.view(rows, key_value_heads, heads // key_value_heads, dim).permute(1, 2, 0, 3)


def by_row(attended: Tensor, group: int) -> Tensor:
    """[key/value heads, group * rows, dim] as [rows, heads, dim]."""
    heads, rows, dim = attended.shape
    return attended.view(heads, group, rows // group, dim).permute(2, 0, 1, 3).flatten(1, 2)
