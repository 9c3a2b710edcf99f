"""The loop of a process that works on leased rows: look, try, hand back or record a failure, rest, again.

Workers (`worker.py`) and timetable keepers (`schedules/keeper.py`) differ in what they look at and do.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from auditor.errors import AuditError, StoreError, UnusableInputError
from auditor.service.errors import LeaseLostError
from auditor.service.queue import Job, Terms

if TYPE_CHECKING:
    from auditor.store import Store


class StopRequestedError(Exception):
    """The loop was told to stop; what is in hand goes back to its queue."""


class Loop(ABC):
    """One loop over one database's rows; `run` blocks.

    Args:
        store: the database.
        terms: the lease and the limits of retrying, the same for all loops over the same rows.
        name: shown in the database.
        poll_seconds: rest between two looks when nothing is due.
        stall_seconds: work without progress for so long is given up: its lease is no longer renewed.
    """

    logger: logging.Logger

    def __init__(
        self,
        store: Store,
        *,
        terms: Terms | None = None,
        name: str | None = None,
        poll_seconds: float,
        stall_seconds: float,
    ) -> None:
        self.store, self.terms = store, terms or Terms()
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self.poll_seconds, self.stall_seconds = poll_seconds, stall_seconds
        self.stopping = threading.Event()

    def stop(self) -> None:
        """Hand back what is in hand and end `run`."""
        self.stopping.set()

    def run(self) -> None:
        """Go on until told to stop; a database that goes away is waited for."""
        while not self.stopping.is_set():
            try:
                busy = self.run_once()
            except StoreError as error:
                self.logger.warning("database: %s", error)
                busy = False
            if not busy:
                self.stopping.wait(self.poll_seconds)

    @abstractmethod
    def run_once(self) -> bool:
        """One look, and the work it found; False when nothing was due.

        Raises:
            StoreError: the database refused.
        """

    @abstractmethod
    def hand_back(self, job: Job) -> None:
        """Put a job that was claimed back, as if it had not been."""

    @abstractmethod
    def record_failure(self, job: Job, *, code: str, error: str, chance: float, final: bool) -> None:
        """Write that an attempt failed; `chance` in [0, 1) jitters when the next one is due."""

    def attempt(self, job: Job, do: Callable[[], None]) -> None:
        """Do a claimed job; whatever becomes of it is in the database when this returns.

        Raises:
            StoreError: the database refused what was to be recorded; the lease will run out.
        """
        try:
            self._attempt(job, do)
        except LeaseLostError:
            self.logger.warning("%s: the lease was lost; nothing more is written", job.audit_id)

    def _attempt(self, job: Job, do: Callable[[], None]) -> None:
        try:
            do()
        except LeaseLostError:
            raise
        except StopRequestedError:
            self.hand_back(job)
        except AuditError as error:
            self._fail(job, error.code, str(error), final=isinstance(error, UnusableInputError))
        except Exception as error:  # a job must not end its loop; the traceback goes to the log
            self.logger.exception("%s", job.audit_id)
            self._fail(job, "internal", type(error).__name__, final=False)

    def _fail(self, job: Job, code: str, error: str, *, final: bool) -> None:
        self.logger.warning("%s: %s", job.audit_id, code)
        chance = random.random()  # noqa: S311  # jitter
        self.record_failure(job, code=code, error=error, chance=chance, final=final)
