"""What a service does all day finds its rows by an index, however many were taken before."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from auditor.service import audits, erasure, jobs, providers, tenants
from auditor.service.audits import AuditOptions
from auditor.service.blobs import BlobFolder
from auditor.service.log_placing import open_log, place
from auditor.service.queue import Terms
from auditor.service.small_logs import SmallLogs
from auditor.service.submissions import InlineLog, Order, accept
from auditor.store import Store
from auditor.store_schema import metadata


@pytest.fixture
def world(tmp_path):
    url = f"sqlite:///{tmp_path / 'store.sqlite3'}"
    Store.upgrade(url)
    with Store.open(url) as store:
        yield store, SmallLogs(store, BlobFolder(tmp_path / "blobs"))


@pytest.fixture
def scans(world):
    """Statements since the start, each with the tables that SQLite would read from one end to the other."""
    store, _ = world
    found = {}

    def explain(connection, _cursor, statement, parameters, _context, _many):
        # An insert's plan names what it would read after a reference was broken, which none is.
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            raw = connection.connection.driver_connection.cursor()
            one = parameters[0] if isinstance(parameters, list) else parameters
            plan = raw.execute(f"EXPLAIN QUERY PLAN {statement}", one)
            steps = [step for *_, step in plan]
            whole = [step for step in steps if step.startswith("SCAN ")]
            found[statement] = [step for step in whole if step.split()[1] in metadata.tables]

    event.listen(store._engine, "before_cursor_execute", explain)
    return found


def order(number, key, blobs):
    body = b'{"number": %d}' % number
    log = InlineLog(blobs.put(body), "log", len(body), lambda: None, body)
    return Order(key, f"key-{number}", number.to_bytes(32), AuditOptions(), "acme", log)


def key(store, name):
    with store.transaction(writes=True) as connection:
        tenant = tenants.create_tenant(connection, name, most_running=100)
        providers.create(connection, tenant.id, "acme", [])
        return tenants.create_key(connection, tenant.id, "k", ["audits:write"], days=1)[0]


def test_submissions_and_jobs_read_no_table_from_end_to_end(world, scans):
    store, blobs = world
    keys = [key(store, "acme"), key(store, "other")]
    scans.clear()
    with store.transaction(writes=True) as connection:
        taken = accept(connection, [order(n, keys[n % 2], blobs) for n in range(4)], blobs)
        again = accept(connection, [order(n, keys[n % 2], blobs) for n in range(6)], blobs)
    assert [found.again for found in again] == [True] * 4 + [False] * 2
    assert [found.audit for found in again[:4]] == [found.audit for found in taken]
    terms = Terms()
    with store.transaction(writes=True) as connection:
        job = jobs.claim(connection, "w", terms)
        jobs.renew(connection, job, terms)
        jobs.save_checkpoint(connection, job, 0, b"x", {}, terms)
        jobs.finish(connection, jobs.held(connection, job))
        assert jobs.any_due(connection)
    assert len(scans) > 12
    assert {statement: steps for statement, steps in scans.items() if steps} == {}


def test_erasing_a_log_reads_no_table_from_end_to_end(world, scans, tmp_path):
    store, blobs = world
    owner = key(store, "acme")
    with store.transaction(writes=True) as connection:
        taken = accept(connection, [order(n, owner, blobs) for n in range(3)], blobs)
    scans.clear()
    erased = taken[0].audit.log
    with store.transaction(writes=True) as connection:
        jobs.cancel(connection, jobs.locked(connection, taken[0].audit.id))
    erasure.erase(store, blobs, erased.tenant_id, erased.id)
    place(store, open_log(tmp_path / "log", tmp_path / "log.key"))
    with store.transaction() as connection:
        assert audits.find(connection, owner.tenant_id, taken[0].audit.id).log.erased is not None
    assert len(scans) > 8
    assert {statement: steps for statement, steps in scans.items() if steps} == {}
