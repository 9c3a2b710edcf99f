"""Which request sits in which row of vLLM's persistent batch, and when one has left it for good.

Source: `vllm/v1/sample/logits_processor/interface.py` and `vllm/v1/worker/gpu_input_batch.py` (0.28, 0.32).
Before each step the engine reports the rows removed, added and moved, in this order. An added request brings
a live reference to the list of its output ids, which holds everything sampled up to the step before.

Leaving the batch is not the end: an engine short of memory takes a request out and puts it back later, with
the same list. So a request that left is kept until it is known to be over: its last token ends it, it has all
the tokens it may have, or nobody but this module refers to its list any more (the engine has dropped its
own record: aborted by the client, or by a stop text, which the engine's front end looks for). Each is
reported once, never as two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# What `sys.getrefcount` counts when only a `Served` refers to a list: its field, and the call's argument.
_OURS_ALONE = 2


@dataclass(frozen=True, slots=True)
class Served:
    """One request in or after the batch.

    Attributes:
        params: the engine's resolved `SamplingParams`.
        prompt: prompt ids, None for a prompt of embeddings.
        output: the engine's own list of output ids; it grows.
        received: when it first entered the batch, in seconds since the epoch.
        continues: it is the next part of a session whose generator has drawn before, so its seed alone does
            not give its noise.
        states: the hidden state [hidden] from which each output token was sampled, by its number; what a
            prompt's part or a token that was computed again had there before is overwritten.
    """

    params: Any
    prompt: Sequence[int] | None
    output: list[int]
    received: float
    continues: bool = False
    states: dict[int, Any] = field(default_factory=dict)


class BatchUpdate(Protocol):
    """What the engine reports; see the module's text."""

    removed: Sequence[int]
    added: Sequence[tuple[int, Any, list[int] | None, list[int]]]
    moved: Sequence[tuple[int, int, Any]]


def finish_reason(served: Served, context_length: int) -> str | None:
    """Say why an output is over, as the scheduler decides it; None when nothing in the tokens says so."""
    params, output = served.params, served.output
    if not output:
        return None
    if output[-1] == params.eos_token_id or output[-1] in (params.stop_token_ids or ()):
        return "stop"
    total = len(served.prompt or ()) + len(output)
    if (params.max_tokens is not None and len(output) >= params.max_tokens) or total >= context_length:
        return "length"
    return None


class Rows:
    """Follow the batch and hand over each request once, when it is over.

    Args:
        report: called with the request and its finish reason.
        context_length: most tokens of prompt and output together.
        is_swap: whether the third part of a move says that two rows change places.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        report: Callable[[Served, str | None], None],
        *,
        context_length: int,
        is_swap: Callable[[Any], bool],
        clock: Callable[[], float],
    ) -> None:
        self._report = report
        self._context_length = context_length
        self._is_swap = is_swap
        self._clock = clock
        self._rows: dict[int, Served] = {}
        self._left: dict[int, Served] = {}
        self.sessions_cut = 0

    def update(self, change: BatchUpdate | None) -> None:
        """Take in one report; None when the batch is as it was."""
        if change is not None:
            for row in change.removed:
                self._leave(row)
            for row, params, prompt, output in change.added:
                self._leave(row)
                self._rows[row] = self._entered(params, prompt, output)
            for source, target, direction in change.moved:
                self._move(source, target, swap=self._is_swap(direction))
        self._sweep()

    def see(self, states: Any) -> bool:
        """Take in a step's hidden states [rows, hidden], one for each row of the batch as last reported.

        Returns:
            Whether there is one for each; if not, none was taken.
        """
        if len(states) != len(self._rows) or set(self._rows) != set(range(len(states))):
            return False
        kept = states.clone().unbind()  # the engine writes over its own; one copy for the whole batch
        for row, served in self._rows.items():
            served.states[len(served.output)] = kept[row]
        return True

    def close(self) -> None:
        """Report everything that was ever in the batch: the engine is going down."""
        for row in sorted(self._rows):
            self._leave(row)
        for served in self._left.values():
            self._report(served, finish_reason(served, self._context_length))
        self._left.clear()

    def _entered(self, params: Any, prompt: list[int] | None, output: list[int]) -> Served:
        known = self._left.pop(id(output), None)
        if known is not None and known.params is params:
            return known
        # A streaming session empties the list and makes what was in it part of the next prompt.
        continues = known is not None
        self.sessions_cut += continues
        return Served(params, prompt, output, self._clock(), continues)

    def _leave(self, row: int) -> None:
        served = self._rows.pop(row, None)
        if served is not None:
            self._left[id(served.output)] = served

    def _move(self, source: int, target: int, *, swap: bool) -> None:
        moving, other = self._rows.pop(source, None), self._rows.pop(target, None)
        if other is not None:
            self._rows[source if swap else target] = other
            if not swap:
                self._leave(target)
        if moving is not None:
            self._rows[target] = moving

    def _sweep(self) -> None:
        over = [key for key, served in self._left.items() if self._is_over(served)]
        for key in over:
            served = self._left.pop(key)
            self._report(served, finish_reason(served, self._context_length))

    def _is_over(self, served: Served) -> bool:
        return (
            finish_reason(served, self._context_length) is not None
            or sys.getrefcount(served.output) <= _OURS_ALONE
        )
