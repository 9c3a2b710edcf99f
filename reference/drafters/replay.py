"""A drafter against logged outputs, without the model: what verification would have accepted.

Under position-keyed noise the log is what verification says at every node of the right path, so accepted
tokens a step are exact, at the cost of the drafter alone. What drafters learn from rows of wrong guesses is
missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from auditor.reference.drafters.cost import Budget, CostCurve
from auditor.reference.drafters.drafter import Context, Drafter, Verified
from auditor.reference.drafters.tree import ROOT, DraftTree
from auditor.reference.running import Ask, Running


@dataclass(frozen=True, slots=True, eq=False)
class Logged:
    """One logged generation.

    Attributes:
        top_ids: int64 [output tokens, k] and top_logits: float32 [output tokens, k], the largest logits of
            the row that each token was drawn from; None if no drafter asks for them.
    """

    ask: Ask
    output: tuple[int, ...]
    top_ids: npt.NDArray[np.int64] | None = None
    top_logits: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class Tally:
    """What came of it: verify steps behind the prompt, their tokens, and the guesses that they verified."""

    steps: int = 0
    tokens: int = 0
    nodes: int = 0

    @property
    def tokens_per_step(self) -> float:
        """1 is plain decoding."""
        return self.tokens / max(self.steps, 1)


def replay(
    drafter: Drafter,
    logs: Iterable[Logged],
    vocabulary: int,
    *,
    nodes: int = 16,
    cost: CostCurve | None = None,
) -> list[Tally]:
    """Replay logs one after another, as at batch 1; a tally of each."""
    return [_replayed(drafter, log, number, vocabulary, nodes, cost) for number, log in enumerate(logs)]


def _replayed(
    drafter: Drafter, log: Logged, key: int, vocabulary: int, nodes: int, cost: CostCurve | None
) -> Tally:
    request, tally = Running(log.ask, vocabulary), Tally()
    context = Context(key, list(log.ask.prompt), len(log.ask.prompt), request)
    _observe(drafter, context, log, log.output[:1])
    while (done := len(request.output)) < len(log.output):
        budget = Budget.alone(nodes, len(log.output) - done - 1, cost)
        tree = drafter.propose(context, budget, request.noise).pruned(vocabulary, budget.depth, nodes)
        following = log.output[done:]

        def logged(node: int, tree: DraftTree = tree, following: tuple[int, ...] = following) -> int:
            return following[0 if node == ROOT else tree.depths[node]]

        _, tokens = tree.walk(logged)
        _observe(drafter, context, log, tokens)
        tally.steps, tally.tokens, tally.nodes = (
            tally.steps + 1,
            tally.tokens + len(tokens),
            tally.nodes + len(tree),
        )
    drafter.forget(context)
    return tally


def _observe(drafter: Drafter, context: Context, log: Logged, tokens: tuple[int, ...]) -> None:
    """Hand over what a step on the right path would have shown."""
    done = len(context.request.output)
    verified = None
    if drafter.top and log.top_ids is not None and log.top_logits is not None:
        own = slice(done, done + len(tokens))
        read = np.array([context.tokens[-1], *tokens[:-1]], np.int64)
        verified = Verified(read, log.top_ids[own], log.top_logits[own])
    taken = context.request.append(tokens, None)
    context.tokens.extend(tokens[:taken])
    drafter.observe(context, tokens, verified)
