"""Which keys a row may still see: the rules by which caches are cut.

Each rule looks at attention scores and names the keys that stay; what is left is a softmax over those, at
their original positions, which is what dropping rows from a cache computes. Where scores are equal the
earlier key wins, so that a rule has one answer. Queries are kept with the sequence, so that a rule sees the
same in decoding, a row at a time, as in replay, all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.reference.batch import Attending

Keep = Callable[["Scores"], Tensor]
"""Keys that stay visible, boolean [key/value heads or 1, rows, keys]; causality is added."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One sequence in one layer, as selection rules see it.

    Attributes:
        queries: [heads, rows, dim]. keys: [key/value heads, rows, dim].
        weights: softmax over all earlier keys, averaged over the heads of a group,
            [key/value heads, rows, rows].
        raw: scaled dot products, [heads, rows, rows].
        prompt: rows of the prompt.
    """

    queries: Tensor
    keys: Tensor
    weights: Tensor
    raw: Tensor
    prompt: int

    @property
    def rows(self) -> int:
        """Rows of the sequence."""
        return self.weights.shape[1]

    @property
    def newest(self) -> Tensor:
        """How many positions before each row each key lies, [rows, keys]."""
        place = torch.arange(self.rows)
        return place[:, None] - place

    def prefilled(self) -> Tensor:
        """Rows of the prompt, as a column."""
        return (torch.arange(self.rows) < self.prompt)[:, None]


def selecting(keep: Keep) -> Callable[[Attending], Tensor]:
    """An attention that sees only what `keep` leaves, its own key always."""

    def attend(asked: Attending) -> Tensor:
        seen = scores_of(asked)
        causal = seen.newest >= 0
        kept = (keep(seen) | (seen.newest == 0)) & causal
        group = asked.queries.shape[1] // asked.keys.shape[1]
        mask = kept.expand(asked.keys.shape[1], -1, -1).repeat_interleave(group, 0)
        weights = seen.raw.masked_fill(~mask, -torch.inf).softmax(-1)
        return gathered(asked, weights)

    return attend


everything = selecting(lambda seen: torch.ones(1, seen.rows, seen.rows, dtype=torch.bool))
"""The model's own attention, step by step."""


def scores_of(asked: Attending) -> Scores:
    """What selection rules look at; of attention without window, soft cap and sinks (`Policy.applied`)."""
    queries, keys = asked.queries.float().transpose(0, 1), asked.keys.float().transpose(0, 1)
    group = len(queries) // len(keys)
    raw = queries @ keys.repeat_interleave(group, 0).transpose(1, 2) * asked.softmax.scale
    rows = raw.shape[1]
    causal = torch.ones(rows, rows, dtype=torch.bool).tril()
    weights = raw.masked_fill(~causal, -torch.inf).softmax(-1)
    return Scores(queries, keys, torch.unflatten(weights, 0, (-1, group)).mean(1), raw, asked.prompt)


def gathered(asked: Attending, weights: Tensor) -> Tensor:
    """Values by weights [heads, rows, keys] -> [rows, heads, dim] in the queries' dtype."""
    values = asked.values.float().transpose(0, 1)
    group = len(weights) // len(values)
    return (weights @ values.repeat_interleave(group, 0)).transpose(0, 1).to(asked.queries.dtype)


def streaming(seen: Scores, *, budget: int, sinks: int = 4) -> Tensor:
    """The first keys and the newest (StreamingLLM)."""
    return ((seen.newest < budget - sinks) | (torch.arange(seen.rows) < sinks))[None]


def _sticky(seen: Scores, budget: int, score: Callable[[int, Tensor], Tensor], recent: int = 1) -> Tensor:
    """Eviction for good: at each decoded row all but the `budget` best living keys are dropped."""
    heads, rows = seen.weights.shape[0], seen.rows
    alive = torch.ones(heads, rows, dtype=torch.bool)
    kept = torch.ones(heads, rows, rows, dtype=torch.bool)
    for row in range(seen.prompt, rows):
        if row > budget:
            value = score(row, alive).masked_fill(~alive[:, :row], -torch.inf)
            value[:, max(0, row - recent) :] = torch.inf
            best = value.topk(budget, dim=1).indices
            alive[:, :row] = torch.zeros(heads, row, dtype=torch.bool).scatter_(1, best, value=True)
        kept[:, row, :row] = alive[:, :row]
    return kept


def heavy_hitters(seen: Scores, *, budget: int) -> Tensor:
    """H2O: the heaviest keys by the attention they ever got, and half the budget for the newest."""
    mass = seen.weights.cumsum(1)
    return _sticky(seen, budget, lambda row, _: mass[:, row - 1, :row].clone(), recent=budget // 2)


def last_query(seen: Scores, *, budget: int) -> Tensor:
    """TOVA: what the last query looked at, averaged over heads."""
    return _sticky(
        seen,
        budget,
        lambda row, _: (
            seen.weights[:, row - 1, :row].mean(0, keepdim=True).expand(len(seen.weights), -1).clone()
        ),
    )


def lazy(seen: Scores, *, budget: int, window: int = 16, alpha: float = 1e-2) -> Tensor:
    """LazyEviction: every `window` steps, keys idle longer than they ever were are dropped."""
    heads, rows = seen.weights.shape[0], seen.rows
    steps = torch.arange(rows)
    alive = torch.ones(heads, rows, dtype=torch.bool)
    kept = torch.ones(heads, rows, rows, dtype=torch.bool)
    last, longest = steps.expand(heads, rows).clone(), torch.ones(heads, rows)
    for row in range(rows):
        active = (seen.weights[:, row] > alpha) & (steps <= row)
        longest = torch.where(active, torch.maximum(longest, (row - last).float()), longest)
        last = torch.where(active, row, last)
        if row >= seen.prompt and row > budget and (row - seen.prompt) % window == 0:
            importance = 2 * torch.sigmoid(-(row - last).float() / longest) + 2 * torch.sigmoid(-1 / longest)
            importance = importance[:, :row].masked_fill(~alive[:, :row], -torch.inf)
            importance[:, row - window :] = torch.inf
            best = importance.topk(budget, dim=1).indices
            alive[:, :row] = torch.zeros(heads, row, dtype=torch.bool).scatter_(1, best, value=True)
        kept[:, row, :row] = alive[:, :row]
    return kept


def snapshot(seen: Scores, *, budget: int, window: int = 8) -> Tensor:
    """SnapKV: after the prompt only the keys that its last queries looked at, pooled over neighbours."""
    prompt = seen.prompt
    if seen.rows <= prompt:  # a part of it
        return torch.ones(1, seen.rows, seen.rows, dtype=torch.bool)
    votes = seen.weights[:, max(0, prompt - window) : prompt, :prompt].sum(1)
    votes = torch.nn.functional.max_pool1d(votes[:, None], 5, 1, 2)[:, 0]
    votes[:, max(0, prompt - window) :] = torch.inf
    best = votes.topk(min(budget, prompt), dim=1).indices
    kept = torch.ones(len(votes), seen.rows, dtype=torch.bool)
    kept[:, :prompt] = torch.zeros(len(votes), prompt, dtype=torch.bool).scatter_(1, best, value=True)
    return seen.prefilled()[None] | kept[:, None]


def soft_votes(seen: Scores, *, budget: int, local: int = 16, sinks: int = 4) -> Tensor:
    """TokenSelect: per row the keys that most heads' softmax favours, one set for all heads."""
    middle = (seen.newest >= local) & (torch.arange(seen.rows) >= sinks)
    votes = seen.raw.masked_fill(~middle, -torch.inf).softmax(-1).nan_to_num(0.0).sum(0)
    return (_largest(votes, budget) | ~middle)[None]


def frequency_chunks(seen: Scores, *, budget: int, chunks: int = 4) -> Tensor:
    """FASA: a few rotary pairs choose the keys that full attention then sees."""
    group, half = len(seen.queries) // len(seen.keys), seen.keys.shape[-1] // 2
    pairs = range(half - chunks, half)  # the slowest
    queries = torch.unflatten(seen.queries, 0, (-1, group)).mean(1)
    index = [*pairs, *(p + half for p in pairs)]
    rough = queries[..., index] @ seen.keys[..., index].transpose(1, 2)
    return seen.prefilled()[None] | _largest(rough.masked_fill(seen.newest < 0, -torch.inf), budget)


def blocks(seen: Scores, *, budget: int, size: int = 16) -> Tensor:
    """Retrieval by sentences or pages: whole runs of keys by their mean key's score (SentenceKV, Quest)."""
    heads, rows = seen.weights.shape[0], seen.rows
    count = -(-rows // size)
    padded = torch.nn.functional.pad(seen.keys, (0, 0, 0, count * size - rows))
    means = torch.unflatten(padded, 1, (count, size)).mean(2)
    group = len(seen.queries) // heads
    scores = torch.unflatten(seen.queries, 0, (-1, group)).mean(1) @ means.transpose(1, 2)
    # Whole runs only: the mean of an unfinished one would look ahead, or move with every token.
    past = (torch.arange(count) + 1) * size <= torch.arange(rows)[:, None]
    chosen = _largest(scores.masked_fill(~past, -torch.inf), max(1, budget // size))
    near = seen.newest < size
    return seen.prefilled()[None] | near | chosen.repeat_interleave(size, 2)[..., :rows]


def _largest(values: Tensor, count: int) -> Tensor:
    """Boolean mask of the largest `count` of each row, earlier ones first where equal."""
    nudged = values - 1e-6 * torch.arange(values.shape[-1])
    best = nudged.topk(min(count, values.shape[-1]), dim=-1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, best, value=True)


def pyramid(*, budget: int) -> Callable[[Attending], Tensor]:
    """PyramidKV: SnapKV with less for every later layer."""

    def attend(asked: Attending) -> Tensor:
        own = max(8, int(budget * (2 - asked.layer / 2)) // 2)
        return selecting(lambda seen: snapshot(seen, budget=own))(asked)

    return attend
