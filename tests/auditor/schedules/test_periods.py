"""Weekly periods end to end: a real worker that is killed, demo providers, a clock under the test's control."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from auditor.disputes import disputes
from auditor.disputes.rules import Said
from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference
from auditor.reports import remake_report
from auditor.schedules import periods, sampling, slots
from auditor.schedules.keeper import Keeper
from auditor.schedules.period_work import PeriodWork
from auditor.schedules.policy import parse_policy
from auditor.schedules.shares import level
from auditor.service.audit_work import AuditWork
from auditor.service.worker import Worker
from auditor.trace_format import parse_trace
from tests.auditor.schedules.weeks import END_MARK, PADDED, POLICY, Demo, Weeks, check, traffic

REQUESTS = 6


def hand_in_all(weeks, week):
    for demo in weeks.demos:
        weeks.hand_in(f"{demo.name} week {week}", traffic(demo, week, REQUESTS))


class Hands:
    """A worker and a keeper in this process."""

    def __init__(self, weeks):
        find = shipped_profiles().get
        reference = Reference.load(TARGET)
        self.worker = Worker(weeks.store, AuditWork(weeks.blobs, reference, find))
        self.keeper = Keeper(weeks.store, PeriodWork(weeks.blobs, reference, find))

    def work(self):
        while self.keeper.run_once() or self.worker.run_once():
            pass


def test_a_kill_in_the_middle_costs_no_report_and_the_change_is_flagged_in_its_week(tmp_path):
    demos = (Demo("steady"), Demo("squeeze", "weights/int4", 2))
    weeks = Weeks(f"sqlite:///{tmp_path}/store.sqlite3", tmp_path, demos)
    with weeks.clock():
        worker = weeks.start()
        hand_in_all(weeks, 1)
        weeks.wait_for_reports(weeks.wait_for_next_slot())
        hand_in_all(weeks, 2)
        slot = weeks.wait_for_next_slot()
        weeks.wait_until("SELECT count(*) > 0 FROM job WHERE state = 'running'")
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        weeks.start()
        weeks.wait_for_reports(slot)
        table = check(weeks, 2)
        assert max(row[5] for row in table) < 600
        assert weeks.rows("SELECT (SELECT sum(lost_leases) FROM job) + (SELECT sum(lost_leases) FROM slot)")[
            0
        ][0]
        for demo in demos:
            for period in weeks.periods(demo.name):
                (row,) = weeks.rows(f"SELECT body FROM report WHERE id = '{period.report_id}'")
                assert remake_report(weeks.store, weeks.tenant.id, period.report_id) == bytes(row.body)


def test_an_upheld_dispute_clears_the_provider_in_standing_and_report_and_a_relapse_convicts_anew(
    postgres_server, tmp_path
):
    demo = Demo("squeeze", "weights/int4", 1)
    weeks = Weeks(postgres_server.new_database(), tmp_path, (demo,))
    with weeks.clock():
        hands = Hands(weeks)

        def period(week, demo=demo):
            weeks.hand_in(f"week {week}", traffic(demo, week, REQUESTS))
            weeks.wait_for_next_slot()
            hands.work()
            return weeks.periods(demo.name)[-1]

        convicted = period(1)
        assert convicted.verdict == "inconsistent"
        with weeks.store.transaction(writes=True) as connection:
            tenant = weeks.tenant.id
            filed = disputes.file(connection, tenant, convicted.audit_id, Said("squeeze", "it was declared"))
            disputes.resolve(connection, tenant, filed.id, "upheld", Said("us", "it was"))
        cleared = period(2, replace(demo, week=99))
        assert cleared.verdict != "inconsistent"
        assert cleared.log_e < 0.0
        document = weeks.report(cleared)
        assert document["disputes"][0]["outcome"] == "upheld"
        assert document["disputes"][0]["statements"][1]["entry"] == f"{filed.id}/2"
        assert document["verdict"] == cleared.verdict
        relapsed = period(3)
        assert relapsed.verdict == "inconsistent"
        assert relapsed.findings["since"] == 3
        assert weeks.report(relapsed)["disputes"] == [], "resolved before this period"
        assert remake_report(weeks.store, tenant, cleared.report_id)


def test_periods_that_convict_only_together_name_their_cause(tmp_path):
    demo, policy = Demo("p", "weights/int4", 1), POLICY + "alpha = 1e-28\n"
    weeks = Weeks(f"sqlite:///{tmp_path}/store.sqlite3", tmp_path, (demo,), policy=policy)
    with weeks.clock():
        hands = Hands(weeks)
        for week in (1, 2, 3):
            weeks.hand_in(f"week {week}", traffic(demo, week, 1, max_tokens=70))
            weeks.wait_for_next_slot()
            hands.work()
        found = [slot.verdict for slot in weeks.periods("p")]
        assert found == ["inconclusive", "inconclusive", "inconsistent"]
        verdicts = weeks.rows("SELECT body FROM verdict")
        assert all(b'"verdict":"inconsistent"' not in bytes(row.body) for row in verdicts)
        last = weeks.periods("p")[-1]
        assert last.findings["causes"][0][0] == "weights/int4"
        assert weeks.report(last)["providers"][0]["causes"][0]["cause"] == "weights/int4"


def test_padding_convicts_beside_the_providers_own_bills_and_an_end_mark_does_not(tmp_path):
    demos = (Demo("padder", PADDED, 2), Demo("endmark", END_MARK, 2))
    weeks = Weeks(f"sqlite:///{tmp_path}/store.sqlite3", tmp_path, demos)
    with weeks.clock():
        hands = Hands(weeks)
        for week, requests in ((1, 24), (2, 12)):
            for demo in demos:
                weeks.hand_in(f"{demo.name} {week}", traffic(demo, week, requests, max_tokens=40))
            weeks.wait_for_next_slot()
            hands.work()
        convicted, habit = (weeks.periods(demo.name)[1] for demo in demos)
        assert convicted.verdict == "inconsistent"
        assert convicted.findings["causes"] == [[PADDED, 1.0]]
        (told,) = weeks.report(convicted)["providers"]
        assert told["causes"] == [{"cause": PADDED, "weight": "1.000"}]
        assert told["standing"]["bills"]["verdict"] == "inconsistent"
        controls = {control["id"]: control["status"] for control in told["controls"]}
        assert controls["BIL-1"] == "not-satisfied"
        assert controls["MOD-1"] == "not-determined"
        assert habit.verdict == "inconclusive"
        assert habit.log_e < 0.0
        assert "reason to look" in habit.findings["reasons"][0]
        assert weeks.report(habit)["providers"][0]["standing"]["bills"]["verdict"] == "consistent"
        assert remake_report(weeks.store, weeks.tenant.id, convicted.report_id)


def test_a_period_without_traffic_is_reported_and_inconclusive(tmp_path):
    weeks = Weeks(f"sqlite:///{tmp_path}/store.sqlite3", tmp_path, (Demo("silent"),))
    with weeks.clock():
        hands = Hands(weeks)
        weeks.hand_in("of another", traffic(Demo("else"), 1, 2))
        weeks.hand_in("no log", b"{]\n")
        weeks.wait_for_next_slot()
        hands.work()
        (slot,) = weeks.periods("silent")
        assert (slot.state, slot.verdict, slot.audit_id) == ("done", "inconclusive", None)
        assert slot.findings["reasons"] == [
            "1 lines of the logs could not be read",
            "no new requests of this provider came in",
        ]
        assert weeks.report(slot)["verdict"] == "inconclusive"


def test_a_sample_can_be_drawn_again_from_what_was_stored_and_repetitions_count_once(tmp_path):
    weeks = Weeks(f"sqlite:///{tmp_path}/store.sqlite3", tmp_path, (Demo("steady"),))
    policy = parse_policy(POLICY + "budget_tokens = 300\n[escalation]\nbudget_tokens = 400\n", "steady")
    with weeks.clock():
        body = traffic(Demo("steady"), 1, REQUESTS)
        traces = [parse_trace(line, file="x", line=n) for n, line in enumerate(body.splitlines(), 1)]
        population = sampling.population_of(lambda: [*traces, *traces], "steady", policy, frozenset())
        assert (len(population.candidates), population.repeated) == (REQUESTS, REQUESTS)
        first, again, other = (
            sampling.draw(lambda: traces, population, 300, seed) for seed in ("a", "a", "b")
        )
        assert first == again
        assert first != other
        assert 300 <= first.sampled_tokens < 300 + 121
        assert first.sample.method == "context-weighted/v1"
        taken = frozenset(first.contents)
        rest = sampling.population_of(lambda: traces, "steady", policy, taken)
        assert len(rest.candidates) == REQUESTS - len(first.contents)
        assert sampling.population_of(lambda: traces, "else", policy, frozenset()).candidates == []


@pytest.mark.parametrize(
    ("verdict", "suspicion", "budget", "wanted"),
    [
        ("consistent", 0.0, 1000, 1000),
        ("consistent", 3.1, 1000, 4000),
        ("inconclusive", 3.1, 4000, 16000),
        ("inconclusive", 3.1, 16000, 20000),
        ("inconsistent", 30.0, 1000, 1000),
    ],
)
def test_a_suspicious_period_enlarges_the_next_sample_up_to_a_limit(verdict, suspicion, budget, wanted):
    policy = parse_policy(POLICY + "budget_tokens = 1000\n[escalation]\nbudget_tokens = 20000\n", "acme")
    empty = dict.fromkeys(slots.Slot.__slots__)
    last = slots.Slot(**empty | {"verdict": verdict, "suspicion": suspicion, "budget_tokens": budget})
    assert periods._budget([last], policy) == wanted
    assert periods._budget([], policy) == 1000


@pytest.mark.parametrize(
    ("verdict", "told", "overturned", "wanted"),
    [
        ("inconsistent", [["weights/int4", 0.45], [PADDED, 0.5]], False, (("weights/int4", 0.9),)),
        ("inconsistent", [[PADDED, 1.0]], False, ()),
        ("inconsistent", [["weights/int4", 0.9]], True, ()),
        ("consistent", [], False, ()),
    ],
)
def test_an_accusation_that_stands_keeps_the_cause_its_replays_had(verdict, told, overturned, wanted):
    empty = dict.fromkeys(slots.Slot.__slots__)
    before = slots.Slot(**empty | {"verdict": verdict, "findings": {"causes": told}})
    found = periods.History((), (before, slots.Slot(**empty)), overturned)
    assert periods._earlier_causes(found) == wanted


def test_each_period_is_audited_at_its_own_level(tmp_path):
    weeks = Weeks(f"sqlite:///{tmp_path}/store.sqlite3", tmp_path, (Demo("steady"),))
    with weeks.clock():
        hands = Hands(weeks)
        for week in (1, 2):
            weeks.hand_in(f"week {week}", traffic(Demo("steady"), week, 2, max_tokens=40))
            weeks.wait_for_next_slot()
            hands.work()
        found = weeks.rows("SELECT options FROM audit ORDER BY created")
        assert [row.options.split('"alpha":')[1].split(",")[0] for row in found] == [
            str(level(0.001, 1)),
            str(level(0.001, 2)),
        ]
