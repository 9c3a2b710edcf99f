"""Group commit: what arrives while a transaction runs waits, and goes into the next one together.

A disk takes as long to make one transaction durable as forty. Whoever comes first runs a transaction with all
that wait (there is no thread of its own: nothing to start, stop or find dead); when it is done, the first of
those who came meanwhile runs the next. Nobody returns before the transaction of their order has ended.

Who waits is a thread (`__call__`) or a coroutine (`soon`). While the next in line is a coroutine, the thread
that ran a transaction runs the next one as well; a loop is told of all its outcomes at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Order = TypeVar("Order")
Result = TypeVar("Result")
Outcomes = Sequence["Result | BaseException"]


@dataclass
class _Waiting(Generic[Order, Result]):
    order: Order
    woken: threading.Event | asyncio.Future[None]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    outcome: Result | BaseException | None = None
    done: bool = False

    def result(self) -> Result:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome  # type: ignore[return-value]  # it is done


class GroupCommit(Generic[Order, Result]):
    """Runs orders of many threads and coroutines in few transactions.

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
        woken = threading.Event()
        mine = _Waiting[Order, Result](order, woken)
        if not self._lead_with(mine):
            woken.wait()
        if not mine.done:
            self._pass_on(self._lead())
        return mine.result()

    async def soon(self, order: Order) -> Result:
        """As `__call__`, for a coroutine: its loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        mine = _Waiting[Order, Result](order, loop.create_future())
        if self._lead_with(mine):
            self._lead_elsewhere(mine)
        # Whoever gives up waiting gives up nothing else: the order is in line.
        await mine.woken  # type: ignore[misc]  # a future
        return mine.result()

    def _lead_with(self, mine: _Waiting[Order, Result]) -> bool:
        """Stand in line; whether nobody leads, so that this one must."""
        with self._lock:
            self._queue.append(mine)
            lead, self._led = not self._led, True
        return lead

    def _lead(self) -> _Waiting[Order, Result] | None:
        """Commit the first of the queue and wake who waited for it; returns who leads next, not woken yet."""
        with self._lock:
            group = [self._queue.popleft() for _ in range(min(len(self._queue), self._most))]
        try:
            outcomes = self._commit([waiting.order for waiting in group])
        except BaseException as error:  # noqa: BLE001  # everybody must be woken, whatever it is
            outcomes = [error] * len(group)
        with self._lock:
            heir = self._queue[0] if self._queue else None
            self._led = heir is not None
        loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for waiting, outcome in zip(group, outcomes, strict=True):
            waiting.outcome, waiting.done = outcome, True
            if isinstance(waiting.woken, threading.Event):
                waiting.woken.set()
            else:
                loops.setdefault(waiting.woken.get_loop(), []).append(waiting.woken)
        for loop, woken in loops.items():
            _tell(loop, _wake, woken)
        return heir

    def _pass_on(self, heir: _Waiting[Order, Result] | None) -> None:
        """From a thread that has something else to do: have the next one lead."""
        if heir is None:
            return
        if isinstance(heir.woken, threading.Event):
            heir.woken.set()
        elif not _tell(heir.woken.get_loop(), self._lead_elsewhere, heir):
            self._lead_on()

    def _lead_elsewhere(self, first: _Waiting[Order, Result]) -> None:
        asyncio.get_running_loop().run_in_executor(None, first.context.run, self._lead_on)

    def _lead_on(self) -> None:
        """In a thread that has nothing else to do: lead until a thread comes next, or nobody."""
        heir = self._lead()
        while heir is not None and not isinstance(heir.woken, threading.Event):
            heir = self._lead()
        self._pass_on(heir)


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: Any) -> bool:
    """Call something in a loop's thread; False where the loop has ended, and nobody waits there."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)
        return True
    return False


def _wake(woken: list[asyncio.Future[None]]) -> None:
    for one in woken:
        if not one.done():
            one.set_result(None)
