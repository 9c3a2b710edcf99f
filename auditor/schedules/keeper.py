"""The timetable's loop, run by every worker: fire what is due, work on slots, empty the outbox for mail.

Any number of keepers may run; rows, leases and fencing tokens keep them out of each other's way.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from auditor.schedules import alerts, mail, schedules, slots
from auditor.schedules.period_work import PeriodWork, SlotLease
from auditor.service.loop import Loop
from auditor.service.queue import UNFINISHED, Job, Terms
from auditor.service.worker import renewing

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from auditor.schedules.mail import MailServer
    from auditor.store import Store

logger = logging.getLogger("auditor.schedules")


class Keeper(Loop):
    """Keeps one database's timetable.

    Args:
        work: what is done for a slot.
        server: takes mail; None where letters wait for another keeper. The others are `Loop`'s.
    """

    logger = logger

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
        super().__init__(
            store, terms=terms, name=name, poll_seconds=poll_seconds, stall_seconds=stall_seconds
        )
        self._work, self._server = work, server

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

    def run_once(self) -> bool:
        """One round."""
        with self.store.transaction() as connection:
            fires, works = schedules.is_due(connection), slots.is_due(connection)
        if fires:
            with self.store.transaction(writes=True) as connection:
                schedules.fire_due(connection)
        worked = works and self._work_on_one()
        chance = random.random()  # noqa: S311  # jitter
        sent = self._server is not None and mail.deliver_one(self.store, self._server, chance)
        return fires or worked or sent

    def _work_on_one(self) -> bool:
        with self.store.transaction(writes=True) as connection:
            job = slots.claim(connection, self.name, self.terms)
            if job is not None and job.state != "running":
                _tell_given_up(connection, job)
                return True
        if job is None:
            return False
        lease = SlotLease(self.store, job, self.terms, self.stopping)
        with renewing(lease, self.stall_seconds):
            self.attempt(job, partial(self._work, lease))
        return True

    def hand_back(self, job: Job) -> None:
        """As `slots.hand_back`."""
        with self.store.transaction(writes=True) as connection:
            slots.hand_back(connection, job)

    def record_failure(self, job: Job, *, code: str, error: str, chance: float, final: bool) -> None:
        """As `slots.fail`; those who subscribed are told of a slot that is given up."""
        with self.store.transaction(writes=True) as connection:
            after = slots.fail(
                connection, job, self.terms, code=code, error=error, chance=chance, final=final
            )
            if after.state not in UNFINISHED:
                _tell_given_up(connection, job)


def _tell_given_up(connection: Connection, job: Job) -> None:
    slot = slots.find(connection, job.tenant_id, job.audit_id)
    schedule = schedules.find(connection, slot.tenant_id, slot.schedule_id)
    policy = schedules.find_policy(connection, slot.tenant_id, schedule.policy_digest)
    alerts.given_up(connection, slot, policy)
