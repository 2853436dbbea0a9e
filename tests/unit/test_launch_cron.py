"""Cron expressions as Kubernetes reads them: what fires when, across both changes of clocks, and what is refused."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful.errors import SpecError
from graceful.schedules import cron

START = datetime(2026, 3, 27, 12, tzinfo=UTC)


def firings(text: str, zone: str = "Etc/UTC", *, start: datetime = START, count: int = 3) -> list[str]:
    read = cron.read(text, zone)
    found = read.between(start, start + timedelta(days=3000), most=count)
    return [f"{moment:%Y-%m-%d %H:%M}" for moment in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 3 * * *", ["2026-03-28 03:00", "2026-03-29 03:00", "2026-03-30 03:00"]),
        ("*/25 12 * * *", ["2026-03-27 12:25", "2026-03-27 12:50", "2026-03-28 12:00"]),
        ("5/20 12 27 3 *", ["2026-03-27 12:05", "2026-03-27 12:25", "2026-03-27 12:45"]),
        ("0 0 * * 0", ["2026-03-29 00:00", "2026-04-05 00:00", "2026-04-12 00:00"]),
        ("0 0 * * mon-WED/2", ["2026-03-30 00:00", "2026-04-01 00:00", "2026-04-06 00:00"]),
        ("0 0 1,15 JAN *", ["2027-01-01 00:00", "2027-01-15 00:00", "2028-01-01 00:00"]),
        ("0 0 29 2 *", ["2028-02-29 00:00", "2032-02-29 00:00"]),
        ("@weekly", ["2026-03-29 00:00", "2026-04-05 00:00", "2026-04-12 00:00"]),
        ("@hourly", ["2026-03-27 13:00", "2026-03-27 14:00", "2026-03-27 15:00"]),
    ],
)
def test_firings(text: str, expected: list[str]) -> None:
    assert firings(text) == expected


def test_of_two_kinds_of_day_either_will_do() -> None:
    assert firings("0 3 1 * 1") == ["2026-03-30 03:00", "2026-04-01 03:00", "2026-04-06 03:00"]
    assert firings("0 3 */1 * 1", count=2) == ["2026-03-30 03:00", "2026-04-06 03:00"]


def test_the_fields_are_read_in_the_time_zone() -> None:
    assert firings("0 3 * * *", "Europe/Berlin", count=2) == ["2026-03-28 02:00", "2026-03-29 01:00"]
    assert firings("0 3 * * *", "America/New_York", count=1) == ["2026-03-28 07:00"]


def test_the_hour_that_summer_time_leaves_out_does_not_fire() -> None:
    assert firings("30 2 * * *", "Europe/Berlin") == ["2026-03-28 01:30", "2026-03-30 00:30", "2026-03-31 00:30"]


def test_the_hour_that_comes_twice_fires_twice() -> None:
    start = datetime(2026, 10, 24, 12, tzinfo=UTC)
    expected = ["2026-10-25 00:30", "2026-10-25 01:30", "2026-10-26 01:30"]
    assert firings("30 2 * * *", "Europe/Berlin", start=start) == expected


@pytest.mark.parametrize(
    ("text", "zone", "start", "expected"),
    [
        # midnight exists on the day of the change, so it fires
        ("0 0 * * *", "Europe/Berlin", "2026-03-28", ["2026-03-28 23:00", "2026-03-29 22:00", "2026-03-30 22:00"]),
        ("0 0 * * 1", "America/New_York", "2026-03-03", ["2026-03-09 04:00", "2026-03-16 04:00", "2026-03-23 04:00"]),
        ("@daily", "Asia/Jerusalem", "2026-03-26", ["2026-03-26 22:00", "2026-03-27 21:00", "2026-03-28 21:00"]),
        # these clocks jump from midnight to one: there is no midnight on that day
        ("0 0 * * *", "America/Havana", "2026-03-07", ["2026-03-07 05:00", "2026-03-09 04:00", "2026-03-10 04:00"]),
        ("0 1 * * *", "America/Havana", "2026-03-08", ["2026-03-08 05:00", "2026-03-09 05:00", "2026-03-10 05:00"]),
        # and these go back across midnight: the last hour of the day comes twice
        ("30 23 * * *", "America/Nuuk", "2026-10-24T12", ["2026-10-25 00:30", "2026-10-25 01:30", "2026-10-26 01:30"]),
        ("0 0 * * *", "America/Nuuk", "2026-10-24", ["2026-10-24 01:00", "2026-10-25 02:00", "2026-10-26 02:00"]),
        # half an hour; and a day that never was
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-03T20:00", ["2026-04-04 14:45", "2026-04-04 15:15"]),
        ("0 12 30,31 12 *", "Pacific/Apia", "2011-12-01", ["2011-12-30 22:00", "2012-12-29 22:00"]),
    ],
)
def test_a_day_on_which_clocks_change_keeps_what_its_clocks_show(
    text: str, zone: str, start: str, expected: list[str]
) -> None:
    moment = datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert firings(text, zone, start=moment, count=len(expected)) == expected


SWEPT = ("0 0 * * *", "0 0 * * 1", "30 2 * * *", "*/20 0-3 * * 0", "59 23 * * *", "0 1,2,3 1,8,25-31 * 6", "7 * * * *")
"""Around midnight and around the usual hours of change; daily, weekly, and of two kinds of day either."""


def zones_with_changes() -> list[tuple[str, list[datetime]]]:
    """Days after which clocks have changed from 2024 to 2035, with one zone for each different list of offsets."""
    days = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(12 * 366)]
    result = {}
    for name in sorted(zoneinfo.available_timezones()):
        zone = zoneinfo.ZoneInfo(name)
        offsets = tuple(day.astimezone(zone).utcoffset() for day in days)
        if len(set(offsets)) > 1:
            result[offsets] = (name, [days[at] for at in range(1, len(days)) if offsets[at] != offsets[at - 1]])
    return list(result.values())


def test_around_every_change_of_clocks_the_firings_are_those_found_minute_by_minute() -> None:
    """An oracle without our code: every minute is asked what the clocks of its zone show."""
    zones = zones_with_changes()
    assert len(zones) > 20
    for at, (name, changed) in enumerate(zones):
        zone = zoneinfo.ZoneInfo(name)
        for change in {changed[at % len(changed)], changed[(at + 7) % len(changed)]}:
            start = change - timedelta(days=2, seconds=7)
            minutes = [change + timedelta(minutes=minute - 2880) for minute in range(7200)]
            shown = [(minute, minute.astimezone(zone)) for minute in minutes]
            for text in SWEPT:
                read = cron.read(text, name)
                minute, hour, day, _, weekday = map(set, read.values)
                expected = tuple(
                    moment
                    for moment, clock in shown
                    if clock.minute in minute
                    and clock.hour in hour
                    and sum((clock.day in day, clock.isoweekday() % 7 in weekday)) >= (1 if read.either_day else 2)
                )
                assert read.between(start, minutes[-1]) == expected, (name, text, change)


def test_between_excludes_its_start_includes_its_end_and_is_bounded() -> None:
    read = cron.read("* * * * *", "Etc/UTC")
    assert read.between(START, START) == ()
    assert read.between(START, START + timedelta(minutes=1)) == (START + timedelta(minutes=1),)
    assert len(read.between(START, START + timedelta(days=9), most=7)) == 7


FIELD = st.sampled_from(["*", "7", "1-5", "*/3", "2,4"])


@settings(deadline=None, max_examples=30)
@given(st.tuples(FIELD, FIELD, FIELD, FIELD, FIELD), st.integers(0, 10**6))
def test_every_firing_matches_its_fields_and_none_is_left_out(fields: tuple[str, ...], minutes: int) -> None:
    fields = (*fields[:4], "*" if fields[4] == "7" else fields[4])
    read = cron.read(" ".join(fields), "Etc/UTC")
    start = START + timedelta(minutes=minutes)
    minute = start.replace(second=0) + timedelta(minutes=1)
    found = read.after(start)
    for _ in range(500):  # by hand, minute by minute
        days = [minute.day in read.values[2], minute.isoweekday() % 7 in read.values[4]]
        right_day = any(days) if read.either_day else all(days)
        if minute.minute in read.values[0] and minute.hour in read.values[1] and minute.month in read.values[3]:
            assert (found == minute) == right_day
            if right_day:
                return
        minute += timedelta(minutes=1)
    assert found >= minute


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 3 * *", "4 fields, must be five (minute, hour, day of month, month, day of week)"),
        ("60 * * * *", "minute '60': must be from 0 to 59, got 60"),
        ("0 3 * * 7", "day of week '7': must be from 0 to 6, got 7; 0 is Sunday"),
        ("0 3 * * moon", "must be a number from 0 to 6 or one of sun, mon"),
        ("*/0 * * * *", "the step must be a number of at least 1, got '0'"),
        ("5-2 * * * *", "the range ends before it starts; write 2-5"),
        ("5- * * * *", "must be a number from 0 to 59, got ''"),
        ("1,, * * * *", "must be a number from 0 to 59, got ''"),
        ("0 3 31 2,4 *", "never fires, no chosen month has a day 31"),
        ("@every 1h", "not known; write five fields"),
        ("", "0 fields"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        cron.read(text, "Etc/UTC")
    assert said in refused.value.message
    assert refused.value.message.startswith(f"cron {text!r}: ")
    assert "\n" not in refused.value.message


def test_a_machine_without_a_list_of_time_zones_is_told_what_to_install() -> None:
    zoneinfo.ZoneInfo.clear_cache()
    zoneinfo.reset_tzpath(to=[])
    try:
        with pytest.raises(SpecError, match="time zone 'Etc/UTC': this machine has no list of time zones; install tz"):
            cron.read("0 3 * * *", "Etc/UTC")
    finally:
        zoneinfo.reset_tzpath()


@pytest.mark.parametrize(
    ("zone", "said"),
    [
        ("Europe/Berln", "did you mean Europe/Berlin?"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("", "write one such as"),
        ("../etc/passwd", "write one such as"),
    ],
)
def test_unknown_time_zones(zone: str, said: str) -> None:
    with pytest.raises(SpecError, match=r"time zone .*: not known; ") as refused:
        cron.read("0 3 * * *", zone)
    assert said in refused.value.message
