"""Which token follows each verified row: the sampler's own, found for whole trees at once.

*Ties.* A decode step's float32 logits differ from those of a prefill, of another batch or of a tree in their
last bits, which would decide where two tokens nearly tie. A row whose slack is below `TIE_LOGITS` is
computed again as the audit computes it, from the sequence's beginning and to the same bits whatever was
around it; its winner is what every tree, batch and order returns, and what the audit expects. In half
precision rounding is part of what a provider serves, and nothing is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from auditor.errors import OptionError
from auditor.kernels.splitmix import U64
from auditor.reference.batch import Span
from auditor.reference.drafters.tree import ROOT, DraftTree
from auditor.reference.head import NoiseRows, RowStats, _score
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import NoiseScheme
from auditor.reference.running import Running
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation import NO_DRAFT, SpeculatedRows, SpeculationRule, draw_speculated

# Several times the largest difference seen between a tree's float32 logits and a prefill's.
TIE_LOGITS = 1e-3

_NEXT = np.zeros(1, np.int64)

Walked = tuple[tuple[int, ...], tuple[int, ...]]
Judged = tuple[Running, DraftTree, Tensor]


def walk_trees(model: ReferenceModel, judged: Sequence[Judged], logits: Tensor) -> list[Walked]:
    """Nodes taken and tokens returned of each tree, given its rows' logits float32 [nodes + 1, V].

    Args:
        logits: the rows of all trees, one after another.

    Raises:
        OptionError: a rule of speculation was given a tree with branches.
    """
    plain: dict[object, list[int]] = {}
    for number, (request, _, _) in enumerate(judged):
        if request.ask.speculation is None and not request.spec.ruled:
            plain.setdefault((request.spec, request.ask.scheme.name), []).append(number)
    found: dict[int, Walked] = {}
    for numbers in plain.values():
        own = [judged[number] for number in numbers]
        rows = logits if len(own) == len(judged) else torch.cat([rows for _, _, rows in own])
        walks = _walk_together(model, own, rows)
        found.update(zip(numbers, walks, strict=True))
    return [found[n] if n in found else _walk_alone(model, *one) for n, one in enumerate(judged)]


def _walk_together(model: ReferenceModel, judged: Sequence[Judged], logits: Tensor) -> list[Walked]:
    """Trees whose rows depend on nothing but their logits and noise are drawn in one call."""
    first = judged[0][0]
    noise = [
        request.noise.rows(np.array([0, *tree.depths], np.int64) if len(tree) else _NEXT)
        for request, tree, _ in judged
    ]
    joined = np.concatenate([rows for rows in noise if rows is not None]) if noise[0] is not None else None
    stats = _drawn(logits, first.spec, first.ask.scheme, joined)
    winners, slack = stats.winner.tolist(), stats.slack.tolist()
    walks, start = [], 0
    for request, tree, _ in judged:
        end = start + 1 + len(tree)
        walks.append(tree.walk(_chooser(model, request, tree, winners[start:end], slack[start:end])))
        start = end
    return walks


def _chooser(
    model: ReferenceModel, request: Running, tree: DraftTree, winners: list[int], slack: list[float]
) -> Callable[[int], int]:
    def choose(node: int) -> int:
        if slack[node + 1] < TIE_LOGITS and model.dtype == torch.float32:
            return _again(model, request, tree.path(node))
        return winners[node + 1]

    return choose


def _again(model: ReferenceModel, request: Running, guessed: tuple[int, ...]) -> int:
    """The token after output and guesses, computed as the audit computes it."""
    text = torch.tensor([*request.ask.prompt, *request.output, *guessed])
    logits = model.logits(model.forward([Span(text, wanted=len(text) - 1)]))
    return _draw(request, request.ruled(logits[0], guessed)[None], len(guessed))[0]


def _drawn(logits: Tensor, spec: SamplingSpec, scheme: NoiseScheme, draws: NoiseRows) -> RowStats:
    """As `head.draw_rows`, with the slack of each row."""
    return _score(logits, logits.cpu().numpy().argmax(axis=1), spec, scheme, draws, 0, "compiled")


def _draw(request: Running, logits: Tensor, depth: int) -> tuple[int, float]:
    noise = request.noise.rows(np.array([depth], np.int64))
    stats = _drawn(logits, request.spec, request.ask.scheme, noise)
    return int(stats.winner[0]), float(stats.slack[0])


def _walk_alone(model: ReferenceModel, request: Running, tree: DraftTree, logits: Tensor) -> Walked:
    """A tree whose rows depend on the tokens before them, or that a provider's rule judges."""
    rule = request.ask.speculation
    if rule is None:

        def choose(node: int) -> int:
            guessed = tree.path(node)
            token, slack = _draw(request, request.ruled(logits[node + 1], guessed)[None], len(guessed))
            tied = slack < TIE_LOGITS and model.dtype == torch.float32
            return _again(model, request, guessed) if tied else token

        return tree.walk(choose)
    if not tree.is_chain:
        raise OptionError("a provider's rule of speculation judges no branches", fix="draft chains")
    if request.by_step:
        kept, token = request.block_sampler().draw(logits, np.asarray(request.output, np.int64), tree.tokens)
        assert token is not None, "there is a row for the bonus token"
        return tuple(range(kept)), (*tree.tokens[:kept], token)
    return tree.walk(lambda node: _speculated(request, rule, tree, node, logits[node + 1]))


def _speculated(request: Running, rule: SpeculationRule, tree: DraftTree, node: int, logits: Tensor) -> int:
    """The token that a rule which judges drafts one by one returns at a row."""
    ask, guessed = request.ask, tree.path(node)
    at = len(request.output) + len(guessed)
    draft = tree.tokens[node + 1] if node + 1 < len(tree) else NO_DRAFT
    coins = rule.row_coins(ask.seed, ask.noise_prompt_tokens, at, at + 1)
    noise = request.noise.rows(np.array([len(guessed)], np.int64))
    rows = SpeculatedRows(coins, np.array([draft], np.int64), rule.doubt, rule.typical)
    own = request.ruled(logits, guessed)[None]
    drawn: npt.NDArray[np.int64] = draw_speculated(own, request.spec, ask.scheme, cast("U64", noise), rows)
    return int(drawn[0])


__all__ = ["ROOT", "TIE_LOGITS", "Judged", "Walked", "walk_trees"]
