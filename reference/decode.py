"""Seeded generation on the reference model: requests decoded in batches, in order.

Used to make honest references, the demo's providers and challenges. The token chosen at a position is the
winner of the same head that audits it, so decode and audit cannot disagree about a rule.

A request with a `speculation` rule plays a provider that decodes speculatively: the rule judges the drafter's
chains. Without one a drafter only makes decoding quicker (`engine.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf

import torch

from auditor.errors import OptionError
from auditor.reference.drafters.cost import CostCurve
from auditor.reference.drafters.drafter import Drafter
from auditor.reference.engine import Engine
from auditor.reference.loading import ReferenceModel
from auditor.reference.running import Ask, Steps

__all__ = ["Ask", "Steps", "generate"]


def generate(
    model: ReferenceModel,
    asks: SequenceOf[Ask],
    *,
    batch_size: int = 32,
    drafter: Drafter | None = None,
    cost: CostCurve | None = None,
    slots: int | None = None,
    on_hidden: Callable[[torch.Tensor], None] | None = None,
    on_steps: Callable[[Steps], None] = lambda _steps: None,
) -> Iterator[tuple[int, ...]]:
    """Output ids of each request, in order, `batch_size` of them decoded at once.

    `drafter`, `cost` and `slots` are as `Engine` has them. Just before its ids come, `on_hidden` is shown the
    hidden states [output tokens, hidden] of each request, and `on_steps` the drafts that each of its steps
    judged.

    Raises:
        ContextLengthError: a prompt and its `max_tokens` exceed the model's context.
        OptionError: speculation without a drafter; block verification by a model that cannot go back.
        SamplingUnsupportedError: block verification under a grammar.
    """
    if drafter is None and any(ask.speculation is not None for ask in asks):
        raise OptionError("speculation needs a model that drafts")
    engine = Engine(
        model,
        drafter=drafter,
        cost=cost,
        batch_size=batch_size,
        slots=slots,
        keep_states=on_hidden is not None,
    )
    for request in [engine.add(ask) for ask in asks]:
        while not request.finished:
            engine.step()
        if on_hidden is not None:
            on_hidden(torch.stack(request.states))
        on_steps(request.steps)
        yield tuple(request.output)
