"""Submissions that are committed together: each as if it were alone, none acknowledged before its commit."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, insert, text

from auditor.errors import StoreError
from auditor.service import audits, tenants
from auditor.service.audits import AuditOptions
from auditor.service.blobs import BlobFolder
from auditor.service.errors import (
    IdempotencyKeyReusedError,
    NotFoundError,
    RateLimitedError,
    UnauthenticatedError,
)
from auditor.service.group_commit import GroupCommit
from auditor.service.small_logs import MOST_BYTES, SmallLogs
from auditor.service.submissions import InlineLog, Order, Submissions, accept
from auditor.store import Store
from auditor.store_engine import sent_together
from auditor.store_schema import log_entry


class World:
    def __init__(self, store, folder):
        self.store, self.blobs = store, BlobFolder(folder)
        self.submissions = Submissions(store, self.blobs)
        self.keys = [self.key("acme"), self.key("other")]

    def key(self, name):
        with self.store.transaction(writes=True) as connection:
            tenant = tenants.create_tenant(connection, name, most_running=100)
            return tenants.create_key(connection, tenant.id, "k", ["audits:write"], days=1)[0]

    def order(self, number, *, key=None, once=None, log=None, put=None, told=None):
        body = b'{"number": %d}\n' % number
        keep = put or (lambda: self.blobs.put(body))
        digest = self.blobs.put(body) if put is None else f"sha256:{number:064x}"
        return Order(
            caller=key or self.keys[0],
            idempotency_key=once or f"key-{number}",
            request_sha256=told or number.to_bytes(32),
            options=AuditOptions(),
            provider="acme",
            log=log or InlineLog(digest, "log", len(body), keep),
        )

    def accept(self, *orders):
        with self.store.transaction(writes=True) as connection:
            return accept(connection, orders, self.blobs)

    def counts(self):
        tables = ("audit", "job", "event", "log_entry", "idempotency_key", "trace_log")
        with self.store.transaction() as connection:
            return [
                connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables
            ]


@pytest.fixture
def world(database_url, tmp_path):
    with Store.open(database_url) as store:
        yield World(store, tmp_path / "blobs")


def test_many_at_once_take_few_transactions_and_each_is_there_when_it_is_acknowledged(world):
    commits, gate = [], threading.Barrier(12)
    event.listen(world.store._engine, "commit", lambda _: commits.append(1))

    def one(number):
        gate.wait()
        taken = world.submissions.submit(world.order(number, key=world.keys[number % 2]))
        with world.store.transaction() as connection:
            return taken, audits.find(connection, taken.audit.tenant_id, taken.audit.id)

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(one, range(12)))
    assert all(taken.audit == kept and not taken.again for taken, kept in found)
    assert world.counts() == [12] * 6
    assert len(commits) - 12 < 12, "nobody shared a transaction"


def test_what_one_gets_wrong_is_its_own(world):
    before = world.accept(world.order(1), world.order(2, key=world.keys[1]))
    with world.store.transaction(writes=True) as connection:
        revoked = tenants.create_key(connection, world.keys[0].tenant_id, "r", ["audits:write"], days=1)[0]
        tenants.revoke_key(connection, revoked.tenant_id, revoked.id)
        spent = tenants.create_key(connection, world.keys[0].tenant_id, "s", ["audits:write"], days=1)[0]
        connection.execute(
            text(f"UPDATE api_key SET allowance = 1, allowance_at = {1 << 60} WHERE id = '{spent.id}'")
        )
    foreign = before[1].audit.log.id
    good, reused, missing, cut, last, none, again, uploaded = world.accept(
        world.order(3),
        world.order(4, once="key-1"),
        world.order(5, log=foreign),
        world.order(6, key=revoked),
        world.order(7, key=spent),
        world.order(8, key=spent),
        world.order(1),
        world.order(9, log=before[0].audit.log.id),
    )
    assert isinstance(reused, IdempotencyKeyReusedError)
    assert isinstance(missing, NotFoundError)
    assert isinstance(cut, UnauthenticatedError)
    assert isinstance(none, RateLimitedError)
    assert (again.audit, again.again) == (before[0].audit, True)
    assert (good.again, last.again, uploaded.audit.log) == (False, False, before[0].audit.log)
    assert world.counts() == [5, 5, 5, 5, 5, 4]


def test_the_same_order_twice_at_once_is_one_order(world):
    order = world.order(1)
    first, second = world.submissions._commit([order, world.order(1)])
    assert first.audit == second.audit
    assert (first.again, second.again) == (False, True)
    other, refused = world.submissions._commit([world.order(2), world.order(2, told=bytes(32))])
    assert not other.again
    assert isinstance(refused, IdempotencyKeyReusedError)
    assert world.counts() == [2] * 6


def test_the_same_log_in_two_orders_is_one_log_and_its_owners_alone(world):
    same, twice, other = world.accept(
        world.order(1), world.order(1, once="twice"), world.order(1, key=world.keys[1])
    )
    assert same.audit.log == twice.audit.log
    assert same.audit.log.id != other.audit.log.id
    assert same.audit.log.digest == other.audit.log.digest


def test_storage_that_refuses_one_log_refuses_no_other(world):
    def full():
        raise StoreError("the disk is full")

    outcomes = world.submissions._commit([world.order(1), world.order(2, put=full), world.order(3)])
    assert isinstance(outcomes[1], StoreError)
    assert [outcome.again for outcome in (outcomes[0], outcomes[2])] == [False, False]
    assert world.counts() == [2] * 6


def test_two_processes_at_once_never_wait_in_a_circle(world, database_url):
    """Two stores stand for two processes; both take the same keys, logs and Idempotency-Keys, in other orders."""
    with Store.open(database_url) as other:
        takers = [world.submissions, Submissions(other, world.blobs)]

        def commit(turn):
            orders = [world.order(n, key=world.keys[n % 2]) for n in range(turn // 2, turn // 2 + 6)]
            return takers[turn % 2]._commit(orders[:: 1 if turn % 2 else -1])

        with ThreadPoolExecutor(2) as pool:
            outcomes = [one for made in pool.map(commit, range(20)) for one in made]
    # On PostgreSQL a request may meet its own twin under way: then it is told to come again.
    assert not [one for one in outcomes if isinstance(one, StoreError)]
    assert world.counts()[:2] == [15, 15]


def held_pairs():
    """A line for pairs: (line, set once a group is being committed, to be set to let groups go, groups so far)."""
    entered, go, groups = threading.Event(), threading.Event(), []

    def commit(orders):
        groups.append(list(orders))
        entered.set()
        assert go.wait(10)
        if "bad" in orders:
            raise StoreError("gone")
        return [order.upper() for order in orders]

    return GroupCommit(commit, 2), entered, go, groups


def test_a_group_that_fails_wakes_everybody_and_the_next_one_goes_on():
    group, entered, go, groups = held_pairs()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(group, "a")
        assert entered.wait(10)
        others = []
        for order in ("bad", "b", "c", "d", "e"):
            others.append(pool.submit(group, order))
            while len(group._queue) < len(others):
                pass
        go.set()
        assert first.result(10) == "A"
        for waiting in others[:2]:
            with pytest.raises(StoreError, match="gone"):
                waiting.result(10)
        assert [waiting.result(10) for waiting in others[2:]] == ["C", "D", "E"]
    assert groups == [["a"], ["bad", "b"], ["c", "d"], ["e"]]
    assert group("f") == "F"


def test_coroutines_and_threads_stand_in_one_line_and_each_is_told_its_own():
    group, entered, go, groups = held_pairs()

    def in_line(count):
        while len(group._queue) < count:
            pass

    async def several(pool):
        first = asyncio.ensure_future(group.soon("a"))
        await asyncio.to_thread(entered.wait, 10)
        others = []
        for number, order in enumerate(("bad", "given up", "B", "c", "D", "e", "f"), 1):
            soon = group.soon(order) if order.islower() else asyncio.wrap_future(pool.submit(group, order))
            others.append(asyncio.ensure_future(soon))
            await asyncio.to_thread(in_line, number)
        others[1].cancel()
        go.set()
        return [await first, *await asyncio.gather(*others, return_exceptions=True)]

    with ThreadPoolExecutor(4) as pool:
        found = asyncio.run(several(pool))
        assert isinstance(found[1], StoreError)
        assert isinstance(found[2], asyncio.CancelledError)
        assert [found[0], *found[3:]] == ["A", "B", "C", "D", "E", "F"]
        assert groups == [["a"], ["bad", "given up"], ["B", "c"], ["D", "e"], ["f"]]
        # Whose loop has ended is told nothing, and nobody waits for it.
        assert pool.submit(group, "g").result(10) == "G"
        assert asyncio.run(group.soon("h")) == "H"


def test_a_coroutine_is_acknowledged_after_the_commit_and_its_loop_goes_on_meanwhile(world):
    async def several():
        ticks, ended = 0, asyncio.Event()

        async def tick():
            nonlocal ticks
            while not ended.is_set():
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        taken = await asyncio.gather(*(world.submissions.submit_soon(world.order(n)) for n in range(12)))
        ended.set()
        await ticking
        return taken, ticks

    taken, ticks = asyncio.run(several())
    assert world.counts() == [12] * 6
    assert len({one.audit.id for one in taken}) == 12
    assert ticks > 12


def test_statements_that_are_sent_together_are_refused_together(world):
    (first,) = world.accept(world.order(1))
    before = world.counts()
    with (
        pytest.raises(StoreError),
        world.store.transaction(writes=True) as connection,
        sent_together(connection),
    ):
        fresh = {"subject": "aud_x", "kind": "submission", "body": b"x"}
        connection.execute(insert(log_entry).inline(), fresh)
        connection.execute(insert(log_entry).inline(), fresh | {"subject": first.audit.id})
    assert world.counts() == before
    assert not isinstance(world.accept(world.order(2))[0], StoreError)


def test_small_logs_are_kept_with_their_rows_and_others_before(world):
    blobs = SmallLogs(world.store, world.blobs)
    small, large, parquet = b"x" * MOST_BYTES, b"x" * (MOST_BYTES + 1), b"PAR1" + bytes(60) + b"PAR1"
    logs = [InlineLog.of(body, "log", blobs) for body in (small, large, parquet)]
    assert [blobs.holds(log.digest) for log in logs] == [False, True, True]
    taken = Submissions(world.store, blobs)._commit([world.order(n, log=log) for n, log in enumerate(logs)])
    assert [blobs.holds(one.audit.log.digest) for one in taken] == [True] * 3
    assert [world.blobs.holds(one.audit.log.digest) for one in taken] == [False, True, True]
    for one, body in zip(taken, (small, large, parquet), strict=True):
        digest = one.audit.log.digest
        path = blobs.path(digest)
        assert blobs.path(digest) == path
        blobs.release(digest)
        assert path.read_bytes() == body
        with blobs.open(digest) as stream:
            assert stream.read() == body
        blobs.release(digest)
    assert not blobs._copies
