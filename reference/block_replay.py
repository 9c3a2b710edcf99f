"""Replay of block verification: a step at a time, with the rows of drafts that the output does not have.

Whether a draft was kept depends on the target's probabilities after drafts that were turned down. Those rows
are computed on *branches*: one short sequence for each step that turned drafts down, which reads its prompt
and the output so far from the slots where the main pass left them. Hidden states of a request's branches
stand behind those of its output, step by step (`row_numbers`).

Invariant: what a step is judged by is a function of the prompt, the output before it and its own drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from auditor.errors import SamplingUnsupportedError
from auditor.reference.batch import Span
from auditor.reference.head import RowStats
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import KeyedScheme, NoiseScheme
from auditor.reference.prefix_rules import Ruled, RuledRequest
from auditor.reference.ruled_head import FORBIDDEN_MARGIN
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import SlotKV
from auditor.reference.speculation import SpeculationRule, Step, draw_step, judge_step
from auditor.reference.speculation.race_rows import RaceRow, noise_doubt, race_rows
from auditor.reference.support import claimed_logits, log_normaliser

I64 = npt.NDArray[np.int64]


def refuse_grammar(spec: SamplingSpec) -> None:
    """Refuse grammars: engines cut a step's drafts where the grammar excludes one, each in its own way.

    Raises:
        SamplingUnsupportedError: `spec` has one.
    """
    if spec.grammar is not None:
        raise SamplingUnsupportedError("block verification under a grammar cannot be replayed")


def branch_hidden(
    model: ReferenceModel, cache: SlotKV, slots: Tensor, prompt_tokens: int, steps: Sequence[Step], most: int
) -> Tensor:
    """Hidden states [branch rows, hidden] of a request's branches, step by step.

    Args:
        slots: int64, of the prompt and all output tokens but the last.
        most: rows in one forward, if no single branch has more.
    """
    hidden: list[Tensor] = []
    spans: list[Span] = []
    rows = 0
    for step in steps:
        if not step.branch:
            continue
        if spans and rows + len(step.branch) > most:
            hidden.append(model.forward(spans, cache))
            spans, rows = [], 0
        past = slots[: prompt_tokens + step.first + step.tokens - 1]
        spans.append(Span(torch.tensor(step.branch), past=past))
        rows += len(step.branch)
    hidden.append(model.forward(spans, cache))
    return torch.cat(hidden)


def row_numbers(steps: Sequence[Step], output_tokens: int) -> list[Tensor]:
    """Where each step's rows stand among the hidden states of its request, int64 [step.rows] each."""
    numbers, behind = [], output_tokens
    for step in steps:
        own = torch.arange(step.first, step.first + step.tokens)
        numbers.append(torch.cat([own, torch.arange(behind, behind + len(step.branch))]))
        behind += len(step.branch)
    return numbers


def step_logits(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, steps: Sequence[Step], output: int, most: int
) -> Iterator[tuple[Step, Tensor]]:
    """Every step with the logits [step.rows, V] of its rows; `most` rows exist at a time, or one step's."""
    waiting: list[tuple[Step, Tensor]] = []
    rows = 0
    for step, numbers in zip(steps, row_numbers(steps, output), strict=True):
        if waiting and rows + step.rows > most:
            yield from _with_logits(logits_of, hidden, waiting)
            waiting, rows = [], 0
        waiting.append((step, numbers))
        rows += step.rows
    yield from _with_logits(logits_of, hidden, waiting)


def _with_logits(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, waiting: Sequence[tuple[Step, Tensor]]
) -> Iterator[tuple[Step, Tensor]]:
    logits = logits_of(hidden[torch.cat([numbers for _, numbers in waiting]).to(hidden.device)])
    for (step, _), own in zip(waiting, torch.split(logits, [step.rows for step, _ in waiting]), strict=True):
        yield step, own


@dataclass(frozen=True, slots=True)
class BlockSampler:
    """How one request is sampled.

    Attributes:
        spec: as `effective_sampling` returns it, not greedy.
        prompt_tokens: as far as noise and coins are concerned.
        ruled: the request's own rules, without a grammar; None when it has none.
    """

    rule: SpeculationRule
    spec: SamplingSpec
    scheme: NoiseScheme
    seed: int
    prompt_tokens: int
    ruled: RuledRequest | None = None

    def draw(self, logits: Tensor, before: I64, drafts: tuple[int, ...]) -> tuple[int, int | None]:
        """How many drafts a step keeps, and the token it adds.

        Args:
            logits: float32 [rows, V], a row for each draft and maybe one for the bonus token, without which
                no token is added to drafts that were all kept.
            before: int64, the output before the step.
        """
        allowed = self._allowed(logits, before, drafts).logits
        rows = list(self._rows(allowed, len(before), drafts))
        return draw_step(rows, drafts, self._coins(len(before), len(drafts)))

    def score(self, logits: Tensor, before: I64, claim: Step, own: int | None) -> RowStats:
        """Score what a step is claimed to have kept and, where it `ended`, added.

        Args:
            logits, before: as `draw` has them.
        """
        ruled = self._allowed(logits, before, claim.drafts)
        claimed = np.array((*claim.drafts[: claim.kept], *([] if own is None else [own])), np.int64)
        here = np.arange(len(claimed))
        forbidden = np.zeros(len(here), np.bool_) if ruled.masked is None else ruled.masked[here, claimed]
        # A stand-in that is allowed keeps every figure finite.
        likeliest = np.asarray(ruled.logits[: len(here)].argmax(dim=1).numpy(), np.int64)
        allowed = np.where(forbidden, likeliest, claimed)
        rows = list(self._rows(ruled.logits, len(before), claim.drafts))
        coins = self._coins(len(before), len(claim.drafts))
        doubts = self.rule.doubt, noise_doubt(self.scheme) * self.spec.temperature
        judged = judge_step(rows, claim.drafts, coins, doubt=doubts[0], noise_doubt=doubts[1])
        own_row = self._own_row(rows, ruled.logits, before, claim, allowed)
        scores = judged.score(claim, int(allowed[-1]), own_row)
        own_logit = claimed_logits(ruled.logits[: len(here)], allowed) / np.float32(self.spec.temperature)
        normaliser = log_normaliser(ruled.logits[: len(here)], self.spec.temperature)
        return RowStats(
            claimed,
            np.where(forbidden & (scores.winner == claimed), likeliest, scores.winner),
            np.where(forbidden, FORBIDDEN_MARGIN, np.minimum(scores.margin, FORBIDDEN_MARGIN)),
            np.where(ruled.forced[: len(here)], np.inf, scores.slack),
            np.full(len(here), -1, np.int64),
            own_logit.astype(np.float64) - normaliser,
            scores.outside & ~forbidden,
            np.where(forbidden, 0.0, scores.edge),
            np.full(len(here), self.spec.filtered),
            np.empty((len(here), 0), np.int64),
            np.empty((len(here), 0), np.float32),
            (scores.forced | ruled.forced[: len(here)]) & ~forbidden,
            forbidden & ~ruled.unmodelled.any(),
            np.full(len(here), ruled.unmodelled.any()),
        )

    def _allowed(self, logits: Tensor, before: I64, drafts: tuple[int, ...]) -> Ruled:
        """The rows under the request's rules, which see the drafts before each."""
        none = np.zeros(len(logits), np.bool_)
        if self.ruled is None:
            return Ruled(logits, None, none, none)
        return self.ruled.apply(logits, np.append(before, drafts).astype(np.int64), len(before))

    def _rows(self, logits: Tensor, first: int, drafts: tuple[int, ...]) -> Iterator[RaceRow]:
        """Each row with its draft in view; the bonus token's, which has none, with the likeliest token."""
        likeliest = logits[len(drafts) :].argmax(dim=1).tolist()
        shown = np.array([*drafts, *likeliest], np.int64)[: len(logits)]
        return race_rows(logits, shown, self.spec, self.scheme, self._keys(first, len(logits)))

    def _own_row(
        self, rows: Sequence[RaceRow], logits: Tensor, before: I64, claim: Step, allowed: I64
    ) -> RaceRow:
        """The row of the step's own token, with that in view; any row where it has none."""
        place = claim.tokens - 1
        if not claim.ended or not self.spec.filtered:
            return rows[place]
        keys = self._keys(len(before) + place, 1)
        return next(race_rows(logits[place : place + 1], allowed[-1:], self.spec, self.scheme, keys))

    def _keys(self, first: int, count: int) -> npt.NDArray[np.uint64]:
        keyed = cast("KeyedScheme", self.scheme)
        return keyed.row_keys(self.seed, self.prompt_tokens, first, first + count)

    def _coins(self, first: int, drafts: int) -> list[float]:
        coins: list[float] = self.rule.step_coins(self.seed, self.prompt_tokens, first, drafts).tolist()
        return coins


def score_steps(
    sampler: BlockSampler,
    steps: Iterator[tuple[Step, Tensor]],
    output: I64,
    deviant: tuple[BlockSampler, Iterator[tuple[Step, Tensor]]] | None = None,
) -> RowStats:
    """Score a request's steps; with a deviant, what that would have made of each step instead.

    Args:
        steps: with their logits, in order. deviant: another sampler, with its own logits of the same steps.
    """
    scored = []
    other = None if deviant is None else deviant[1]
    for step, logits in steps:
        before = output[: step.first]
        claim, own = step, int(output[step.first + step.kept]) if step.ended else None
        if deviant is not None and other is not None:
            kept, own = deviant[0].draw(next(other)[1], before, step.drafts)
            claim = Step(step.first, step.drafts, kept, ended=own is not None)
        scored.append(sampler.score(logits, before, claim, own))
    return RowStats.concatenate(scored)
