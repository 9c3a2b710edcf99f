"""The queue's rules, against a plain oracle that knows only who claimed last and what was acknowledged."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from auditor.service import queue
from auditor.service.errors import ConflictError, LeaseLostError
from auditor.service.queue import SECOND, Job, Terms

TERMS = Terms(lease_seconds=3, most_attempts=3, most_lost_leases=3, backoff_seconds=2, longest_backoff=5)
FINAL = {"done", "dead", "quarantined", "cancelled"}


class OneJob(RuleBasedStateMachine):
    """Workers that claim, renew, finish, fail and go silent, with tokens old and new."""

    def __init__(self):
        super().__init__()
        self.job = Job("aud_1", "ten_1", run_at=0)
        self.now = 0
        self.tokens = []
        self.holder = None
        self.lease_end = None
        self.ends = 0
        self.lost = 0

    @rule(seconds=st.floats(0, 4))
    def time_passes(self, seconds):
        self.now += round(seconds * SECOND)

    @rule()
    def claim(self):
        before = self.job
        lease_over = self.holder is not None and self.lease_end <= self.now
        due = before.state not in FINAL and (
            lease_over if before.state == "running" else before.run_at <= self.now
        )
        if not due:
            with pytest.raises(ConflictError):
                queue.claim(before, "w", self.now, TERMS)
            return
        self.lost += lease_over
        self.job = queue.claim(before, "w", self.now, TERMS)
        assert self.job.token > before.token
        if self.lost >= TERMS.most_lost_leases:
            assert self.job.state == "quarantined"
            self.holder, self.ends = None, self.ends + 1
            return
        assert self.job.state == "running"
        self.holder, self.lease_end = self.job.token, self.now + 3 * SECOND
        self.tokens.append(self.holder)

    def as_holder(self, token, change):
        """Whether `change` was accepted: exactly when the token is the newest claim's."""
        if token == self.holder:
            self.job = change()
            return True
        with pytest.raises(LeaseLostError):
            change()
        return False

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def renew(self, data):
        token = data.draw(st.sampled_from(self.tokens))
        if self.as_holder(token, lambda: queue.renew(self.job, token, self.now, TERMS)):
            self.lease_end = self.now + 3 * SECOND

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def finish(self, data):
        token = data.draw(st.sampled_from(self.tokens))
        if self.as_holder(token, lambda: queue.finish(self.job, token, self.now)):
            self.holder, self.ends = None, self.ends + 1

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), chance=st.floats(0, 1, exclude_max=True), final=st.booleans())
    def fail(self, data, chance, final):
        token = data.draw(st.sampled_from(self.tokens))
        attempts = self.job.attempts
        error = {"code": "x", "error": "y", "chance": chance, "final": final}
        if self.as_holder(token, lambda: queue.fail(self.job, token, self.now, TERMS, **error)):
            self.holder = None
            over = final or attempts + 1 == TERMS.most_attempts
            assert self.job.state == ("dead" if over else "queued")
            self.ends += over
            assert self.now <= self.job.run_at <= self.now + 5 * SECOND or over

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def hand_back(self, data):
        token = data.draw(st.sampled_from(self.tokens))
        if self.as_holder(token, lambda: queue.hand_back(self.job, token, self.now)):
            self.holder = None
            assert queue.is_due(self.job, self.now)

    @rule()
    def cancel(self):
        if self.job.state in FINAL - {"cancelled"}:
            with pytest.raises(ConflictError):
                queue.cancel(self.job, self.now)
            return
        self.ends += self.job.state != "cancelled"
        self.job, self.holder = queue.cancel(self.job, self.now), None

    @invariant()
    def it_ends_once_and_is_held_by_one(self):
        assert self.ends == (self.job.state in FINAL)
        assert (self.job.state == "running") == (self.holder is not None)
        assert (self.job.lease_until is not None) == (self.job.state == "running")
        assert (self.job.finished is not None) == (self.job.state in FINAL)
        assert self.job.lost_leases == self.lost


OneJob.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
test_one_job = OneJob.TestCase


def test_backoff_doubles_up_to_its_longest():
    longest = []
    job = Job("a", "t", run_at=0)
    terms = Terms(most_attempts=99, backoff_seconds=2, longest_backoff=10)
    for _ in range(4):
        job = queue.claim(job, "w", job.run_at, terms)
        now = job.run_at
        job = queue.fail(job, job.token, now, terms, code="x", error="y", chance=0.999999, final=False)
        longest.append(round((job.run_at - now) / SECOND))
    assert longest == [2, 4, 8, 10]
