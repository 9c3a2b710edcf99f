"""Weekly periods over demo providers, with real worker processes and a clock that a file shifts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from sqlalchemy import text

from auditor.generation import Provider, generate
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import deviation
from auditor.reference.sampling import SamplingSpec
from auditor.schedules import schedules, slots
from auditor.schedules.policy import parse_policy
from auditor.schedules.timetable import SECOND, Timetable
from auditor.service import audits, clock, tenants
from auditor.service.blobs import BlobFolder
from auditor.store import Store
from auditor.trace_format import parse_trace, trace_to_line

ROOT = Path(__file__).parents[3]
POLICY = 'schema = "auditor.policy/v1"\nname = "strict"\nversion = "1"\n'
PADDED = "accounting/bill"
"""A bill a tenth above the tokens: nothing else is done otherwise."""
END_MARK = "habit/end-mark"
"""One token a response that no id and no text shows is billed: an honest habit, and a new one."""
BILLED = {PADDED: lambda tokens: round(1.1 * tokens) + 1, END_MARK: lambda tokens: tokens + 1}


@dataclass(frozen=True)
class Demo:
    """A provider that is honest until a week, and from then on does `cause`."""

    name: str
    cause: str = "honest"
    week: int = 0

    def accused_in(self, week):
        return self.cause not in ("honest", END_MARK) and week >= self.week

    def cause_in(self, week):
        return self.cause if self.week and week >= self.week else "honest"


@cache
def provider():
    return Provider.load(TARGET)


def traffic(demo, week, requests, max_tokens=120):
    """A week's log of a provider."""
    cause = demo.cause_in(week)
    seed = 1_000_003 * week + sum(demo.name.encode())
    run = deviation("honest" if cause in BILLED else cause)
    spec = SamplingSpec(max_tokens=max_tokens)
    lines = []
    for trace in generate(
        provider(), demo_conversations(requests, seed), deviation=run, seed=seed, sampling=spec
    ):
        usage = trace.usage
        if cause in BILLED:
            usage = replace(usage, completion_tokens=BILLED[cause](usage.completion_tokens))
        lines.append(trace_to_line(replace(trace, provider=demo.name, usage=usage)))
    return b"".join(lines)


def parsed(demo, week, requests, max_tokens=120):
    """The same log, read."""
    lines = traffic(demo, week, requests, max_tokens).splitlines()
    return [parse_trace(line, file=demo.name, line=number) for number, line in enumerate(lines, 1)]


class Weeks:
    """A service's database, a tenant, a schedule for each provider, and workers to start and kill."""

    def __init__(
        self, url, folder, demos, *, policy=POLICY, lease=2.0, cron="0 6 * * 1", zone="Europe/Berlin"
    ):
        self.url, self.folder, self.demos, self.lease = url, folder, demos, lease
        self.shift_file = folder / "shift"
        self.set_shift(0)
        self.store = Store.open(url)
        self.blobs = BlobFolder(folder / "blobs")
        with self.store.transaction(writes=True) as connection:
            self.tenant = tenants.create_tenant(connection, "buyer", most_running=4)
            self.schedules = {
                demo.name: schedules.add(
                    connection,
                    self.tenant.id,
                    demo.name,
                    Timetable(cron, zone),
                    parse_policy(policy, demo.name),
                )
                for demo in demos
            }
        self.processes = []

    @contextmanager
    def clock(self):
        clock.unsafe_shift(lambda: int(self.shift_file.read_text()))
        try:
            yield self
        finally:
            clock.unsafe_shift(None)
            for process in self.processes:
                process.kill()
                process.communicate()
            self.store.close()

    def set_shift(self, microseconds):
        fresh = self.shift_file.with_name("shift.new")
        fresh.write_text(str(microseconds))
        fresh.replace(self.shift_file)

    def hand_in(self, name, body):
        digest = self.blobs.put(body)
        with self.store.transaction(writes=True) as connection:
            return audits.keep_log(connection, self.tenant.id, digest, name, len(body))

    def wait_for_next_slot(self):
        """Let the clock jump to just after the next slot; returns the slot."""
        with self.store.transaction() as connection:
            found = [schedules.find(connection, self.tenant.id, s.id) for s in self.schedules.values()]
            slot = max(s.next_at for s in found)
            ahead = slot - clock.now(connection) + SECOND
        self.set_shift(int(self.shift_file.read_text()) + ahead)
        return slot

    def start(self):
        command = [sys.executable, "-m", "tests.auditor.schedules.clocked_worker", self.url]
        command += [str(self.blobs.folder), str(self.shift_file), str(self.lease)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
        self.processes.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    def rows(self, sql):
        with self.store.transaction() as connection:
            return connection.execute(text(sql)).all()

    def wait_until(self, sql, seconds=300):
        deadline = time.monotonic() + seconds
        while not self.rows(sql)[0][0]:
            assert time.monotonic() < deadline, sql
            time.sleep(0.02)

    def wait_for_reports(self, slot, seconds=600):
        done = f"SELECT count(*) = {len(self.demos)} FROM slot WHERE slot_at = {slot} AND state = 'done'"
        self.wait_until(done, seconds)

    def periods(self, name):
        with self.store.transaction() as connection:
            return slots.numbered(connection, self.tenant.id, name)

    def report(self, slot):
        (row,) = self.rows(f"SELECT body FROM report WHERE id = '{slot.report_id}'")
        return json.loads(bytes(row.body))


def check(weeks, last_week):
    """The right provider in the right week with the right cause, honest ones never; all in reports, on time."""
    table = []
    for demo in weeks.demos:
        found = weeks.periods(demo.name)
        assert [slot.number for slot in found] == list(range(1, last_week + 1)), (
            "a period too many or too few"
        )
        assert len({slot.slot_at for slot in found}) == last_week
        for slot in found:
            accused = demo.accused_in(slot.number)
            assert (slot.verdict == "inconsistent") == accused, (
                demo,
                slot.number,
                slot.verdict,
                slot.findings,
            )
            if accused:
                assert slot.findings["causes"][0][0] == demo.cause, (demo, slot.number, slot.findings)
            document = weeks.report(slot)
            (told,) = document["providers"]
            assert told["name"] == demo.name
            assert told["verdict"] == slot.verdict
            assert told["standing"]["periods"] == slot.number
            assert len(told["audits"]) == 1, "each report tells of its own period's audit"
            late = (slot.finished - slot.slot_at) / SECOND
            table.append((demo.name, slot.number, slot.verdict, slot.log_e, slot.findings["causes"], late))
    reports = weeks.rows("SELECT count(*) FROM report")[0][0]
    assert reports == len(weeks.demos) * last_week
    entries = weeks.rows("SELECT count(*) FROM log_entry WHERE kind = 'report'")[0][0]
    assert entries == reports
    return table
