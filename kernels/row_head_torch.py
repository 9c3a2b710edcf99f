"""Sorted heads of rows that lie on a GPU: the largest logits by `torch.topk`, no row copied that has no need.

Only rows whose filters reach beyond the fixed lengths go to the CPU's compiled path. `torch.topk` leaves open
which of the tokens that tie for the last place of a head it returns; all others are as `row_head` has them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from auditor.kernels.row_head import heads_compiled
from auditor.kernels.splitmix import F64

Head = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def top_tokens(logits: torch.Tensor, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ids int64 and logits float32 [R, count], falling, then by id; which tie for the last place is open."""
    ids = torch.topk(logits, count, dim=1, sorted=False).indices.sort(dim=1).values
    values, place = torch.sort(logits.gather(1, ids), dim=1, descending=True, stable=True)
    return ids.gather(1, place).cpu().numpy(), values.float().cpu().numpy()


def _log_normalisers(logits: torch.Tensor, temperature: float) -> F64:
    """Log of the summed exponentials of logits / temperature, float64 [R]; only the sum is in float64."""
    x = logits.float() / temperature
    top = x.amax(dim=1, keepdim=True)
    total = (x - top).exp_().sum(dim=1, dtype=torch.float64)
    return np.asarray((top[:, 0].double() + total.log()).cpu().numpy())


def heads_on_device(
    logits: npt.NDArray[np.float32] | torch.Tensor,
    lengths: npt.NDArray[np.int64],
    temperature: np.float32,
    asked: tuple[float, float, int, float],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32], F64]:
    """The fields of `row_head.RowHeads`; arguments as its functions have them."""
    there = torch.as_tensor(logits)
    normaliser = _log_normalisers(there, float(temperature))
    heads = _fixed_heads(there, lengths, float(temperature), asked, normaliser)
    for r, head in enumerate(heads):
        if head is None:
            row = there[r : r + 1].float().cpu().numpy()
            heads[r] = heads_compiled(np.ascontiguousarray(row), lengths, temperature, asked)[1:3]
    done = [head for head in heads if head is not None]
    start = np.cumsum([0, *(len(ids) for ids, _ in done)], dtype=np.int64)
    ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in done)])
    values = np.concatenate([np.empty(0, np.float32), *(values for _, values in done)])
    return start, ids, values, normaliser


def _fixed_heads(
    logits: torch.Tensor,
    lengths: npt.NDArray[np.int64],
    temperature: float,
    asked: tuple[float, float, int, float],
    normaliser: F64,
) -> list[Head | None]:
    """Each row's head of the first of `lengths` that is enough, None where none is; arguments as above."""
    mass, reach, beyond, _ = asked
    heads: list[Head | None] = [None] * len(logits)
    left = np.arange(len(logits))
    for length in lengths:
        ids, values = top_tokens(logits[torch.from_numpy(left).to(logits.device)], int(length))
        x = values.astype(np.float64) / temperature
        p = np.exp(x - normaliser[left, None])
        inside = (np.cumsum(p, axis=1) - p < mass) & (x >= x[:, :1] - reach)
        enough = inside.sum(axis=1) + beyond <= length
        enough |= len(lengths) == 1 or length == logits.shape[1]
        for i in np.flatnonzero(enough):
            heads[left[i]] = (ids[i], values[i])
        left = left[~enough]
        if len(left) == 0:
            break
    return heads
