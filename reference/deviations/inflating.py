"""Padded reasoning as a replay of opened tokens sees it: the attacks of `accounting.py`, half as much again.

The first half of an honest answer counts as hidden; filler goes behind it, and the rest is written after the
filler, under the noise of its places, so that only the filler is not the model's. A filler made after the
answer (`late`) leaves the answer as it was drawn. The bill alone, and embeddings that a commitment carries,
are seen by other checks: `docs/inflation.md`, `docs/token_counts.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from auditor.reference.decode import generate
from auditor.reference.deviations.accounting import INFLATIONS, Inflation, Served
from auditor.reference.deviations.base import Deviation, Ids, Serving
from auditor.reference.deviations.searching import continued
from auditor.reference.loading import ReferenceModel
from auditor.reference.running import Ask

RATE, BLOCK = 0.5, 32


def _drafts(model: ReferenceModel, ask: Ask) -> Callable[[Ids, int], Ids]:
    """Fluent filler of a small model."""

    def draft(prefix: Ids, count: int) -> Ids:
        plain = replace(ask, prompt=prefix, max_tokens=count, stop_ids=frozenset())
        return next(iter(generate(model, [plain])))

    return draft


def _padded(attack: Inflation, serving: Serving) -> list[Ids]:
    honest = list(generate(serving.target, serving.asks))
    hidden = [output[: max(1, len(output) // 2)] for output in honest]
    traces = [(ask.prompt, own) for ask, own in zip(serving.asks, hidden, strict=True)]
    heads = []
    for number, (ask, own, output) in enumerate(zip(serving.asks, hidden, honest, strict=True)):
        assert ask.tokenizer is not None, "fillers are made of a tokenizer's tokens"
        small = _drafts(serving.other or serving.target, ask)
        others = [*traces[:number], *traces[number + 1 :]] or traces
        served = Served(ask.prompt, own, output[len(own) :], ask.tokenizer, BLOCK, others, small)
        heads.append(attack.inflate(served, RATE, number))
    if attack.counts_only:
        return honest
    if attack.late:
        return [(*h, *o[len(own) :]) for h, own, o in zip(heads, hidden, honest, strict=True)]
    room = [
        replace(ask, max_tokens=ask.max_tokens + len(h)) for ask, h in zip(serving.asks, heads, strict=True)
    ]
    asks = [continued(ask, head) for ask, head in zip(room, heads, strict=True)]
    limit = serving.target.config.context_length
    asks = [replace(ask, max_tokens=min(ask.max_tokens, limit - len(ask.prompt))) for ask in asks]
    return [(*head, *rest) for head, rest in zip(heads, generate(serving.target, asks), strict=True)]


def _entry(attack: Inflation) -> Deviation:
    def serves(serving: Serving) -> Sequence[Ids]:
        return _padded(attack, serving)

    unseen = "the bill against the ids, in one response" if attack.counts_only else ""
    return Deviation(
        attack.name, attack.gain, attack.source, serves=serves, timing="after-trigger", decodes=False,
        unseen=unseen,
    )  # fmt: skip


DEVIATIONS = tuple(_entry(attack) for attack in INFLATIONS.values())
