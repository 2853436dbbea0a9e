"""Schedules of one machine: what is due after any interruption, and files that survive one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from graceful.errors import SpecError, StorageError
from graceful.schedules import history, timetable
from graceful.schedules.history import Event
from graceful.schedules.timetable import Due, Entry, Timetable, due
from tests.support.limits import largest_file

MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)
ENTRY = Entry(
    name="hourly", cron="0 * * * *", time_zone="Etc/UTC", document={"model": "m"}, since=MIDNIGHT - timedelta(minutes=1)
)


def at(hours: float) -> datetime:
    return MIDNIGHT + timedelta(hours=hours)


def event(hours: float, outcome: str = "passed", schedule: str = "hourly") -> Event:
    return Event(schedule=schedule, firing=f"f-{hours}", due=at(hours), at=at(hours), outcome=outcome)


def test_nothing_is_due_before_its_time() -> None:
    assert due(ENTRY, [event(0)], at(0.99)) == Due()
    assert due(ENTRY, [event(0)], at(1)) == Due(run=at(1))


def test_what_was_due_before_the_schedule_was_made_does_not_count() -> None:
    assert due(replace(ENTRY, since=at(5)), [], at(5.5)) == Due()


def test_a_missed_firing_runs_once_if_less_than_an_hour_late() -> None:
    assert due(ENTRY, [event(0)], at(1.9)) == Due(run=at(1))
    assert due(replace(ENTRY, cron="0 2 * * *"), [event(0)], at(2.99)) == Due(run=at(2))


def test_a_firing_an_hour_late_is_missed() -> None:
    daily = replace(ENTRY, cron="0 2 * * *")
    assert due(daily, [event(0)], at(3)) == Due(missed=(at(2),))
    assert due(daily, [event(0), event(2, "missed")], at(3)) == Due()


def test_several_missed_firings_run_once_for_all() -> None:
    assert due(ENTRY, [event(0)], at(3.5)) == Due(run=at(3), missed=(at(1), at(2)))


def test_a_schedule_that_fell_far_behind_runs_its_newest_firing() -> None:
    minutely = replace(ENTRY, cron="* * * * *")
    found = due(minutely, [event(0)], at(24 * 30))
    assert found.run == at(24 * 30)
    assert timetable.MOST <= len(found.missed) <= 2 * timetable.MOST


@pytest.mark.parametrize("outcome", ["passed", "held", "failed", "skipped", "missed"])
def test_what_ended_does_not_run_again(outcome: str) -> None:
    assert due(ENTRY, [event(1, "running"), event(1, outcome)], at(1.5)) == Due()


@pytest.mark.parametrize("outcome", ["running", "interrupted"])
def test_an_interrupted_firing_is_taken_up_again_within_the_hour(outcome: str) -> None:
    daily = replace(ENTRY, cron="0 1 * * *")
    assert due(daily, [event(1, outcome)], at(1.9)) == Due(run=at(1))
    assert due(daily, [event(1, outcome)], at(2)) == Due(missed=(at(1),))


def test_an_interrupted_firing_resumes_though_one_was_skipped_beside_it() -> None:
    quarterly = replace(ENTRY, cron="*/15 * * * *")
    history = [event(1, "running"), event(1.25, "skipped"), event(1, "interrupted")]
    assert due(quarterly, history, at(1.4)) == Due(run=at(1))


def test_a_newer_firing_goes_before_an_interrupted_one() -> None:
    quarterly = replace(ENTRY, cron="*/15 * * * *")
    assert due(quarterly, [event(1, "interrupted")], at(1.3)) == Due(run=at(1.25), missed=(at(1),))


def test_a_paused_schedule_asks_for_nothing() -> None:
    assert due(replace(ENTRY, paused=True), [event(1, "interrupted")], at(9)) == Due()


def test_other_schedules_do_not_matter() -> None:
    assert due(ENTRY, [event(0), event(1, schedule="nightly")], at(1)) == Due(run=at(1))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Timetable:
    return Timetable(tmp_path / "schedules")


def test_a_schedule_survives_its_file(table: Timetable) -> None:
    assert table.entries() == ()
    table.put(ENTRY)
    table.put(replace(ENTRY, name="b", paused=True))
    assert table.entries() == (replace(ENTRY, name="b", paused=True), ENTRY)
    assert sorted(path.name for path in table.folder.iterdir()) == ["b.json", "hourly.json"]
    table.remove("b")
    assert table.entries() == (ENTRY,)


def test_paused_time_is_forgotten(table: Timetable) -> None:
    table.put(ENTRY)
    assert table.pause("hourly", paused=True, now=at(1))
    assert not table.pause("hourly", paused=True, now=at(2))
    assert table.find("hourly") == replace(ENTRY, paused=True)
    assert table.pause("hourly", paused=False, now=at(5.5))
    assert due(table.find("hourly"), [], at(5.9)) == Due()


def test_an_unknown_schedule_is_named(table: Timetable) -> None:
    for act in (table.find, table.remove, lambda name: table.pause(name, paused=True, now=MIDNIGHT)):
        with pytest.raises(SpecError, match=r"no schedule 'x' in .*schedules; `graceful schedule list`"):
            act("x")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "name": "x", "since": "never"}'])
def test_a_damaged_file_is_named_with_its_remedy(table: Timetable, text: str) -> None:
    table.put(ENTRY)
    (table.folder / "hourly.json").write_text(text, encoding="utf-8")
    with pytest.raises(StorageError, match=r"hourly.json: not a schedule .*; apply it again, or delete the file"):
        table.find("hourly")


def test_a_damaged_file_stops_no_other_schedule_and_can_be_removed(
    table: Timetable, caplog: pytest.LogCaptureFixture
) -> None:
    table.put(ENTRY)
    table.put(replace(ENTRY, name="nightly"))
    for text in ("{", '{"schema": 1}', (table.folder / "nightly.json").read_text().replace("0 * * * *", "nope")):
        (table.folder / "hourly.json").write_text(text, encoding="utf-8")
        assert [entry.name for entry in table.entries()] == ["nightly"]
    assert "hourly.json: not a schedule" in caplog.text
    table.remove("hourly")
    assert not (table.folder / "hourly.json").exists()


def test_the_history_is_read_as_it_was_written(table: Timetable) -> None:
    assert table.history() == ()
    events = (event(1, "running"), replace(event(1, "failed"), exit_code=5, reason="out of \u00e9ther"))
    for one in events:
        table.record(one)
    assert table.history() == events
    lines = (table.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["running", "failed"]


def test_a_line_cut_short_by_a_crash_harms_neither_its_neighbours_nor_the_next(table: Timetable) -> None:
    table.record(event(1))
    with (table.folder / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"schedule": "hourly", "fir')
    table.record(event(2))
    assert table.history() == (event(1), event(2))


def test_a_poll_reads_only_what_is_new(table: Timetable) -> None:
    table.record(event(0))
    with (table.folder / "history.jsonl").open("ab") as file:
        file.writelines(event(hour).line() for hour in range(1, 2000))
    assert len(table.history()) == 2000
    before = time.process_time()
    for hour in range(2000, 2050):
        table.record(event(hour))
        assert table.history()[-1] == event(hour)
    assert time.process_time() - before < 1.0, "read whole at each look, this takes several seconds"


def test_a_history_that_grew_too_large_is_put_aside_and_decides_the_same(
    table: Timetable, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Timetable(table.folder)
    before = [event(1, "running", "a"), *(event(1 + step / 9, "skipped", "a") for step in range(1, 9))]
    before += [event(0, schedule="b"), event(9, "missed", "c"), event(2, "failed", "c"), event(1, "passed", "d")]
    for item in before:
        table.record(item)
    assert other.history() == tuple(before)
    monkeypatch.setattr(history, "LARGEST", 500)
    table.record(event(3, "running", "d"))
    kept = table.history()
    assert kept == other.history() == Timetable(table.folder).history()
    assert kept == (before[0], before[8], *before[9:], event(3, "running", "d"))
    old = (table.folder / "history.old.jsonl").read_bytes().splitlines(keepends=True)
    assert old == [item.line() for item in before]
    for name in "abc":
        entry = replace(ENTRY, name=name, cron="*/20 * * * *", since=at(-1))
        assert due(entry, before, at(2.5)) == due(entry, kept, at(2.5)), name
    assert not [path for path in table.folder.iterdir() if path.suffix == ".tmp"]


def test_writers_in_many_processes_lose_no_line_while_the_history_is_put_aside(table: Timetable) -> None:
    code = (
        "import sys; from datetime import *; from pathlib import Path; from graceful.schedules import history\n"
        "history.LARGEST = 3000\n"
        "mine = history.History(Path(sys.argv[1]))\n"
        "for step in range(60):\n"
        "    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=step)\n"
        "    mine.record(history.Event(schedule=sys.argv[2], firing=str(step), due=moment, at=moment, outcome=''))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(table.folder), name]) for name in "abc"]
    lines: list[Event] = []
    while any(writer.poll() is None for writer in writers):
        lines = [*table.history()]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    lines = [*table.history()]
    for name in "abc":
        firings = [int(item.firing) for item in lines if item.schedule == name]
        assert firings == sorted(set(firings))
        assert firings[-1] == 59
    assert len((table.folder / "history.jsonl").read_bytes().splitlines()) == 1 + len(lines) < 40


def test_what_a_write_that_failed_began_is_removed(table: Timetable) -> None:
    table.put(ENTRY)
    large = replace(ENTRY, document={"model": "m" * 5000})
    refused = pytest.raises(StorageError, match=r"hourly.json: cannot write, File too large; check the path")
    with largest_file(1000), refused:
        table.put(large)
    assert [path.name for path in table.folder.iterdir()] == ["hourly.json"]
    assert table.find("hourly") == ENTRY


def test_a_look_whether_a_firing_runs_keeps_none_from_starting(table: Timetable) -> None:
    with table.firing("a"):
        pass
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.002):  # without a pause, shared locks would follow each other without a gap
            table.is_firing("a")

    looking = [threading.Thread(target=look) for _ in range(4)]
    for thread in looking:
        thread.start()
    try:
        for _ in range(200):
            with table.firing("a"):
                pass
    finally:
        over.set()
        for thread in looking:
            thread.join()


def test_of_two_schedulers_and_of_two_firings_one_works(table: Timetable) -> None:
    other = Timetable(table.folder)
    assert not table.is_working()
    with table.working():
        assert other.is_working()
        with pytest.raises(SpecError, match="another scheduler works on"), other.working():
            pass
        with table.firing("a"), other.firing("b"):
            assert other.is_firing("a")
            with pytest.raises(SpecError, match="schedule a: a firing is running"), other.firing("a"):
                pass
    assert not table.is_working()
    assert not table.is_firing("a")
    assert not table.is_firing("never")


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "schedules").write_text("")
    with pytest.raises(StorageError, match=r"schedules/hourly.json: cannot write, File exists; check the path"):
        Timetable(tmp_path / "schedules").put(ENTRY)
