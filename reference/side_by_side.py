"""Independent calls side by side, each on one processor thread.

A product of 256 rows of a small model takes a millisecond, and splitting that over threads loses what it
gains; calls that do not know of each other lose nothing but the interpreter's lock. Results are the same
bits: what a row gets depends neither on its company nor on the number of threads (decision 0005).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch

S = TypeVar("S")
R = TypeVar("R")


def side_by_side(work: Callable[[S], R], shares: Iterable[S], lanes: int) -> Iterator[tuple[S, R]]:
    """Do `work` on every share, at most `lanes` at once; (share, result) in order.

    Args:
        work: safe to call from several threads.
        shares: taken one ahead of what is running. A single one has all threads.

    Raises:
        Whatever `work` raises, at the place of its share.
    """
    stream = iter(shares)
    first = list(islice(stream, 2))
    if lanes == 1 or len(first) < 2:
        yield from ((share, work(share)) for share in chain(first, stream))
        return
    threads, running = torch.get_num_threads(), deque[tuple[S, Future[R]]]()
    # The number of threads is each thread's own for OpenMP, and everybody's for MKL: so it is put back.
    pool = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for share in chain(first, stream):
            running.append((share, pool.submit(work, share)))
            yield from _finish(running, lanes)
        yield from _finish(running, 0)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _finish(running: deque[tuple[S, Future[R]]], left: int) -> Iterator[tuple[S, R]]:
    while len(running) > left:
        share, future = running.popleft()
        yield share, future.result()
