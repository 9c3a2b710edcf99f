"""Jobs on real databases: what two workers at once, a dead one and a paused one may and may not do."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from auditor.errors import StoreError, TraceFileError
from auditor.service import audits, jobs, tenants
from auditor.service.audits import AuditOptions
from auditor.service.errors import ConflictError, LeaseLostError, NotFoundError
from auditor.service.queue import Terms
from auditor.service.worker import Worker
from auditor.store import Store

SHORT = Terms(lease_seconds=0.4, most_attempts=2, most_lost_leases=2, backoff_seconds=0)


@pytest.fixture
def store(database_url):
    with Store.open(database_url) as store:
        yield store


def new_tenant(store, name="acme", **limits):
    with store.transaction(writes=True) as connection:
        return tenants.create_tenant(connection, name, **limits)


def order(store, tenant, digest="sha256:" + "0" * 64):
    with store.transaction(writes=True) as connection:
        log = audits.keep_log(connection, tenant.id, digest, "log.jsonl", 7)
        return audits.submit(connection, log, AuditOptions())


def look(store, tenant, audit_id):
    with store.transaction() as connection:
        return audits.find(connection, tenant.id, audit_id)


def claim(store, terms=SHORT):
    with store.transaction(writes=True) as connection:
        return jobs.claim(connection, "w", terms)


def told(store, tenant, audit_id):
    with store.transaction() as connection:
        return [e.kind for e in audits.events(connection, tenant.id, audit_id, after=0, limit=99)]


def counting(found=b"{}"):
    """Work of three steps, which says how often each ran, and an effect."""
    ran = []

    def work(job, lease):
        with lease.store.transaction() as connection:
            audit = audits.find(connection, job.tenant_id, job.audit_id)
        for step in range(len(lease.steps()), 3):
            lease.check()
            ran.append(step)
            lease.save(step, b"%d" % step, {"step": step})
        return lambda connection, now: audits.record(connection, audit, found, "inconclusive", [b"{}"], now)

    return work, ran


def test_a_job_is_done_once_and_told_step_by_step(store):
    tenant = new_tenant(store)
    audit_id = order(store, tenant)
    work, ran = counting()
    worker = Worker(store, work, terms=SHORT)
    assert worker.run_once()
    assert not worker.run_once()
    audit = look(store, tenant, audit_id)
    assert (audit.state, audit.outcome, ran) == ("done", "inconclusive", [0, 1, 2])
    assert told(store, tenant, audit_id) == ["queued", "running", *["progress"] * 3, "done"]


def test_of_many_claims_at_once_each_job_goes_to_one(store):
    tenant = new_tenant(store, most_running=100)
    ordered = {order(store, tenant) for _ in range(12)}

    def take_until_none(_):
        taken, misses = [], 0
        while misses < 10:
            job = claim(store, Terms())
            if job is None:
                misses += 1
                time.sleep(0.01)
            else:
                taken.append(job.audit_id)
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [audit_id for mine in pool.map(take_until_none, range(4)) for audit_id in mine]
    assert sorted(taken) == sorted(ordered)


def test_a_tenant_runs_no_more_than_it_may_and_does_not_stand_in_anothers_way(store):
    greedy, other = new_tenant(store, most_running=2), new_tenant(store, "other")
    for _ in range(4):
        order(store, greedy)
    theirs = order(store, other)
    with ThreadPoolExecutor(4) as pool:
        first = [job for job in pool.map(lambda _: claim(store, Terms()), range(8)) if job]
    while job := claim(store, Terms()):
        first.append(job)
    assert sorted(job.tenant_id for job in first) == sorted([greedy.id, greedy.id, other.id])
    assert theirs in {job.audit_id for job in first}


def test_a_silent_worker_is_replaced_after_its_lease_and_the_next_goes_on_with_its_steps(store):
    tenant = new_tenant(store)
    audit_id = order(store, tenant)
    silent = claim(store)
    with store.transaction(writes=True) as connection:
        jobs.save_checkpoint(connection, silent, 0, b"0", {}, SHORT)
    assert claim(store) is None
    started = time.monotonic()
    work, ran = counting()
    worker = Worker(store, work, terms=SHORT)
    while not worker.run_once():
        time.sleep(0.02)
    assert time.monotonic() - started < SHORT.lease_seconds + 1.0
    assert ran == [1, 2]
    assert look(store, tenant, audit_id).lost_leases == 1


def test_a_worker_that_wakes_after_its_lease_writes_nothing(store):
    tenant = new_tenant(store)
    audit_id = order(store, tenant)
    zombie = claim(store)
    time.sleep(SHORT.lease_seconds + 0.05)
    heir = claim(store)
    assert heir.token > zombie.token
    before = told(store, tenant, audit_id)
    attempts = (
        lambda c: jobs.renew(c, zombie, SHORT),
        lambda c: jobs.save_checkpoint(c, zombie, 0, b"stale", {}, SHORT),
        lambda c: jobs.finish(c, zombie),
        lambda c: jobs.fail(c, zombie, SHORT, code="x", error="y", chance=0.5, final=True),
        lambda c: jobs.hand_back(c, zombie),
    )
    for attempt in attempts:
        with pytest.raises(LeaseLostError), store.transaction(writes=True) as connection:
            attempt(connection)
    assert told(store, tenant, audit_id) == before
    with store.transaction() as connection:
        assert jobs.checkpoints(connection, audit_id) == []


def test_a_job_that_kills_its_workers_is_quarantined(store):
    tenant = new_tenant(store)
    audit_id = order(store, tenant)
    for _ in range(SHORT.most_lost_leases):
        assert claim(store) is not None
        time.sleep(SHORT.lease_seconds + 0.05)
    assert claim(store) is None
    audit = look(store, tenant, audit_id)
    assert (audit.state, audit.error_code) == ("quarantined", "lease-lost")
    assert told(store, tenant, audit_id)[-1] == "quarantined"
    assert claim(store) is None


def failing_with(error):
    def work(_job, _lease):
        raise error

    return work


def test_an_error_that_may_pass_is_tried_again_and_the_last_one_is_shown(store):
    tenant = new_tenant(store)
    audit_id = order(store, tenant)
    worker = Worker(store, failing_with(ZeroDivisionError("secret prompt")), terms=SHORT)
    assert worker.run_once()
    assert look(store, tenant, audit_id).state == "queued"
    assert worker.run_once()
    audit = look(store, tenant, audit_id)
    assert (audit.state, audit.error_code, audit.error) == ("dead", "internal", "ZeroDivisionError")
    assert told(store, tenant, audit_id) == ["queued", "running", "retry", "running", "dead"]


def test_unusable_input_is_not_tried_again(store):
    tenant = new_tenant(store)
    audit_id = order(store, tenant)
    assert Worker(store, failing_with(TraceFileError("is empty")), terms=SHORT).run_once()
    audit = look(store, tenant, audit_id)
    assert (audit.state, audit.error_code, audit.attempts) == ("dead", "trace-file", 1)


def test_a_cancelled_job_takes_nothing_more_from_its_worker(store):
    tenant = new_tenant(store)
    audit_id = order(store, tenant)

    def work(_job, lease):
        with store.transaction(writes=True) as connection:
            audits.cancel(connection, tenant.id, audit_id)
        lease.save(0, b"late", {})

    assert Worker(store, work, terms=SHORT).run_once()
    audit = look(store, tenant, audit_id)
    assert (audit.state, audit.outcome) == ("cancelled", None)
    assert told(store, tenant, audit_id) == ["queued", "running", "cancelled"]
    with store.transaction(writes=True) as connection:
        audits.cancel(connection, tenant.id, audit_id)
    assert told(store, tenant, audit_id) == ["queued", "running", "cancelled"]


def test_what_is_done_cannot_be_cancelled_nor_another_tenants_audit_at_all(store):
    tenant, other = new_tenant(store), new_tenant(store, "other")
    audit_id = order(store, tenant)
    with pytest.raises(NotFoundError), store.transaction(writes=True) as connection:
        audits.cancel(connection, other.id, audit_id)
    work, _ = counting()
    Worker(store, work, terms=SHORT).run_once()
    with pytest.raises(ConflictError), store.transaction(writes=True) as connection:
        audits.cancel(connection, tenant.id, audit_id)


def test_a_long_step_keeps_its_lease_and_a_stalled_one_loses_it(store):
    tenant = new_tenant(store)
    audit_id = order(store, tenant)

    def slow(_job, lease):
        time.sleep(2.5 * SHORT.lease_seconds)
        lease.check()
        return lambda _connection, _now: None

    assert Worker(store, slow, terms=SHORT).run_once()
    assert look(store, tenant, audit_id).state == "done"
    stalled = order(store, tenant)
    assert Worker(store, slow, terms=SHORT, stall_seconds=0.1).run_once()
    assert look(store, tenant, stalled).state == "running"
    with store.transaction(writes=True) as connection:
        assert jobs.claim(connection, "next", SHORT).lost_leases == 1


def test_a_worker_told_to_stop_hands_its_job_back(store):
    tenant = new_tenant(store)
    audit_id = order(store, tenant)
    begun = threading.Event()

    def patient(_job, lease):
        begun.set()
        while True:
            lease.check()
            time.sleep(0.01)

    worker = Worker(store, patient, terms=SHORT, poll_seconds=0.01)
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert begun.wait(5)
    worker.stop()
    thread.join(5)
    audit = look(store, tenant, audit_id)
    assert (audit.state, audit.attempts, audit.lost_leases) == ("queued", 0, 0)


def test_an_order_that_is_not_committed_leaves_nothing(store):
    tenant = new_tenant(store)
    with pytest.raises(KeyError), store.transaction(writes=True) as connection:
        log = audits.keep_log(connection, tenant.id, "sha256:" + "1" * 64, "x", 1)
        audits.submit(connection, log, AuditOptions())
        raise KeyError
    with store.transaction() as connection:
        assert audits.listed(connection, tenant.id, after=None, limit=9) == []
    assert claim(store) is None


def test_effects_and_the_jobs_end_are_one(store):
    tenant = new_tenant(store)
    audit_id = order(store, tenant)

    def work(_job, _lease):
        def effects(connection, now):
            audits.record(connection, look(store, tenant, audit_id), b"{}", "inconclusive", [], now)
            raise StoreError("the disk is full")

        return effects

    assert Worker(store, work, terms=SHORT).run_once()
    audit = look(store, tenant, audit_id)
    assert (audit.state, audit.outcome) == ("queued", None)
