r"""The job queue's rules: pure transitions of one job. No database, no clock, no randomness.

    queued --claim--> running --finish--> done
       ^                 |  \--fail-----> dead (attempts used up, or an error that will not go away)
       |--fail, retried--|  \--claim, when leases were lost too often--> quarantined
    queued, running --cancel--> cancelled

Invariants:

1. every claim raises the token, and so does a cancellation; whoever writes about a running job must hold the
   newest token (a fencing token), so a worker that was paused past its lease can write nothing;
2. a job is claimed when it is due, or when its lease has ended; a lease that ended without a word is *lost*;
3. a job whose workers lost `most_lost_leases` leases is quarantined: it may be what kills them;
4. done, dead, quarantined and cancelled are final.

Steps of a job run at least once; their effects are recorded exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from auditor.service.errors import ConflictError, LeaseLostError

State = Literal["queued", "running", "done", "dead", "quarantined", "cancelled"]
UNFINISHED: tuple[State, ...] = ("queued", "running")
SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class Terms:
    """What workers agree on.

    Attributes:
        lease_seconds: how long a claim lasts without a renewal.
        most_attempts: claims that ended in an error before the job is dead.
        most_lost_leases: leases lost before the job is quarantined.
        backoff_seconds: before the second attempt at most; doubles each time, up to `longest_backoff`.
    """

    lease_seconds: float = 30.0
    most_attempts: int = 5
    most_lost_leases: int = 3
    backoff_seconds: float = 2.0
    longest_backoff: float = 600.0


@dataclass(frozen=True, slots=True)
class Job:
    """One audit's work. Times are microseconds since 1970.

    Attributes:
        attempts: claims that ended in an error.
        token: of the newest claim; 0 before the first.
    """

    audit_id: str
    tenant_id: str
    run_at: int
    state: State = "queued"
    attempts: int = 0
    lost_leases: int = 0
    token: int = 0
    lease_until: int | None = None
    worker: str | None = None
    error_code: str | None = None
    error: str | None = None
    finished: int | None = None


def is_due(job: Job, now: int) -> bool:
    """Whether a worker may claim it."""
    if job.state == "queued":
        return job.run_at <= now
    return job.state == "running" and job.lease_until is not None and job.lease_until <= now


def claim(job: Job, worker: str, now: int, terms: Terms) -> Job:
    """The job in the hands of a worker, or in quarantine.

    Raises:
        ConflictError: it is not due.
    """
    if not is_due(job, now):
        raise ConflictError(f"{job.audit_id} is not due: {job.state}")
    lost = job.lost_leases + (job.state == "running")
    if lost >= terms.most_lost_leases:
        what = f"{lost} workers in a row died or stalled over it"
        ended = _ended(job, "quarantined", now, code="lease-lost", error=what)
        return replace(ended, lost_leases=lost, token=job.token + 1)
    return replace(
        job,
        state="running",
        lost_leases=lost,
        token=job.token + 1,
        lease_until=now + round(terms.lease_seconds * SECOND),
        worker=worker,
    )


def renew(job: Job, token: int, now: int, terms: Terms) -> Job:
    """The job with its lease counted from now.

    Raises:
        LeaseLostError: somebody else holds it.
    """
    _check_holder(job, token)
    return replace(job, lease_until=now + round(terms.lease_seconds * SECOND))


def finish(job: Job, token: int, now: int) -> Job:
    """The job, done.

    Raises:
        LeaseLostError: somebody else holds it.
    """
    _check_holder(job, token)
    return _ended(job, "done", now)


def fail(
    job: Job, token: int, now: int, terms: Terms, *, code: str, error: str, chance: float, final: bool
) -> Job:
    """The job after an error: queued again for later, or dead.

    Args:
        job, token, now, terms: as for `renew`.
        code, error: of what went wrong.
        chance: uniform in [0, 1): full jitter, so that jobs that failed together do not come back together.
        final: trying again would not help.

    Raises:
        LeaseLostError: somebody else holds it.
    """
    _check_holder(job, token)
    attempts = job.attempts + 1
    if final or attempts >= terms.most_attempts:
        return replace(_ended(job, "dead", now, code=code, error=error), attempts=attempts)
    longest = min(terms.longest_backoff, terms.backoff_seconds * 2.0 ** (attempts - 1))
    return replace(
        job,
        state="queued",
        attempts=attempts,
        run_at=now + round(chance * longest * SECOND),
        lease_until=None,
        worker=None,
        error_code=code,
        error=error,
    )


def hand_back(job: Job, token: int, now: int) -> Job:
    """The job of a worker that was told to stop: due at once, and no failure of the job's.

    Raises:
        LeaseLostError: somebody else holds it.
    """
    _check_holder(job, token)
    return replace(job, state="queued", run_at=now, lease_until=None, worker=None)


def cancel(job: Job, now: int) -> Job:
    """The job, cancelled; a worker that holds it can write nothing more.

    Raises:
        ConflictError: it has ended already, otherwise than by a cancellation.
    """
    if job.state == "cancelled":
        return job
    if job.state not in UNFINISHED:
        raise ConflictError(f"the audit has ended: {job.state}", where=job.audit_id)
    return replace(_ended(job, "cancelled", now), token=job.token + 1)


def _check_holder(job: Job, token: int) -> None:
    if job.state != "running" or job.token != token:
        raise LeaseLostError(f"token {token} is not the newest, which is {job.token}", where=job.audit_id)


def _ended(job: Job, state: State, now: int, *, code: str | None = None, error: str | None = None) -> Job:
    return replace(
        job, state=state, lease_until=None, worker=None, finished=now, error_code=code, error=error
    )
