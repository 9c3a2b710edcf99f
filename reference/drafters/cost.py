"""How many guesses are worth verifying: what a call costs by its rows, and the marginal rule.

A guess is worth its row while value > (C(n + 1) - C(n)) * accepted(n) / C(n), where `value` is the chance
that it is taken, n the rows of the call so far and `accepted(n)` the tokens expected of them; beyond that it
lowers tokens a second. Real curves jump (rows of products are padded, trees need masks), so trees are grown
along the convex curve below, and all of a call's are dropped if plain decoding is expected to be quicker.
What was expected need not come, and asking costs too: `Payback` goes by what steps really took.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from auditor.reference.batch import Span, extend
from auditor.reference.loading import ReferenceModel
from auditor.reference.slots import Sequence as Slots

_PROFILED = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
_CONTEXT = 128


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of one call over a batch, by its rows; straight between the points.

    Attributes:
        rows: rising. seconds: of a call of so many. clock: by which they were measured.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    clock: Callable[[], float] = time.perf_counter

    @property
    def smooth(self) -> CostCurve:
        """The largest convex curve below this one: what rows cost if one goes on past a jump."""
        hull: list[int] = []
        for point in range(len(self.rows)):
            while len(hull) > 1 and self._slope(hull[-2], point) <= self._slope(hull[-2], hull[-1]):
                hull.pop()
            hull.append(point)
        return CostCurve(tuple(self.rows[n] for n in hull), tuple(self.seconds[n] for n in hull))

    def _slope(self, left: int, right: int) -> float:
        return (self.seconds[right] - self.seconds[left]) / (self.rows[right] - self.rows[left])

    def __call__(self, rows: int) -> float:
        """C(n); beyond the last point as steep as before it."""
        if len(self.rows) == 1:
            return self.seconds[0]
        right = min(max(bisect_right(self.rows, rows), 1), len(self.rows) - 1)
        left = right - 1
        share = (rows - self.rows[left]) / (self.rows[right] - self.rows[left])
        return self.seconds[left] + share * (self.seconds[right] - self.seconds[left])

    @classmethod
    def profiled(
        cls,
        model: ReferenceModel,
        batch: int,
        *,
        context: int = _CONTEXT,
        repetitions: int = 3,
        clock: Callable[[], float] = time.perf_counter,
    ) -> CostCurve:
        """Measure a model on this machine: `batch` sequences of a length, each with a chain of rows.

        `clock` may be `time.process_time` where other work on the machine should not count.
        """
        context = min(context, model.config.context_length - max(_PROFILED))
        cache = model.new_cache()
        sequences = [Slots() for _ in range(batch)]
        tokens = torch.arange(context + max(_PROFILED)) % model.config.vocab_size
        for sequence in sequences:
            cache.reserve(sequence, len(tokens))
        model.forward([extend(cache, sequence, tokens[:context]) for sequence in sequences], cache)

        def call(rows: int) -> None:
            seen = torch.ones(rows, rows, dtype=torch.bool).tril() if rows > 1 else None
            spans: list[Span] = []
            for sequence in sequences:
                sequence.length = context
                spans.append(extend(cache, sequence, tokens[:rows], ancestors=seen))
            model.logits(model.forward(spans, cache, exact=False), exact=False)

        def seconds(rows: int) -> float:
            return min(_seconds(lambda: call(rows), clock) for _ in range(repetitions))

        call(1)
        measured = [seconds(rows) for rows in _PROFILED]
        # More rows never cost less; what looks so is the machine's noise.
        for place in range(1, len(measured)):
            measured[place] = max(measured[place], measured[place - 1])
        return cls(tuple(rows * batch for rows in _PROFILED), tuple(measured), clock)


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


@dataclass(slots=True)
class Call:
    """A call in the making, which all of its sequences' guesses share.

    Attributes:
        cost: as `CostCurve.smooth`; None takes every guess. nodes: guesses that it still has room for.
        rows, expected: rows so far, and tokens expected of them.
    """

    cost: CostCurve | None
    nodes: int
    rows: int
    expected: float


@dataclass(slots=True)
class Budget:
    """How much one sequence may guess in a step: so many nodes, so far ahead, and what they must be worth."""

    nodes: int
    depth: int
    call: Call

    @property
    def left(self) -> int:
        """Guesses that there is room for, whatever they are worth."""
        return min(self.nodes, self.call.nodes) if self.depth > 0 else 0

    def worth(self, value: float) -> bool:
        """Whether one more guess, taken with this chance, raises tokens a second."""
        call = self.call
        if self.left <= 0:
            return False
        if call.cost is None:
            return True
        now = call.cost(call.rows)
        return value * now > (call.cost(call.rows + 1) - now) * call.expected

    def spend(self, value: float) -> None:
        """Count a guess."""
        self.nodes, self.call.nodes = self.nodes - 1, self.call.nodes - 1
        self.call.rows, self.call.expected = self.call.rows + 1, self.call.expected + value

    @classmethod
    def alone(cls, nodes: int, depth: int = 64, cost: CostCurve | None = None) -> Budget:
        """Return the budget of a sequence in a call of its own."""
        return cls(nodes, depth, Call(cost, nodes, 1, 1.0))


_TRIAL = 4
_FIRST_TRIAL, _LONGEST = 16, 256


@dataclass(slots=True)
class Payback:
    """Whether asking for guesses pays, by what steps with and without it took: the better way goes on.

    The other one is tried again for a few steps, after twice as many each time that it lost. A step counts as
    the seconds that its tokens would have taken by the cost curve, plainly, over those that it took: so steps
    of many sequences and of few can be compared.

    Attributes:
        asks: whether the next step is to have guesses.
    """

    cost: CostCurve
    asks: bool = True
    _left: int = _FIRST_TRIAL
    _patience: int = _FIRST_TRIAL
    _trying: bool = True
    _worth: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _spent: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def note(self, sequences: int, tokens: int, seconds: float) -> None:
        """Count a step of so many sequences, taken the way that `asks` says, and choose the next one's."""
        self._worth[self.asks] += tokens * self.cost(sequences) / sequences
        self._spent[self.asks] += seconds
        self._left -= 1
        if self._left:
            return
        if 0.0 in self._spent or not self._trying:
            self.asks, self._left, self._trying = not self.asks, _TRIAL, True
            return
        drafted = self._worth[True] * self._spent[False] > self._worth[False] * self._spent[True]
        held = drafted is not self.asks  # what is on trial lost
        self._patience = min(2 * self._patience, _LONGEST) if held else _FIRST_TRIAL
        self.asks, self._left, self._trying = drafted, self._patience, False
        for sums in (self._worth, self._spent):
            sums[:] = [each / 2 for each in sums]
