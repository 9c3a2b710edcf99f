"""A worker process for kill tests: real queue, real database, and work that takes a few committed steps."""

from __future__ import annotations

import hashlib
import signal
import time

from auditor.service import audits
from auditor.service.queue import Terms
from auditor.service.worker import Worker
from auditor.store import Store

STEPS = 4


def output_of(digest, step):
    """What a step makes: a function of what was committed, and nothing else."""
    return hashlib.sha256(f"{digest} {step}".encode()).digest()


def verdict_of(digest):
    """The bytes that the steps together make."""
    return b"".join(output_of(digest, step) for step in range(STEPS)).hex().encode()


def new_work(step_seconds):
    def work(job, lease):
        with lease.store.transaction() as connection:
            audit = audits.find(connection, job.tenant_id, job.audit_id)
        done = lease.steps()
        for step in range(len(done), STEPS):
            lease.check()
            time.sleep(step_seconds)
            done.append(output_of(audit.log.digest, step))
            lease.save(step, done[-1], {"step": step})
        body = b"".join(done).hex().encode()
        return lambda c, now: audits.record(c, audit, body, "inconclusive", [b"{}"] * STEPS, now)

    return work


def run(told, url, lease_seconds, step_seconds):
    """Be a worker; says "up" when it looks for work."""
    with Store.open(url) as store:
        terms = Terms(lease_seconds=lease_seconds, most_lost_leases=1000)
        worker = Worker(store, new_work(step_seconds), terms=terms, poll_seconds=0.05)
        signal.signal(signal.SIGTERM, lambda *_: worker.stop())
        told.send("up")
        worker.run()
