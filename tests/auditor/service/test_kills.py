"""Workers that are killed, stopped and woken, as real processes on real databases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

from auditor.service import audits, tenants
from auditor.service.audits import AuditOptions
from auditor.service.log_placing import open_log, place
from auditor.store import Store
from tests.auditor.service.kills import (
    Crew,
    Server,
    check_invariants,
    check_log,
    oversleeping,
    rows,
    soak,
    takeovers,
)
from tests.auditor.service.processes import start_worker

LEASE = 1.0


@pytest.fixture
def store(database_url):
    with Store.open(database_url) as store:
        yield store


@pytest.fixture
def submit(store):
    with store.transaction(writes=True) as connection:
        tenant = tenants.create_tenant(connection, "acme", most_running=100)

    def one(number):
        with store.transaction(writes=True) as connection:
            log = audits.keep_log(connection, tenant.id, f"sha256:{number:064x}", "log", 1)
            return audits.submit(connection, log, AuditOptions())

    return one


def wait_for(store, sql, wanted, seconds=60):
    deadline = time.monotonic() + seconds
    while (found := rows(store, sql)[0][0]) != wanted:
        assert time.monotonic() < deadline, f"{found} is not {wanted}: {sql}"
        time.sleep(0.02)


def test_random_kills_lose_nothing_do_nothing_twice_and_fork_no_log(store, database_url, tmp_path):
    kills = int(os.environ.get("AUDITOR_SOAK_KILLS", "25"))
    with store.transaction(writes=True) as connection:
        tenant = tenants.create_tenant(connection, "acme", most_running=2)
        _, key = tenants.create_key(connection, tenant.id, "k", ["audits:write"], days=1)
    server, crew = Server(database_url, tmp_path / "blobs"), Crew(database_url, 4, lease=LEASE, step=0.2)
    bounds = {"jobs": 12, "kills": kills, "seconds": 60 + 6 * kills}
    with oversleeping() as worst:
        acknowledged, made = soak(store, database_url, server, key, crew=crew, seed=9, **bounds)
    assert made == kills
    check_invariants(store, acknowledged)
    assert len(acknowledged) == rows(store, "SELECT count(*) FROM audit")[0][0], "ordered twice"
    log = open_log(tmp_path / "log", tmp_path / "log.key")
    place(store, log)
    check_log(store, log.folder, server.heads)
    waits = takeovers(store, crew.killed) or [0.0]
    lost = rows(store, "SELECT sum(lost_leases) FROM job")[0][0]
    print(
        f"{made} kills, {server.kills - 1} of the server, {len(acknowledged)} jobs, {lost} leases lost;"
        f" {len(waits)} takeovers, median {median(waits):.2f} s, longest {waits[-1]:.2f} s,"
        f" the machine up to {worst[0]:.2f} s late;"
        f" {len(set(server.heads))} heads seen"
    )
    assert waits[-1] <= LEASE + 1.0 + worst[0], "nobody took over for too long"
    assert lost > made / 3, "the kills hit nobody at work"
    assert server.kills > made / 4, "the kills hit the server seldom"
    assert len(set(server.heads)) > 1


def test_a_killed_workers_job_goes_on_within_its_lease_and_a_second(store, database_url, submit):
    audit_id = submit(1)
    first = start_worker(database_url, lease=LEASE, step=4.0)
    wait_for(store, "SELECT count(*) FROM checkpoint", 1)
    second = start_worker(database_url, lease=LEASE, step=0.01)
    assert second.is_up(60)
    first.kill()
    killed = time.time()
    try:
        wait_for(store, "SELECT count(*) FROM verdict", 1)
    finally:
        second.kill()
    check_invariants(store, {audit_id})
    claims = rows(store, "SELECT created FROM event WHERE kind = 'running' ORDER BY sequence")
    assert len(claims) == 2
    assert claims[1][0] / 1e6 - killed <= LEASE + 1.0


def test_a_stopped_worker_that_wakes_after_its_lease_writes_nothing(store, database_url, submit):
    audit_id = submit(1)
    zombie = start_worker(database_url, lease=LEASE, step=0.3)
    wait_for(store, "SELECT count(*) FROM checkpoint", 1)
    # Stopped in its sleep between two transactions: a process stopped in the middle of one holds its locks.
    time.sleep(0.1)
    os.kill(zombie.pid, signal.SIGSTOP)
    heir = start_worker(database_url, lease=LEASE, step=0.01)
    try:
        wait_for(store, "SELECT count(*) FROM verdict", 1)
        before = (
            rows(store, "SELECT count(*) FROM event"),
            rows(store, "SELECT * FROM checkpoint ORDER BY step"),
        )
        os.kill(zombie.pid, signal.SIGCONT)
        time.sleep(1.0)
        after = (
            rows(store, "SELECT count(*) FROM event"),
            rows(store, "SELECT * FROM checkpoint ORDER BY step"),
        )
        assert before == after
        another = submit(2)
        wait_for(store, "SELECT count(*) FROM verdict", 2)
    finally:
        zombie.kill()
        heir.kill()
    check_invariants(store, {audit_id, another})
    tokens = {row.token for row in after[1]}
    assert len(tokens) == 2


@pytest.mark.parametrize(("what", "fewest"), [("submit", 34), ("work", 80), ("place", 40)])
def test_whoever_is_killed_at_a_boundary_leaves_a_state_that_the_rest_goes_on_from(
    database_url, tmp_path, what, fewest
):
    """Every boundary of `make soak`; some of them in CI."""
    every = int(os.environ.get("AUDITOR_SOAK_EVERY", "7"))
    command = [sys.executable, "-m", "tests.auditor.service.statement_kills"]
    done = subprocess.run(
        [*command, what, database_url, str(tmp_path), str(every)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(f"{what}: {done.stdout.strip()} kills, every {every}")
    assert int(done.stdout) >= fewest // every
