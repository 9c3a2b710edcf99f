"""Prompts read in one process, outputs decoded in another: keys and values are handed over once.

The prefill side reads all but a prompt's last token and sends what every layer keeps of it; the decode side
takes that into its slots, where it is as good as its own, and reads the last token with its first step. Keys
and values have the bits of `attention.causal`, so tokens are those of one process. Which request comes next
is agreed by order: both sides walk through the same asks.

Source of the division: Splitwise, arXiv 2311.18677. Invariant: a position's rows travel as bytes, layer by
layer, in the order of positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from auditor.errors import OptionError
from auditor.reference.batch import extend
from auditor.reference.drafters.cost import CostCurve
from auditor.reference.drafters.drafter import Drafter
from auditor.reference.engine import Engine
from auditor.reference.loading import ReferenceModel
from auditor.reference.ranks import Ranks
from auditor.reference.running import Ask
from auditor.reference.slots import Sequence as Slots
from auditor.reference.slots import SlotKV, as_run


def prefill(model: ReferenceModel, asks: Sequence[Ask], ranks: Ranks) -> None:
    """Read prompts and hand each to the next rank.

    Raises:
        OptionError: a model that keeps no state by position, or another than the next rank's.
        TokenOutOfRangeError, ContextLengthError: as `Model.forward`.
    """
    _agree(model, ranks)
    for ask in asks:
        known = torch.tensor(ask.prompt[:-1])
        if not len(known):
            continue
        cache, sequence = model.new_cache(), Slots()
        for part in torch.split(known, model.pack_tokens):
            model.forward([extend(cache, sequence, part, wanted=len(part))], cache)
            sequence.length += len(part)
        for layer, kept in enumerate(cache.layout):
            if kept is not None:
                for rows in cache.read(layer, as_run(sequence.slots)):
                    ranks.send(rows)


def decode(
    model: ReferenceModel,
    asks: Sequence[Ask],
    ranks: Ranks,
    *,
    batch_size: int = 32,
    drafter: Drafter | None = None,
    cost: CostCurve | None = None,
) -> Iterator[tuple[int, ...]]:
    """Output ids of each request, in order, from prompts that the rank before this one reads.

    Raises:
        OptionError, ContextLengthError: as `prefill` and `Engine`.
    """
    _agree(model, ranks)
    engine = Engine(model, drafter=drafter, cost=cost, batch_size=batch_size)
    for start in range(0, len(asks), batch_size):
        requests = []
        for ask in asks[start : start + batch_size]:
            sequence = _received(engine.cache, len(ask.prompt) - 1, ask, ranks)
            requests.append(engine.add(ask, sequence))
        for request in requests:
            while not request.finished:
                engine.step()
            yield tuple(request.output)


def _agree(model: ReferenceModel, ranks: Ranks) -> None:
    if model.from_the_beginning:
        raise OptionError("attention under a policy looks at queries, which are not handed over")
    if not model.config.shares_prefixes:
        raise OptionError(
            f"a {model.config.model_type} model keeps no state by position to hand over",
            fix="read and decode in one process",
        )
    if not ranks.agree(f"{model.digest} in {model.dtype}"):
        raise OptionError("the two sides have different models", fix="give both the same files and dtype")


def _received(cache: SlotKV, length: int, ask: Ask, ranks: Ranks) -> Slots:
    """A sequence whose first `length` positions came from the other side, with room for its output."""
    sequence = Slots()
    cache.reserve(sequence, len(ask.prompt) + ask.max_tokens)
    if not length:
        return sequence
    sequence.length = length
    for layer, kept in enumerate(cache.layout):
        if kept is not None:
            heads, key_dim, value_dim = kept
            keys = ranks.receive(torch.empty(length, heads, key_dim, dtype=cache.dtype))
            values = ranks.receive(torch.empty(length, heads, value_dim, dtype=cache.dtype))
            cache.write(layer, sequence.slots, keys, values)
    return sequence
