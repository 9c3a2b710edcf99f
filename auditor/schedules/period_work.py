"""What a slot asks for, in steps, each committed; whoever holds the lease goes on where the last one stopped.

1. *Cut.* The period's number and logs are fixed and the seed of its sample is drawn, in one transaction: from
   then on nothing that anybody does decides what is looked at.
2. *Sample.* A function of what was cut (`sampling.py`); the sample is ordered as an ordinary audit.
3. *Judge*, once that audit has ended: the standing of the provider, and the verdict on it. Where periods
   convict only together, what they have in common is explained first.
4. *Report* on the time since the last period was judged; end the slot, and tell whoever is to be told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from auditor.errors import AuditError
from auditor.profile import Profile, ProfileKey
from auditor.reports import Policy as ReportPolicy
from auditor.reports import make_report, report_id
from auditor.schedules import periods, sampling, schedules, slots
from auditor.schedules.explaining import causes_together
from auditor.schedules.judging import FINGERPRINT
from auditor.schedules.shares import level
from auditor.service import audits, erasure
from auditor.service.errors import LeaseLostError
from auditor.service.loop import StopRequestedError
from auditor.service.queue import UNFINISHED, Job, Terms
from auditor.store import Store
from auditor.trace_files import read_traces

if TYPE_CHECKING:
    from auditor.replay import Reference
    from auditor.schedules.policy import Policy
    from auditor.schedules.sampling import FindProfile, Kind
    from auditor.schedules.slots import Slot
    from auditor.service.audits import TraceLog
    from auditor.service.blobs import Blobs
    from auditor.trace import Trace

_WHOLE_TOKENS = 1000
"""A population so small is audited whole: planning would cost more."""


@dataclass
class SlotLease:
    """A worker's hold on a slot."""

    store: Store
    job: Job
    terms: Terms
    stop: threading.Event
    lost: threading.Event = field(default_factory=threading.Event)
    moved: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Say that there is progress, and stop if there is no point in going on.

        Raises:
            LeaseLostError: another worker holds the slot.
            StopRequestedError: the worker is to stop.
        """
        self.moved = time.monotonic()
        if self.lost.is_set():
            raise LeaseLostError("another worker holds it", where=self.job.audit_id)
        if self.stop.is_set():
            raise StopRequestedError

    def renew(self) -> None:
        """Count the lease from now.

        Raises:
            LeaseLostError: another worker holds the slot.
        """
        with self.store.transaction(writes=True) as connection:
            slots.renew(connection, self.job, self.terms)


class PeriodWork:
    """Works on slots beside one model.

    Args:
        reference: whose profiles the plan rests on; the audits find theirs themselves.
    """

    def __init__(self, blobs: Blobs, reference: Reference, find_profile: FindProfile) -> None:
        self._blobs, self._reference, self._find_profile = blobs, reference, find_profile

    def __call__(self, lease: SlotLease) -> None:
        """Do what can be done now: up to the audit, or from its end to the slot's.

        Raises:
            LeaseLostError, StopRequestedError: see `SlotLease`.
        """
        store, job = lease.store, lease.job
        with store.transaction() as connection:
            slot = slots.find(connection, job.tenant_id, job.audit_id)
            schedule = schedules.find(connection, slot.tenant_id, slot.schedule_id)
            policy = schedules.find_policy(connection, slot.tenant_id, schedule.policy_digest)
        if slot.number is None:
            with store.transaction(writes=True) as connection:
                periods.cut(connection, job, policy)
                slot = slots.find(connection, job.tenant_id, job.audit_id)
        if slot.drawn is None:
            self._sample(lease, slot, policy)
        with store.transaction(writes=True) as connection:
            slot = slots.held(connection, job)
            if slot.audit_id is not None:
                audit = audits.find(connection, slot.tenant_id, slot.audit_id)
                if audit.state in UNFINISHED:
                    slots.hand_back(connection, job)
                    return
            open_audits = periods.unexplained(connection, slot, policy)
        lease.check()
        causes = causes_together(
            open_audits, store, self._blobs, self._reference, self._find_profile, lease.check
        )
        with store.transaction(writes=True) as connection:
            periods.judge(connection, job, policy, causes)
            slot = slots.find(connection, job.tenant_id, job.audit_id)
        lease.check()
        made = self._report(store, slot, policy)
        with store.transaction(writes=True) as connection:
            periods.close(connection, job, policy, made)

    def _sample(self, lease: SlotLease, slot: Slot, policy: Policy) -> None:
        with lease.store.transaction() as connection:
            logs = periods.logs_of(connection, slot)
            taken = periods.audited_contents(connection, slot)

        def items() -> Iterator[Trace | AuditError]:
            return self._read(logs, lease)

        population = sampling.population_of(items, slot.provider, policy, taken)
        if not population.candidates:
            with lease.store.transaction(writes=True) as connection:
                periods.note_empty(connection, lease.job, population)
            return
        drawn = sampling.draw(items, population, self._budget(slot, policy, population), slot.seed or "")
        digest = self._blobs.put(drawn.log)
        with lease.store.transaction(writes=True) as connection:
            # Where the same bytes were just erased they are put again, under the lock of that.
            erasure.keep(connection, digest, self._blobs, lambda: self._blobs.put(drawn.log))
            periods.order(connection, lease.job, policy, population, drawn, digest)

    def _read(self, logs: list[TraceLog], lease: SlotLease) -> Iterator[Trace | AuditError]:
        for log in logs:
            try:
                for item in read_traces(self._blobs.path(log.digest), label=log.name or log.id):
                    lease.check()
                    yield item
            except AuditError as error:  # a file that is no log at all counts as one bad line
                if isinstance(error, LeaseLostError):
                    raise
                yield error
            finally:
                self._blobs.release(log.digest)

    def _budget(self, slot: Slot, policy: Policy, population: sampling.Population) -> int:
        """Output tokens to draw: what the plan needs, enlarged as the budget was, and the budget at most."""
        most = slot.budget_tokens or policy.budget_tokens
        if population.tokens <= _WHOLE_TOKENS:
            return most
        planned = sampling.planned_tokens(
            population.kinds, policy, level(policy.alpha, slot.number or 1), self._profile_of
        )
        if planned is None:
            return most
        return min(most, max(1, round(planned * most / policy.budget_tokens)))

    def _profile_of(self, kind: Kind) -> Profile | None:
        recipe, family, _ = kind
        if recipe is None:
            return None
        key = ProfileKey(self._reference.model.digest, recipe, self._reference.recipe, family)
        return self._find_profile(key)

    def _report(self, store: Store, slot: Slot, policy: Policy) -> str:
        start, end = slot.period_start or 0, slot.period_end or 0
        rules = report_policy(policy)
        make_report(store, slot.tenant_id, slot.provider, start, end, rules)
        return report_id(slot.tenant_id, slot.provider, start, end, rules)


def report_policy(policy: Policy) -> ReportPolicy:
    """The policy as reports print it."""
    return ReportPolicy(
        name=policy.name,
        version=policy.version,
        approved_by=policy.approved_by,
        alpha=policy.alpha,
        minimum_power=policy.minimum_power,
        must_detect=policy.must_detect,
        evidence=tuple(name for name in policy.evidence if name != FINGERPRINT),
        signed_profiles=policy.signed_profiles,
        largest_fraction=policy.largest_fraction,
        budget_tokens=policy.budget_tokens,
    )
