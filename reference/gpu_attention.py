"""Causal attention of packed sequences on a GPU: FlashAttention where it serves, else matrix products.

`attention.causal` cuts a sequence into tiles of 32 positions, so that every row keeps its bits whatever it
comes with. A GPU would spend its time on starting them; here a call is as large as it may be, and promises
less: FlashAttention without split keys gives a sequence the same bits in any batch, not after another cut.

Sources: Dao, FlashAttention-2, arXiv 2307.08691; `torch.nn.attention.varlen`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from auditor.reference.attention import Softmax, by_group, by_row, partial, with_sinks

LARGEST_HEAD = 256
BLOCK = 1_024
"""Rows of a sequence whose scores exist at a time, [heads, BLOCK, keys] float32."""


def flash_serves(queries: Tensor, values: Tensor, softmax: Softmax) -> bool:
    """Whether FlashAttention computes this: half precision, heads of one size, nothing but a window."""
    return (
        queries.dtype in (torch.float16, torch.bfloat16)
        and queries.shape[-1] == values.shape[-1] <= LARGEST_HEAD
        and queries.shape[-1] % 8 == 0
        and not softmax.softcap
        and softmax.sinks is None
    )


def packed(
    queries: Tensor, seen: Sequence[tuple[Tensor, Tensor]], rows: Sequence[int], softmax: Softmax
) -> Tensor:
    """Attention of the new rows of many sequences, each to its own positions up to its own, in one call.

    Args:
        queries: [all rows, heads, dim], sequence after sequence.
        seen: of each sequence keys and values [positions, key/value heads, dim], from position 0.
        rows: how many of the queries are each sequence's: its last positions.
    """
    positions = [len(keys) for keys, _ in seen]
    query_ends, key_ends = (
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(queries.device)
        for lengths in (rows, positions)
    )
    left = -1 if softmax.window is None else softmax.window - 1
    out = varlen_attn(
        queries,
        torch.cat([keys for keys, _ in seen]),
        torch.cat([values for _, values in seen]),
        query_ends,
        key_ends,
        max(rows),
        max(positions),
        scale=softmax.scale,
        window_size=(left, 0),
        enable_gqa=True,
        num_splits=1,
    )
    return cast("Tensor", out)


def blockwise(
    queries: Tensor, keys: Tensor, values: Tensor, start: int, softmax: Softmax, *, block: int = BLOCK
) -> Tensor:
    """Attention of one sequence's new rows, at positions start.., whatever its softmax and dtype.

    Args:
        queries: [rows, heads, dim]. keys, values: [start + rows, key/value heads, dim], from position 0.
        block: rows at a time.
    """
    heads = keys.shape[1]
    group = queries.shape[1] // heads
    keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    found = []
    for first in range(0, len(queries), block):
        own = queries[first : first + block]
        end = start + first + len(own)
        begin = 0 if softmax.window is None else max(0, start + first + 1 - softmax.window)
        position = torch.arange(start + first, end, device=queries.device)[:, None]
        age = position - torch.arange(begin, end, device=queries.device)
        seen = age >= 0 if softmax.window is None else (age >= 0) & (age < softmax.window)
        mask = torch.zeros(seen.shape, dtype=queries.dtype, device=queries.device)
        mask = mask.masked_fill_(~seen, -torch.inf).repeat(group, 1)
        rows = by_group(own, heads).flatten(1, 2)
        joined = partial(rows, keys[:, begin:end], values[:, begin:end], mask, softmax)
        found.append(by_row(with_sinks(joined, group, softmax), group))
    return torch.cat(found)
