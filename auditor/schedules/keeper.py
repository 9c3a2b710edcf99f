"""The timetable's loop, run by every worker: fire what is due, work on slots, empty the outbox for mail.

Any number of keepers may run; rows, leases and fencing tokens keep them out of each other's way.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from auditor.errors import AuditError, StoreError, UnusableInputError
from auditor.schedules import alerts, mail, schedules, slots
from auditor.schedules.period_work import PeriodWork, SlotLease
from auditor.service.errors import LeaseLostError
from auditor.service.queue import UNFINISHED, Job, Terms
from auditor.service.worker import StopRequestedError, renewing

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.schedules.mail import MailServer
    from auditor.store import Store

logger = logging.getLogger("auditor.schedules")


class Keeper:
    """Keeps one database's timetable; `run` blocks.

    Args:
        terms: as of the workers of the same database.
        server: takes mail; None where letters wait for another keeper.
        poll_seconds: rest between two looks when nothing is due.
        stall_seconds: a slot without progress for so long is given up: its lease is no longer renewed.
    """

    def __init__(
        self,
        store: Store,
        work: PeriodWork,
        *,
        terms: Terms | None = None,
        server: MailServer | None = None,
        name: str | None = None,
        poll_seconds: float = 1.0,
        stall_seconds: float = 3600.0,
    ) -> None:
        self._store, self._work, self._server = store, work, server
        self._terms = terms or Terms()
        self._name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._poll_seconds, self._stall_seconds = poll_seconds, stall_seconds
        self.stopping = threading.Event()

    def stop(self) -> None:
        """Hand the slot in hand back and end `run`."""
        self.stopping.set()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Keep it in a thread of its own for as long as the block lasts."""
        thread = threading.Thread(target=self.run, name="keeper")
        thread.start()
        try:
            yield
        finally:
            self.stop()
            thread.join()

    def run(self) -> None:
        """Keep it until told to stop; a database that goes away is waited for."""
        while not self.stopping.is_set():
            try:
                busy = self.run_once()
            except StoreError as error:
                logger.warning("database: %s", error)
                busy = False
            if not busy:
                self.stopping.wait(self._poll_seconds)

    def run_once(self) -> bool:
        """One round; False when nothing was due.

        Raises:
            StoreError: the database refused.
        """
        with self._store.transaction() as connection:
            fires, works = schedules.is_due(connection), slots.is_due(connection)
        if fires:
            with self._store.transaction(writes=True) as connection:
                schedules.fire_due(connection)
        worked = works and self._work_on_one()
        chance = random.random()  # noqa: S311  # jitter
        sent = self._server is not None and mail.deliver_one(self._store, self._server, chance)
        return fires or worked or sent

    def _work_on_one(self) -> bool:
        with self._store.transaction(writes=True) as connection:
            job = slots.claim(connection, self._name, self._terms)
            if job is not None and job.state != "running":
                _tell_given_up(connection, job)
                return True
        if job is None:
            return False
        lease = SlotLease(self._store, job, self._terms, self.stopping)
        with renewing(lease, self._stall_seconds):
            try:
                self._do(lease)
            except LeaseLostError:
                logger.warning("%s: the lease was lost; nothing more is written", job.audit_id)
        return True

    def _do(self, lease: SlotLease) -> None:
        job = lease.job
        try:
            self._work(lease)
        except LeaseLostError:
            raise
        except StopRequestedError:
            with self._store.transaction(writes=True) as connection:
                slots.hand_back(connection, job)
        except AuditError as error:
            self._fail(job, error.code, str(error), final=isinstance(error, UnusableInputError))
        except Exception as error:  # a slot must not end its keeper; the traceback goes to the log
            logger.exception("%s", job.audit_id)
            self._fail(job, "internal", type(error).__name__, final=False)

    def _fail(self, job: Job, code: str, error: str, *, final: bool) -> None:
        logger.warning("%s: %s", job.audit_id, code)
        chance = random.random()  # noqa: S311  # jitter
        told = {"code": code, "error": error, "chance": chance, "final": final}
        with self._store.transaction(writes=True) as connection:
            after = slots.fail(connection, job, self._terms, **told)  # type: ignore[arg-type]
            if after.state in UNFINISHED:
                return
            _tell_given_up(connection, job)


def _tell_given_up(connection: Connection, job: Job) -> None:
    slot = slots.find(connection, job.tenant_id, job.audit_id)
    schedule = schedules.find(connection, slot.tenant_id, slot.schedule_id)
    policy = schedules.find_policy(connection, slot.tenant_id, schedule.policy_digest)
    alerts.given_up(connection, slot, policy)
