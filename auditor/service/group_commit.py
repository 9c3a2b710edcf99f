"""Group commit: what arrives while a transaction runs waits, and goes into the next one together.

A disk takes as long to make one transaction durable as forty. Whoever comes first runs a transaction with all
that wait (there is no thread of its own: nothing to start, stop or find dead); when it is done, the first of
those who came meanwhile runs the next. Nobody returns before the transaction of their order has ended.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Order = TypeVar("Order")
Result = TypeVar("Result")
Outcomes = Sequence["Result | BaseException"]


@dataclass
class _Waiting(Generic[Order, Result]):
    order: Order
    woken: threading.Event = field(default_factory=threading.Event)
    outcome: Result | BaseException | None = None
    done: bool = False


class GroupCommit(Generic[Order, Result]):
    """Runs orders of many threads in few transactions.

    Args:
        commit: runs a transaction with these orders and says what came of each, after its commit; what it
            raises is what came of all of them.
        most: orders in one transaction.
    """

    def __init__(self, commit: Callable[[list[Order]], Outcomes[Result]], most: int) -> None:
        self._commit, self._most = commit, most
        self._lock = threading.Lock()
        self._queue: deque[_Waiting[Order, Result]] = deque()
        self._led = False

    def __call__(self, order: Order) -> Result:
        """Have an order committed; returns or raises what came of it."""
        mine = _Waiting[Order, Result](order)
        with self._lock:
            self._queue.append(mine)
            lead, self._led = not self._led, True
        if not lead:
            mine.woken.wait()
        if not mine.done:
            self._lead()
        if isinstance(mine.outcome, BaseException):
            raise mine.outcome
        return mine.outcome  # type: ignore[return-value]  # it is done

    def _lead(self) -> None:
        """Commit the first of the queue, one's own order among them; then let the next one lead."""
        with self._lock:
            group = [self._queue.popleft() for _ in range(min(len(self._queue), self._most))]
        try:
            outcomes = self._commit([waiting.order for waiting in group])
        except BaseException as error:  # noqa: BLE001  # everybody must be woken, whatever it is
            outcomes = [error] * len(group)
        with self._lock:
            heir = self._queue[0] if self._queue else None
            self._led = heir is not None
        for waiting, outcome in zip(group, outcomes, strict=True):
            waiting.outcome, waiting.done = outcome, True
            waiting.woken.set()
        if heir is not None:
            heir.woken.set()
