"""A worker: claims jobs, works on them under a lease, and records what they found, once.

`Work` is what is done for a job (`audit_work.py` replays a log); leases are done here. What a worker
writes about a job, it writes under its token: a worker that was paused past its lease writes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from auditor.errors import StoreError
from auditor.service import jobs, tracing
from auditor.service.errors import LeaseLostError
from auditor.service.loop import Loop, StopRequestedError
from auditor.service.queue import Job, Terms

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.store import Store

logger = logging.getLogger("auditor.worker")

RENEWALS_A_LEASE = 4
Effects = Callable[["Connection", int], None]
"""Writes what a job found, given the time; runs in the transaction that ends the job."""


class Work(Protocol):
    """What is done for a job."""

    def __call__(self, job: Job, lease: Lease) -> Effects:
        """Do it, in steps (`Lease.save`); call `Lease.check` between them."""


@dataclass
class Lease:
    """A worker's hold on a job."""

    store: Store
    job: Job
    terms: Terms
    stop: threading.Event
    lost: threading.Event = field(default_factory=threading.Event)
    moved: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Say that there is progress, and stop if there is no point in going on.

        Raises:
            LeaseLostError: another worker holds the job, or it was cancelled.
            StopRequestedError: the worker is to stop.
        """
        self.moved = time.monotonic()
        self.waiting()

    def waiting(self) -> None:
        """Stop if there is no point in going on; waiting for others is no progress.

        Raises:
            LeaseLostError, StopRequestedError: as `check`.
        """
        if self.lost.is_set():
            raise LeaseLostError("another worker holds it, or it was cancelled", where=self.job.audit_id)
        if self.stop.is_set():
            raise StopRequestedError

    def renew(self) -> None:
        """Count the lease from now.

        Raises:
            LeaseLostError: another worker holds the job, or it was cancelled.
        """
        with self.store.transaction(writes=True) as connection:
            jobs.renew(connection, self.job, self.terms)

    def steps(self) -> list[bytes]:
        """What the steps so far made, in order, whoever ran them."""
        with self.store.transaction() as connection:
            return jobs.checkpoints(connection, self.job.audit_id)

    def save(self, step: int, output: bytes, progress: dict[str, Any]) -> None:
        """Keep what a step made; committed when this returns.

        Raises:
            LeaseLostError: another worker holds the job, or it was cancelled.
        """
        with self.store.transaction(writes=True) as connection:
            jobs.save_checkpoint(connection, self.job, step, output, progress, self.terms)


class Worker(Loop):
    """Works on audit jobs.

    Args:
        work: what is done for a job. The others are `Loop`'s.
    """

    logger = logger

    def __init__(
        self,
        store: Store,
        work: Work,
        *,
        terms: Terms | None = None,
        name: str | None = None,
        poll_seconds: float = 0.5,
        stall_seconds: float = 900.0,
    ) -> None:
        super().__init__(
            store, terms=terms, name=name, poll_seconds=poll_seconds, stall_seconds=stall_seconds
        )
        self.work = work

    def run_once(self) -> bool:
        """Claim one job and work on it."""
        with self.store.transaction() as connection:
            if not jobs.any_due(connection):
                return False
        with self.store.transaction(writes=True) as connection:
            job = jobs.claim(connection, self.name, self.terms)
        if job is None:
            return False
        lease = Lease(self.store, job, self.terms, self.stopping)
        with renewing(lease, self.stall_seconds), self._traced(job):
            self.attempt(job, partial(self._finish, lease))
        return True

    @contextmanager
    def _traced(self, job: Job) -> Iterator[None]:
        """A span for the job, in the trace in which it was ordered."""
        if not tracing.is_on():
            yield
            return
        with self.store.transaction() as connection:
            ordered = jobs.traceparent(connection, job.audit_id)
        with tracing.span(
            "audit",
            kind="consumer",
            parent=ordered,
            audit=job.audit_id,
            tenant=job.tenant_id,
            attempts=job.attempts,
            lost_leases=job.lost_leases,
        ) as tell:
            yield
            with self.store.transaction() as connection:
                tell("auditor.state", jobs.state(connection, job.audit_id))

    def _finish(self, lease: Lease) -> None:
        effects = self.work(lease.job, lease)
        with tracing.span("audit finish"), self.store.transaction(writes=True) as connection:
            effects(connection, jobs.finish(connection, lease.job))

    def hand_back(self, job: Job) -> None:
        """As `jobs.hand_back`."""
        with self.store.transaction(writes=True) as connection:
            jobs.hand_back(connection, job)

    def record_failure(self, job: Job, *, code: str, error: str, chance: float, final: bool) -> None:
        """As `jobs.fail`."""
        with self.store.transaction(writes=True) as connection:
            jobs.fail(connection, job, self.terms, code=code, error=error, chance=chance, final=final)


class Held(Protocol):
    """A hold on a piece of work that must be renewed while it lasts."""

    job: Job
    terms: Terms
    lost: threading.Event
    moved: float

    def renew(self) -> None:
        """Count the lease from now, or raise LeaseLostError."""


class renewing:  # noqa: N801  # used as a word in a `with` line
    """Renew a lease in a thread for as long as the block lasts and the work moves."""

    def __init__(self, lease: Held, stall_seconds: float) -> None:
        self._lease, self._stall_seconds = lease, stall_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        lease = self._lease
        while not self._done.wait(lease.terms.lease_seconds / RENEWALS_A_LEASE):
            if time.monotonic() - lease.moved > self._stall_seconds:
                logger.error("%s: no progress; the lease is given up", lease.job.audit_id)
                lease.lost.set()
                return
            try:
                lease.renew()
            except LeaseLostError:
                lease.lost.set()
                return
            except StoreError as error:  # it may come back before the lease ends
                logger.warning("%s: cannot renew the lease: %s", lease.job.audit_id, error)
