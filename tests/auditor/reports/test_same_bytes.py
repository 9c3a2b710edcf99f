"""A report is a function of the rows: not of clock, time zone, hash seed, database or how often it is made."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select, update

from auditor.reports import Policy, ReportDiffersError, make_report, remake_report, report_entry
from auditor.service.errors import NotFoundError, RequestInvalidError
from auditor.store_schema import evidence, log_entry, report
from auditor.store_schema import verdict as verdict_table
from tests.auditor.reports.recorded_rows import MONDAY, WEEK, load

ROOT = Path(__file__).parents[3]
MAKE = """
import hashlib, sys
from tests.auditor.reports.recorded_rows import load
found = load(sys.argv[1])
print(*(hashlib.sha256(body).hexdigest() for body in found.both_weeks()))
"""


def test_time_zone_hash_seed_and_database_change_no_byte(tmp_path, postgres_server):
    def digests(number, url, **environment):
        command = [sys.executable, "-c", MAKE, url]
        done = subprocess.run(
            command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = [
        digests(0, f"sqlite:///{tmp_path / 'a.sqlite3'}", TZ="UTC", PYTHONHASHSEED="1"),
        digests(
            1,
            f"sqlite:///{tmp_path / 'b.sqlite3'}",
            TZ="Pacific/Chatham",
            PYTHONHASHSEED="2",
            LC_ALL="de_DE.UTF-8",
        ),
        digests(2, postgres_server.new_database(), TZ="America/St_Johns", PYTHONHASHSEED="3"),
    ]
    assert len(set(made)) == 1
    assert len(set(made[0].split())) == 2


def test_made_once_and_then_read_back(recorded):
    first = recorded.week(0)
    assert recorded.week(0) == first
    with recorded.store.transaction() as connection:
        ((name, digest),) = connection.execute(select(report.c.id, report.c.digest)).all()
        assert digest == f"sha256:{hashlib.sha256(first).hexdigest()}"
        position, entry = report_entry(connection, recorded.tenant, name)
    assert position is None
    assert json.loads(entry)["digest"] == digest
    assert json.loads(entry)["kind"] == "report"
    assert remake_report(recorded.store, recorded.tenant, name) == first


def test_report_and_log_entry_are_committed_together_or_not_at_all(sqlite, monkeypatch):
    def fails(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr("auditor.reports.making.log_fact", fails)
    with pytest.raises(RuntimeError):
        sqlite.week(0)
    with sqlite.store.transaction() as connection:
        assert connection.execute(select(report.c.id)).all() == []
        kinds = set(connection.execute(select(log_entry.c.kind)).scalars())
    assert kinds == {"submission", "verdict"}


@pytest.mark.parametrize("table", ["evidence", "verdict"])
def test_an_altered_row_is_noticed_when_the_report_is_made_again(recorded, table):
    name = json.loads(recorded.week(1))["id"]
    changed = evidence if table == "evidence" else verdict_table
    with recorded.store.transaction(writes=True) as connection:
        for row in connection.execute(select(changed)).all():
            body = json.loads(bytes(row.body)) | {"verdict": "consistent", "e_value": 0.5}
            same = changed.c.audit_id == row.audit_id
            if table == "evidence":
                same &= changed.c.number == row.number
            connection.execute(update(changed).where(same).values(body=json.dumps(body).encode()))
    with pytest.raises(ReportDiffersError, match="made again"):
        remake_report(recorded.store, recorded.tenant, name)


def test_what_comes_after_the_period_changes_nothing(sqlite, tmp_path):
    whole = sqlite.week(0)
    early = load(f"sqlite:///{tmp_path / 'early.sqlite3'}")
    with early.store.transaction(writes=True) as connection:
        late = select(verdict_table.c.audit_id).where(verdict_table.c.created >= MONDAY + WEEK)
        gone = list(connection.execute(late).scalars())
        connection.execute(evidence.delete().where(evidence.c.audit_id.in_(gone)))
        connection.execute(verdict_table.delete().where(verdict_table.c.audit_id.in_(gone)))
    assert early.week(0) == whole


def test_a_period_that_is_not_over_or_none_is_refused(sqlite):
    for start, end in ((MONDAY, 1 << 62), (MONDAY, MONDAY), (-1, MONDAY)):
        with pytest.raises(RequestInvalidError):
            make_report(sqlite.store, sqlite.tenant, "", start, end, Policy())


def test_another_tenants_report_is_not_found(sqlite):
    name = json.loads(sqlite.week(1))["id"]
    with pytest.raises(NotFoundError):
        remake_report(sqlite.store, sqlite.other, name)
