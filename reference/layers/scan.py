"""The state-space recurrence of Mamba-2 over one sequence, by chunks.

    memory_t = exp(decay_t) memory_{t-1} + key_t value_t,    output_t = query_t memory_t

`recurrence` is that, word for word, and what tests hold `scan` against. `scan` computes a chunk's outputs as
masked products of its queries and keys, and what came before it through the memory at its beginning (Dao and
Gu, arXiv 2405.21060, section 6).

Invariant: with `exact`, a row's bits do not depend on how the sequence was cut into calls. Chunks begin at
multiples of `CHUNK` in the sequence; the rows of an unfinished one are carried along with the memory at its
beginning, so each chunk is computed from the same numbers in tensors of the same shape whenever it is.
Everything is float32. Exponents are sums over the very steps between two positions, never differences of
longer sums, which would lose small steps behind large ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 64


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """What some positions bring.

    Attributes:
        values: [rows, heads, value dim]. decays: [rows, heads], not positive.
        keys, queries: [rows, groups, key dim]; heads share them in groups.
    """

    values: Tensor
    decays: Tensor
    keys: Tensor
    queries: Tensor

    def __len__(self) -> int:
        return len(self.decays)

    def __getitem__(self, rows: slice) -> Steps:
        return Steps(self.values[rows], self.decays[rows], self.keys[rows], self.queries[rows])

    def padded(self, rows: int) -> Steps:
        """Add steps that do nothing."""
        more = rows - len(self)
        values, keys, queries = (
            functional.pad(part, (0, 0, 0, 0, 0, more)) for part in (self.values, self.keys, self.queries)
        )
        return Steps(values, functional.pad(self.decays, (0, 0, 0, more)), keys, queries)


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Where a sequence stands: never written to, so a copy of the reference is a snapshot.

    Attributes:
        start: memory at the beginning of the unfinished chunk, [heads, key dim, value dim].
        pending: the steps of that chunk so far.
    """

    start: Tensor
    pending: Steps


def nothing(heads: int, groups: int, key_dim: int, value_dim: int, device: torch.device) -> Memory:
    """Return the memory before the first position."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device)

    keys = zeros(0, groups, key_dim)
    return Memory(
        zeros(heads, key_dim, value_dim), Steps(zeros(0, heads, value_dim), zeros(0, heads), keys, keys)
    )


def scan(memory: Memory, steps: Steps, *, exact: bool) -> tuple[Tensor, Memory]:
    """Outputs of some new steps, [rows, heads, value dim], and the memory after them."""
    before = len(memory.pending)
    pairs = [(getattr(memory.pending, name), getattr(steps, name)) for name in Steps.__slots__]
    everything = Steps(*(torch.cat(pair) for pair in pairs))
    start, outputs, finished = memory.start, [], 0
    for begin in range(0, len(everything), CHUNK):
        chunk = everything[begin : begin + CHUNK]
        new = slice(max(before - begin, 0), len(chunk))
        if exact:
            outputs.append(_outputs(start, chunk.padded(CHUNK), slice(0, CHUNK))[new])
        else:
            outputs.append(_outputs(start, chunk, new))
        if len(chunk) == CHUNK:
            start, finished = _advanced(start, chunk.padded(CHUNK)), begin + CHUNK
    rest = everything[finished:]
    pending = Steps(*(getattr(rest, name).clone() for name in Steps.__slots__))
    return torch.cat(outputs), Memory(start, pending)


def branch(memory: Memory, steps: Steps, ancestors: Tensor) -> Tensor:
    """Outputs of the rows of a draft tree, [rows, heads, value dim], each after its own ancestors alone.

    The same masked product, of decays on the way from each ancestor (STree, arXiv 2505.14969).

    Args:
        ancestors: boolean [rows, rows], itself included; parents stand before children.
    """
    before, rows = len(memory.pending), len(steps)
    pairs = [(getattr(memory.pending, name), getattr(steps, name)) for name in Steps.__slots__]
    seen = torch.cat([ancestors.new_ones(rows, before), ancestors], dim=1)
    chunk = Steps(*(torch.cat(pair) for pair in pairs))
    return _outputs(memory.start, chunk, slice(before, before + rows), seen)


def recurrence(memory: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
    """Do the same step by step from a memory [heads, key dim, value dim]."""
    group = steps.decays.shape[1] // steps.keys.shape[1]
    outputs = []
    for row in range(len(steps)):
        keys, queries = (part[row].repeat_interleave(group, 0) for part in (steps.keys, steps.queries))
        memory = memory * steps.decays[row].exp()[:, None, None]
        memory = memory + keys[:, :, None] * steps.values[row][:, None]
        outputs.append(torch.matmul(queries[:, None], memory)[:, 0])
    return torch.stack(outputs), memory


def _outputs(start: Tensor, chunk: Steps, rows: slice, seen: Tensor | None = None) -> Tensor:
    """Outputs of some rows of one chunk, each of which sees the positions up to its own, or those `seen`."""
    heads, groups = chunk.decays.shape[1], chunk.keys.shape[1]
    if seen is None:
        places = torch.arange(len(chunk), device=start.device)
        seen = places <= places[rows, None]
    # The sum of decays over all positions from each one on, up to the row's own: [heads, rows, positions].
    sums = _from_each_on(chunk.decays.T[:, None].masked_fill(~seen, 0.0))
    decays = functional.pad(sums[..., 1:], (0, 1)).exp().masked_fill_(~seen, 0.0)
    queries, keys = chunk.queries[rows].transpose(0, 1), chunk.keys.transpose(0, 1)
    scores = torch.matmul(queries, keys.transpose(1, 2)).repeat_interleave(heads // groups, 0)
    own = torch.matmul(scores * decays, chunk.values.transpose(0, 1))
    earlier = torch.matmul(queries.repeat_interleave(heads // groups, 0), start) * sums[..., :1].exp()
    return (own + earlier).transpose(0, 1)


def _advanced(start: Tensor, chunk: Steps) -> Tensor:
    """The memory after a whole chunk."""
    heads, groups = chunk.decays.shape[1], chunk.keys.shape[1]
    sums = _from_each_on(chunk.decays.T)
    left = functional.pad(sums[:, 1:], (0, 1)).exp()
    keys = chunk.keys.permute(1, 2, 0).repeat_interleave(heads // groups, 0)
    return start * sums[:, :1, None].exp() + torch.matmul(keys * left[:, None], chunk.values.transpose(0, 1))


def _from_each_on(decays: Tensor) -> Tensor:
    """Sums over the last dimension from each place to the end."""
    return decays.flip(-1).cumsum(-1).flip(-1)
