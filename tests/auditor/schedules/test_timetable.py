"""Slots of cron expressions: in UTC, each a moment of its own, whatever the clocks of the zone do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import OptionError
from auditor.schedules.timetable import MOST_MISSED, SECOND, Timetable

DAY = 86_400 * SECOND
BERLIN = "Europe/Berlin"


def moment(text):
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


def slots(table, start, count):
    found = []
    at = moment(start)
    for _ in range(count):
        at = table.next_after(at)
        found.append(datetime.fromtimestamp(at / SECOND, UTC).strftime("%m-%d %H:%M"))
    return found


def test_a_weekly_slot_keeps_its_local_hour_through_the_year():
    table = Timetable("0 6 * * 1", BERLIN)
    assert slots(table, "2026-10-13", 3) == ["10-19 04:00", "10-26 05:00", "11-02 05:00"]
    assert slots(Timetable("0 6 * * 1"), "2026-10-13", 2) == ["10-19 06:00", "10-26 06:00"]


def test_a_time_that_the_clock_skips_fires_once_when_the_skipped_hour_ends():
    found = slots(Timetable("30 2 * * *", BERLIN), "2026-03-28T00:00", 3)
    assert found == ["03-28 01:30", "03-29 01:00", "03-30 00:30"], "2:30 is skipped: 3:00 summer time"


def test_a_time_that_comes_twice_fires_once():
    found = slots(Timetable("30 2 * * *", BERLIN), "2026-10-24T12:00", 2)
    assert found == ["10-25 00:30", "10-26 01:30"], "the first 2:30, which is still summer time"


def test_a_schedule_by_elapsed_time_goes_on_through_both_changes():
    table = Timetable("*/30 * * * *", BERLIN)
    autumn = ["10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"]
    assert slots(table, "2026-10-24T23:30", 5) == autumn
    assert slots(table, "2026-03-29T00:30", 2) == ["03-29 01:00", "03-29 01:30"]


@pytest.mark.parametrize(
    ("cron", "zone", "said"),
    [
        ("0 6 * *", "UTC", "five fields"),
        ("0 6 * * 1 0", "UTC", "five fields"),
        ("61 * * * *", "UTC", "Bad minute"),
        ("0 0 30 2 *", "UTC", "day-of-month|never"),
        ("0 6 * * 1", "Europe/Atlantis", "no time zone"),
        ("0 6 * * 1", "../../etc/passwd", "no time zone"),
        ("0 6 * * 1", "", "no time zone"),
    ],
)
def test_what_is_no_timetable_is_refused_in_one_line(cron, zone, said):
    with pytest.raises(OptionError, match=said) as caught:
        Timetable(cron, zone)
    assert "\n" not in str(caught.value)


CRONS = st.sampled_from(
    ["0 6 * * 1", "*/20 * * * *", "30 2 * * *", "15 1-4 * * *", "0 0 1 * *", "5 4 29 2 *", "0 12 * * MON#2"]
)
ZONES = st.sampled_from(["UTC", BERLIN, "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia"])
MOMENTS = st.integers(moment("2020-01-01"), moment("2031-01-01"))


@given(CRONS, ZONES, MOMENTS, st.integers(0, 3))
def test_slots_rise_and_do_not_depend_on_when_one_asks(cron, zone, at, between):
    table = Timetable(cron, zone)
    first = table.next_after(at)
    second = table.next_after(first)
    assert at < first < second
    assert table.next_after(at + (first - at - 1) * between // 3) == first


@given(CRONS, ZONES, MOMENTS, st.integers(0, 40 * DAY))
def test_the_newest_due_slot_is_found_and_the_missed_ones_counted(cron, zone, since, gap):
    table = Timetable(cron, zone)
    passed, at = [], since - 1
    while (at := table.next_after(at)) <= since + gap and len(passed) <= 60:
        passed.append(at)
    until = passed[-1] if passed else since
    assert table.due(since, until) == ((passed[-1], len(passed) - 1) if passed else None)


def test_a_long_absence_is_caught_up_with_in_bounded_work():
    table = Timetable("* * * * *")
    start = moment("2020-01-01")
    now = moment("2026-01-01") + 30 * SECOND
    assert table.due(start, now) == (moment("2026-01-01"), MOST_MISSED)
