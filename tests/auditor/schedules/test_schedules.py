"""Schedules and slots in the database: each slot once, late if it must be, by workers under leases."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import pytest

from auditor.errors import TraceFileError
from auditor.schedules import periods, schedules, slots
from auditor.schedules.keeper import Keeper
from auditor.schedules.policy import parse_policy
from auditor.schedules.sampling import Population
from auditor.schedules.timetable import SECOND, Timetable
from auditor.service import audits, clock, jobs, tenants
from auditor.service.errors import ConflictError, LeaseLostError, NotFoundError
from auditor.service.queue import Terms
from auditor.store import Store

WEEK = 7 * 86_400 * SECOND
POLICY = 'schema = "auditor.policy/v1"\nname = "strict"\nversion = "1"\n'
TERMS = Terms(lease_seconds=30.0)
ROOT = Path(__file__).parents[3]


class World:
    def __init__(self, store):
        self.store, self.ahead = store, 0
        with store.transaction(writes=True) as connection:
            self.tenant = tenants.create_tenant(connection, "buyer")
            self.other = tenants.create_tenant(connection, "other")
        self.policy = parse_policy(POLICY, "acme")

    def write(self, do, *arguments, **options):
        with self.store.transaction(writes=True) as connection:
            return do(connection, *arguments, **options)

    def read(self, do, *arguments, **options):
        with self.store.transaction() as connection:
            return do(connection, *arguments, **options)

    def add(self, cron="0 6 * * 1", provider="acme"):
        return self.write(schedules.add, self.tenant.id, provider, Timetable(cron), self.policy)

    def slots_of(self, schedule):
        return self.read(slots.listed, self.tenant.id, schedule.id, after=None, limit=100)

    def log(self, number):
        digest = f"sha256:{number:064x}"
        return self.write(audits.keep_log, self.tenant.id, digest, "log", 1)


@pytest.fixture
def world(database_url):
    with Store.open(database_url) as store:
        world = World(store)
        clock.unsafe_shift(lambda: world.ahead)
        yield world
        clock.unsafe_shift(None)


def test_no_module_of_ours_shifts_the_clock():
    for folder in ("auditor", "api", "reference", "merkle", "kernels", "fingerprints", "migrations"):
        for file in (ROOT / folder).rglob("*.py"):
            names = {n.attr for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Attribute)}
            assert "unsafe_shift" not in names, file
            imported = [
                a.name
                for n in ast.walk(ast.parse(file.read_text()))
                if isinstance(n, ast.ImportFrom)
                for a in n.names
            ]
            assert "unsafe_shift" not in imported, file


def test_a_slot_is_fired_once_when_it_is_due_and_not_before(world):
    schedule = world.add()
    assert not world.write(schedules.fire_due)
    world.ahead += WEEK
    assert world.read(schedules.is_due)
    assert world.write(schedules.fire_due) == 1
    assert not world.write(schedules.fire_due), "once"
    (slot,) = world.slots_of(schedule)
    assert (slot.slot_at, slot.missed, slot.state) == (schedule.next_at, 0, "queued")


def test_a_double_fire_of_one_slot_is_one_slot(world):
    schedule = world.add()
    fired = [world.write(slots.create, schedule, schedule.next_at, 0, schedule.next_at) for _ in range(2)]
    assert fired[0] is not None
    assert fired[1] is None
    assert len(world.slots_of(schedule)) == 1


def test_keepers_that_fire_at_the_same_instant_make_one_slot(world):
    schedule = world.add()
    world.ahead += WEEK
    barrier = threading.Barrier(4)

    def fire():
        barrier.wait()
        world.write(schedules.fire_due)

    threads = [threading.Thread(target=fire) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.slots_of(schedule)) == 1


def test_missed_slots_run_once_late_and_are_counted(world):
    schedule = world.add()
    world.ahead += 5 * WEEK
    assert world.write(schedules.fire_due)
    assert not world.write(schedules.fire_due)
    (slot,) = world.slots_of(schedule)
    assert slot.missed == 4
    assert slot.slot_at == schedule.next_at + 4 * WEEK
    assert world.read(schedules.find, world.tenant.id, schedule.id).next_at == slot.slot_at + WEEK


def test_a_paused_schedule_fires_nothing_and_a_resumed_one_only_what_comes(world):
    schedule = world.add()
    assert world.write(schedules.pause, world.tenant.id, schedule.id).next_at is None
    world.write(schedules.pause, world.tenant.id, schedule.id)
    world.ahead += 3 * WEEK
    assert not world.write(schedules.fire_due)
    resumed = world.write(schedules.resume, world.tenant.id, schedule.id)
    assert not world.write(schedules.fire_due)
    world.ahead += WEEK
    assert world.write(schedules.fire_due)
    (slot,) = world.slots_of(schedule)
    assert (slot.slot_at, slot.missed) == (resumed.next_at, 0)


def test_a_removed_schedule_stays_removed(world):
    schedule = world.add()
    world.write(schedules.remove, world.tenant.id, schedule.id)
    assert not world.read(schedules.listed, world.tenant.id, after=None, limit=10)
    for move in (schedules.pause, schedules.resume):
        with pytest.raises(ConflictError):
            world.write(move, world.tenant.id, schedule.id)
    with pytest.raises(ConflictError):
        world.write(schedules.run_now, world.tenant.id, schedule.id)


def test_another_tenants_schedule_is_not_there(world):
    schedule = world.add()
    for move in (schedules.find, schedules.pause, schedules.remove, schedules.run_now):
        with pytest.raises(NotFoundError):
            world.write(move, world.other.id, schedule.id)
    with pytest.raises(NotFoundError):
        world.read(schedules.find_policy, world.other.id, schedule.policy_digest)


def test_a_run_now_waits_for_the_period_under_way(world):
    schedule = world.add()
    world.write(schedules.run_now, world.tenant.id, schedule.id)
    with pytest.raises(ConflictError, match="under way"):
        world.write(schedules.run_now, world.tenant.id, schedule.id)


def test_periods_of_one_provider_are_worked_on_in_order_and_those_of_others_beside_them(world):
    first, second, other = world.add(), world.add("0 6 * * 2"), world.add(provider="else")
    world.ahead += WEEK
    while world.write(schedules.fire_due):
        pass
    held = [world.write(slots.claim, "w", TERMS) for _ in range(3)]
    assert {job.audit_id for job in held if job} == {
        min(world.slots_of(first) + world.slots_of(second), key=lambda s: s.slot_at).id,
        world.slots_of(other)[0].id,
    }
    assert held[2] is None


def test_a_worker_that_lost_its_lease_writes_nothing_about_the_slot(world):
    schedule = world.add()
    world.write(schedules.run_now, world.tenant.id, schedule.id)
    zombie = world.write(slots.claim, "zombie", TERMS)
    assert world.write(slots.claim, "heir", TERMS) is None
    world.ahead += 31 * SECOND
    heir = world.write(slots.claim, "heir", TERMS)
    assert heir.token == zombie.token + 1
    for late in (
        lambda c: periods.cut(c, zombie, world.policy),
        lambda c: slots.write(c, zombie, verdict="consistent"),
        lambda c: slots.renew(c, zombie, TERMS),
        lambda c: slots.finish(c, zombie),
        lambda c: periods.note_empty(c, zombie, Population()),
    ):
        with pytest.raises(LeaseLostError):
            world.write(late)
    world.write(periods.cut, heir, world.policy)
    assert world.slots_of(schedule)[0].number == 1


def test_a_cut_takes_each_log_once_for_each_provider_and_no_other_tenants(world):
    world.log(1), world.log(2)
    foreign = world.write(audits.keep_log, world.other.id, f"sha256:{9:064x}", "log", 1)

    def next_logs(schedule):
        world.write(schedules.run_now, world.tenant.id, schedule.id)
        job = world.write(slots.claim, "w", TERMS)
        world.write(periods.cut, job, world.policy)
        slot = world.read(slots.find, world.tenant.id, job.audit_id)
        found = world.read(periods.logs_of, slot)
        world.write(slots.finish, job)
        assert foreign.id not in {log.id for log in found}
        return [log.digest[-1] for log in found], slot

    acme, other = world.add(), world.add(provider="else")
    logs, first = next_logs(acme)
    assert logs == ["1", "2"]
    world.log(3)
    logs, second = next_logs(acme)
    assert logs == ["3"]
    assert (first.number, second.number) == (1, 2)
    assert first.seed != second.seed
    assert next_logs(other)[0] == ["1", "2", "3"]


class Failing:
    """Work that cannot succeed: the log's folder is gone, say."""

    def __call__(self, lease):
        with lease.store.transaction(writes=True) as connection:
            slot = slots.held(connection, lease.job)
            if slot.number is None:
                periods.cut(connection, lease.job, parse_policy(POLICY, "acme"))
        raise TraceFileError("cannot be opened", where="blob")


def test_a_period_that_cannot_be_worked_on_is_given_up_and_its_logs_are_the_next_ones(world):
    log = world.log(1)
    schedule = world.add()
    world.write(schedules.run_now, world.tenant.id, schedule.id)
    assert Keeper(world.store, Failing()).run_once()
    (slot,) = world.slots_of(schedule)
    assert (slot.state, slot.error_code, slot.number) == ("dead", "trace-file", 1)
    world.ahead += SECOND
    world.write(schedules.run_now, world.tenant.id, schedule.id)
    job = world.write(slots.claim, "w", TERMS)
    world.write(periods.cut, job, world.policy)
    again = world.read(slots.find, world.tenant.id, job.audit_id)
    assert [found.id for found in world.read(periods.logs_of, again)] == [log.id]
    assert again.number == 2


def test_a_slot_waits_for_its_audit(world):
    schedule = world.add()
    world.write(schedules.run_now, world.tenant.id, schedule.id)
    job = world.write(slots.claim, "w", TERMS)
    audit_id = world.write(audits.submit, world.log(1), audits.AuditOptions(), "acme")
    world.write(slots.write, job, audit_id=audit_id)
    world.write(slots.hand_back, job)
    assert not world.read(slots.is_due)
    assert world.write(slots.claim, "w", TERMS) is None
    with world.store.transaction(writes=True) as connection:
        jobs.cancel(connection, jobs.locked(connection, audit_id))
    assert world.write(slots.claim, "w", TERMS).audit_id == job.audit_id
