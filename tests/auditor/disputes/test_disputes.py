"""Disputes: filed on a verdict, answered, resolved once; each word logged; upheld ones void the evidence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from auditor.disputes import disputes, rules
from auditor.disputes.rules import OUTCOMES, Said
from auditor.service import audits, clock, tenants
from auditor.service.errors import ConflictError, NotFinishedError, NotFoundError, RequestInvalidError
from auditor.service.worker import Worker
from auditor.store import Store

SAID = Said("Jo, acme", "the cache was declared")


class World:
    def __init__(self, store):
        self.store, self.numbers = store, iter(range(1000))
        with store.transaction(writes=True) as connection:
            self.tenant = tenants.create_tenant(connection, "buyer")
            self.other = tenants.create_tenant(connection, "other")

    def write(self, do, *arguments):
        with self.store.transaction(writes=True) as connection:
            return do(connection, *arguments)

    def audit(self, *, judged=True):
        def order(connection):
            digest = f"sha256:{next(self.numbers):064x}"
            log = audits.keep_log(connection, self.tenant.id, digest, "log", 1)
            return audits.submit(connection, log, audits.AuditOptions(), "acme")

        audit_id = self.write(order)
        if judged:
            Worker(self.store, self._work).run_once()
        return audit_id

    def _work(self, job, lease):
        with lease.store.transaction() as connection:
            audit = audits.find(connection, job.tenant_id, job.audit_id)
        body = b'{"schema":"auditor.result/v1"}'
        return lambda c, now: audits.record(c, audit, body, "inconsistent", [b"{}", b"{}"], now)

    def file(self, audit_id, said=SAID):
        return self.write(disputes.file, self.tenant.id, audit_id, said)


@pytest.fixture
def world(database_url):
    with Store.open(database_url) as store:
        yield World(store)


def test_a_dispute_is_filed_answered_and_resolved_and_each_word_is_logged(world):
    audit_id = world.audit()
    made = world.file(audit_id, Said("Jo, acme", "the cache was declared", (f"{audit_id}/1", "our ticket 7")))
    assert (made.state, made.provider, made.outcome) == ("filed", "acme", None)
    answered = world.write(disputes.answer, world.tenant.id, made.id, Said("Al", "it was not"))
    ended = world.write(disputes.resolve, world.tenant.id, made.id, "upheld", Said("Al", "it was"))
    assert (answered.state, ended.state, ended.outcome) == ("answered", "resolved", "upheld")
    assert [s.kind for s in ended.statements] == ["filed", "answered", "resolved"]
    assert [s.said.actor for s in ended.statements] == ["Jo, acme", "Al", "Al"]
    assert ended.statements[0].said.evidence == (f"{audit_id}/1", "our ticket 7")
    with world.store.transaction() as connection:
        wanted = text("SELECT subject, body FROM log_entry WHERE kind = 'dispute' ORDER BY subject")
        entries = [(row.subject, json.loads(bytes(row.body))) for row in connection.execute(wanted)]
    assert [subject for subject, _ in entries] == [f"{made.id}/{n}" for n in (1, 2, 3)]
    assert entries[0][1]["said"] == disputes.digest_of("filed", made.statements[0].said)
    assert entries[2][1]["outcome"] == "upheld"
    assert "declared" not in str(entries), "the log is public"


def test_only_a_verdict_can_be_disputed_and_by_one_dispute_at_a_time(world):
    waiting = world.audit(judged=False)
    with pytest.raises(NotFinishedError):
        world.file(waiting)
    Worker(world.store, world._work).run_once()
    first = world.file(waiting)
    with pytest.raises(ConflictError, match="open"):
        world.file(waiting)
    world.write(disputes.resolve, world.tenant.id, first.id, "rejected", SAID)
    assert world.file(waiting).id != first.id


def test_a_resolved_dispute_is_final(world):
    made = world.file(world.audit())
    world.write(disputes.resolve, world.tenant.id, made.id, "withdrawn", SAID)
    with pytest.raises(ConflictError):
        world.write(disputes.answer, world.tenant.id, made.id, SAID)
    with pytest.raises(ConflictError):
        world.write(disputes.resolve, world.tenant.id, made.id, "upheld", SAID)


def test_another_tenant_sees_and_says_nothing(world):
    audit_id = world.audit()
    made = world.file(audit_id)
    for attempt in (
        lambda c: disputes.find(c, world.other.id, made.id),
        lambda c: disputes.file(c, world.other.id, audit_id, SAID),
        lambda c: disputes.answer(c, world.other.id, made.id, SAID),
        lambda c: disputes.resolve(c, world.other.id, made.id, "upheld", SAID),
    ):
        with pytest.raises(NotFoundError):
            world.write(attempt)
    assert world.write(lambda c: disputes.listed(c, world.other.id, after=None, limit=9)) == []


def test_evidence_must_be_of_the_disputed_audit(world):
    audit_id, other = world.audit(), world.audit()
    with pytest.raises(NotFoundError, match="no request 2"):
        world.file(audit_id, Said("Jo", "x", (f"{audit_id}/2",)))
    for wrong in (f"{other}/0", f"{audit_id}", f"{audit_id}/x", f"{audit_id}/-1"):
        with pytest.raises(RequestInvalidError, match="evidence"):
            world.file(audit_id, Said("Jo", "x", (wrong,)))
    assert world.write(lambda c: disputes.listed(c, world.tenant.id, after=None, limit=9)) == []


def test_what_a_report_sees_is_what_had_been_said_by_the_end_of_its_period(world):
    ahead = [0]
    clock.unsafe_shift(lambda: ahead[0])
    try:
        audit_id = world.audit()
        made = world.file(audit_id)
        between = world.write(clock.now) + 1
        ahead[0] += 10_000_000
        world.write(disputes.resolve, world.tenant.id, made.id, "upheld", SAID)
        end = world.write(clock.now) + 1

        def about(start, end):
            return world.write(lambda c: disputes.about(c, world.tenant.id, "acme", start, end))

        (early,) = about(0, between)
        assert (early.state, early.outcome, len(early.statements)) == ("filed", None, 1)
        (late,) = about(between, end)
        assert (late.state, late.outcome, len(late.statements)) == ("resolved", "upheld", 2)
        assert about(end, end + 1) == [], "resolved before the period began"
        void = lambda end: world.write(  # noqa: E731
            lambda c: disputes.overturned(c, world.tenant.id, [audit_id], end)
        )
        assert void(between) == {}
        assert set(void(end)) == {audit_id}
    finally:
        clock.unsafe_shift(None)


@pytest.mark.parametrize(
    ("actor", "statement", "evidence"),
    [
        ("", "x", ()),
        ("J\n", "x", ()),
        ("J", " ", ()),
        ("J", "x" * 20_001, ()),
        ("J", "\0", ()),
        ("J", "x", ("",)),
        ("J", "x", ("a\0b",)),
        ("J", "x", ("e",) * 201),
    ],
)
def test_what_cannot_be_kept_or_shown_is_refused(actor, statement, evidence):
    with pytest.raises(RequestInvalidError):
        Said(actor, statement, evidence)


@given(st.lists(st.sampled_from(["filed", "answered", "resolved"]), max_size=8))
def test_nothing_follows_a_resolution(steps):
    state = "filed"
    for step in steps:
        if state == "resolved" or step == "filed":
            with pytest.raises(ConflictError):
                rules.after(state, step, "dsp_1")
        else:
            state = rules.after(state, step, "dsp_1")
    assert state == ("resolved" if "resolved" in steps else state)
    assert len(OUTCOMES) == 3
