"""Pages of what goes on over time: schedules, reports, disputes."""

from __future__ import annotations

import hashlib
import re

import pytest

from auditor.disputes import disputes
from auditor.disputes.rules import Said
from auditor.reports.making import make_report
from auditor.reports.policy import parse_policy
from auditor.service import exhibits
from auditor.service.log_placing import open_log, place
from tests.api.test_pages import Browser, work

HOSTILE = "<script>alert(1)</script>\"'"
SCHEDULE = {
    "provider": HOSTILE,
    "cron": "0 6 * * 1",
    "zone": "Europe/Berlin",
    "policy": 'schema = "auditor.policy/v1"\nname = "<b>"\nversion = "1"\n',
}
REPORT_POLICY = parse_policy(b'schema = "auditor.policy/v1"\nname = "p"\nversion = "1"\n')


@pytest.fixture
def alice(world):
    browser = Browser(world)
    browser.sign_in(world.alice.key)
    return browser


@pytest.fixture
def bob(world):
    browser = Browser(world)
    browser.sign_in(world.bob.key)
    return browser


def test_a_schedule_is_added_run_paused_and_removed_by_forms(world, alice, bob):
    assert "None yet" in alice.get("/schedules").text
    added = alice.post("/schedules", SCHEDULE)
    assert added.status_code == 303, added.text
    path = added.headers["location"]
    assert "script&gt;" in alice.get("/schedules").text
    page = alice.get(path).text
    assert "<script>alert" not in page
    assert "&lt;b&gt;" in page
    assert "Europe/Berlin" in page
    for move, shown in (("pause", "Resume"), ("resume", "Pause"), ("run", "queued")):
        assert alice.post(f"{path}/{move}", at=path).status_code == 303
        assert shown in alice.get(path).text
    assert bob.get(path).status_code == 404
    assert bob.post(f"{path}/pause", at="/schedules").status_code == 404
    assert "script&gt;" not in bob.get("/schedules").text
    assert alice.post(f"{path}/explode", at=path).status_code == 422
    assert alice.post(f"{path}/remove", at=path).headers["location"] == "/schedules"
    assert "script&gt;" not in alice.get("/schedules").text


@pytest.mark.parametrize(
    "wrong", [{"cron": "often"}, {"zone": "Mars"}, {"policy": "x"}, {"provider": ""}, {"provider": "a\0"}]
)
def test_a_schedule_that_cannot_be_kept_is_refused_above_the_form(alice, wrong):
    answer = alice.post("/schedules", SCHEDULE | wrong)
    assert answer.status_code in (409, 422), answer.text
    assert 'role="alert"' in answer.text


def test_a_report_is_shown_with_its_own_bytes_to_its_tenant(world, alice, bob):
    assert "None yet" in alice.get("/reports").text
    body = make_report(world.service.store, world.alice.tenant.id, HOSTILE, 0, 1_000_000, REPORT_POLICY)
    (path,) = set(re.findall(r'href="(/reports/rep_\w+)"', alice.get("/reports").text))
    page = alice.get(path).text
    assert "script&gt;" in page
    assert "<script>alert" not in page
    assert f"sha256:{hashlib.sha256(body).hexdigest()}" in page
    assert alice.get(f"{path}/report.json").content == body
    for suffix in ("", "/report.json"):
        assert bob.get(path + suffix).status_code == 404
    assert path not in bob.get("/reports").text


def test_a_verdict_whose_dispute_was_upheld_counts_against_nobody(world, alice, bob):
    audit = alice.submit().headers["location"]
    work(world)
    assert "Overturned" not in alice.get(audit).text
    said = Said("Jo", HOSTILE, ())
    with world.service.store.transaction(writes=True) as connection:
        made = disputes.file(connection, world.alice.tenant.id, audit.split("/")[-1], said)
    path = f"/disputes/{made.id}"
    page = alice.get(path)
    assert page.status_code == 200
    assert "script&gt;" in page.text
    assert "<script>alert" not in page.text
    assert path in alice.get(audit).text
    assert path in alice.get("/disputes").text
    assert bob.get(path).status_code == 404
    assert path not in bob.get("/disputes").text
    with world.service.store.transaction(writes=True) as connection:
        disputes.resolve(connection, world.alice.tenant.id, made.id, "upheld", said)
    assert "Overturned" in alice.get(audit).text
    with world.service.store.transaction() as connection:
        (acme,) = exhibits.standings(connection, world.alice.tenant.id)
    assert (acme.verdicts, acme.last_outcome) == ({"overturned": 1}, "overturned")
    assert "1 overturned" in alice.get("/").text


def test_the_log_lists_entries_of_every_kind(world, alice, bob):
    audit = alice.submit().headers["location"]
    work(world)
    make_report(world.service.store, world.alice.tenant.id, "acme", 0, 1_000_000, REPORT_POLICY)
    with world.service.store.transaction(writes=True) as connection:
        made = disputes.file(connection, world.alice.tenant.id, audit.split("/")[-1], Said("Jo", "no", ()))
    log = open_log(world.service.log, world.service.log.parent / "log.key")
    assert place(world.service.store, log) == 4
    page = alice.get("/log").text
    assert audit in page
    assert f"/disputes/{made.id}" in page
    assert 'href="/reports/rep_' in page
    for stranger in (bob.get("/log").text, Browser(world).get("/log").text):
        assert 'href="/reports/rep_' not in stranger
        assert made.id in stranger
