"""Processes and threads that run beside a server for as long as it does."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

logger = logging.getLogger("auditor.serve")

_FIRST_REST, _MOST_REST = 0.5, 30.0
_LASTING = 60.0
"""A process that ran so long did not fail at its start: the next failure is a first one."""
_M_MMAP_THRESHOLD = -3  # of glibc's <malloc.h>
SWITCH_SECONDS = 0.0005


@contextmanager
def kept_running(
    command: Sequence[str], environment: dict[str, str], *, called: str, pass_fds: Sequence[int] = ()
) -> Iterator[None]:
    """Run a process for as long as the block lasts; one that ends is started again, after longer rests.

    It ends with this process, however that ends: its standard input is a pipe of ours. Signals of a terminal
    do not reach it: it is told to end when this process has heard of them.

    Args:
        called: in the log.
        pass_fds: file descriptors that it inherits.
    """

    def keep(ended: threading.Event) -> None:
        rest = _FIRST_REST
        while not ended.is_set():
            started = time.monotonic()
            with subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, env=environment, pass_fds=pass_fds, start_new_session=True
            ) as process:
                while process.poll() is None and not ended.wait(0.2):
                    pass
                if ended.is_set():
                    process.terminate()
                    return
            logger.error("%s ended with status %s; starting another", called, process.returncode)
            if time.monotonic() - started > _LASTING:
                rest = _FIRST_REST
            ended.wait(rest)
            rest = min(2 * rest, _MOST_REST)

    with meanwhile(called, keep):
        yield


@contextmanager
def meanwhile(name: str, keep: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `keep` in a thread until the block ends, which the event tells it."""
    ended = threading.Event()
    thread = threading.Thread(target=keep, args=(ended,), name=name)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def answer_quickly() -> None:
    """Set up this process for answering requests.

    Whoever waits for the interpreter gets it sooner: an answer is many short turns. And bodies of requests
    are taken from the system and given back: by itself glibc keeps such blocks once it has seen one freed, so
    that the process grows to what all its threads held at different times. Elsewhere nothing happens.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
