"""The scheduler of one machine, with a clock of the test's: what it starts, skips, reports and writes down."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from graceful.errors import InfrastructureError, SpecError
from graceful.schedules.history import Event
from graceful.schedules.scheduler import FiringResult, Scheduler
from graceful.schedules.timetable import Entry, Timetable

START = datetime(2026, 11, 22, 3, 0, 30, tzinfo=UTC)
PASSED = FiringResult(outcome="passed", exit_code=0)


@dataclass
class World:
    """A timetable, a clock that stands still, and refreshes that the test writes."""

    timetable: Timetable
    now: datetime = START
    ends: list[FiringResult | BaseException] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    during: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            timetable=self.timetable, start=self._start, say=self.said.append, now=lambda: self.now
        )

    def _start(self, entry: Entry, firing: str, lock: int) -> FiringResult:
        self.started.append(firing)
        for name in self.during:
            self.now += timedelta(minutes=15)
            if name == entry.name:  # as the thread does that watches a firing
                self.scheduler.skip(name)
        end = self.ends.pop(0) if self.ends else PASSED
        if isinstance(end, BaseException):
            raise end
        return end

    def make(self, name: str, cron: str = "*/15 * * * *", *, hours_ago: float = 0.1) -> None:
        since = START - timedelta(hours=hours_ago)
        self.timetable.put(Entry(name=name, cron=cron, time_zone="Etc/UTC", document={}, since=since))

    def outcomes(self) -> list[tuple[str, str]]:
        return [(f"{event.due:%H:%M}", event.outcome) for event in self.timetable.history()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Timetable(tmp_path / "schedules"))


def test_what_is_due_runs_once_under_the_name_of_its_firing(world: World) -> None:
    world.make("a")
    world.make("b", "0 9 * * *")
    assert world.scheduler.run_due() is None
    assert world.scheduler.run_due() is None
    assert world.started == [f"a-{int(START.timestamp() // 60)}"]
    assert world.outcomes() == [("03:00", "running"), ("03:00", "passed")]


def test_a_restart_takes_nothing_twice_and_forgets_nothing(world: World) -> None:
    world.make("a")
    world.scheduler.run_due()
    after = World(world.timetable, now=START + timedelta(minutes=20))
    after.scheduler.run_due()
    assert [len(world.started), len(after.started)] == [1, 1]
    assert world.started != after.started


def test_missed_firings_are_reported_and_the_newest_runs_for_them(world: World) -> None:
    world.make("a", hours_ago=24)
    world.scheduler.run_due()
    assert len(world.started) == 1
    assert world.said[0].startswith("a: missed, 95 firings, ")
    assert f"; {world.started[0]} runs for them" in world.said[0]
    assert [outcome for _, outcome in world.outcomes()] == ["missed", "missed", "running", "passed"]
    assert world.scheduler.run_due() is None
    assert len(world.started) == 1


def test_a_firing_too_late_is_missed_and_said_once(world: World) -> None:
    world.make("a", "0 2 * * *", hours_ago=24)
    world.scheduler.run_due()
    world.scheduler.run_due()
    assert world.started == []
    assert world.outcomes() == [("02:00", "missed")]
    assert len(world.said) == 1


def test_a_firing_that_falls_into_the_one_before_is_skipped_and_said(world: World) -> None:
    world.make("a")
    world.during = ["a", "a"]
    world.scheduler.run_due()
    world.scheduler.run_due()
    assert len(world.started) == 1
    skipped = [("03:15", "skipped"), ("03:30", "skipped")]
    assert world.outcomes() == [("03:00", "running"), *skipped, ("03:00", "passed")]
    assert sum("skipped, the firing before it still runs" in line for line in world.said) == 2


def test_a_firing_that_has_just_started_is_not_skipped(world: World) -> None:
    world.make("a")
    world.during = ["a"]
    world.scheduler.start = lambda entry, firing, lock: (world.scheduler.skip("a"), PASSED)[1]
    world.scheduler.run_due()
    assert world.outcomes() == [("03:00", "running"), ("03:00", "passed")]


def test_another_schedule_waits_and_then_runs(world: World) -> None:
    world.make("a", "0 * * * *")
    world.make("b", "10 3 * * *")
    world.during = ["b"]
    world.scheduler.run_due()
    assert [name.partition("-")[0] for name in world.started] == ["a", "b"]
    assert ("03:10", "passed") in world.outcomes()


def test_an_interrupted_firing_ends_the_work_and_resumes_under_its_name(world: World) -> None:
    world.make("a")
    world.make("b")
    world.ends = [KeyboardInterrupt()]
    assert world.scheduler.run_due() == 130
    assert world.outcomes() == [("03:00", "running"), ("03:00", "interrupted")]
    again = World(world.timetable, now=START + timedelta(minutes=5))
    again.scheduler.run_due()
    assert again.started[0] == world.started[0]
    assert len(again.started) == 2


@pytest.mark.parametrize(
    ("end", "outcome", "code", "reason"),
    [
        (FiringResult(outcome="held", exit_code=3), "held", 3, ""),
        (FiringResult(outcome="skipped", exit_code=0, reason="no new data"), "skipped", 0, "no new data"),
        (InfrastructureError("ended by SIGKILL"), "failed", 4, "ended by SIGKILL"),
    ],
)
def test_how_a_refresh_ended_is_written_down(
    world: World, end: FiringResult | BaseException, outcome: str, code: int, reason: str
) -> None:
    world.make("a")
    world.ends = [end]
    assert world.scheduler.run_due() is None
    last = world.timetable.history()[-1]
    assert (last.outcome, last.exit_code, last.reason) == (outcome, code, reason)


def test_a_firing_by_hand_keeps_the_scheduler_from_its_own(world: World) -> None:
    world.make("a")
    with world.timetable.firing("a"):
        world.scheduler.run_due()
    assert world.started == []
    assert world.outcomes() == [("03:00", "skipped")]


def test_a_firing_left_by_a_killed_scheduler_runs_alone_and_its_end_is_learned_however_late(world: World) -> None:
    world.make("a")
    due = START.replace(second=0)
    with world.timetable.firing("a"):  # its refresh holds the lock
        world.timetable.record(Event(schedule="a", firing="a-1", due=due, at=START, outcome="running"))
        for _ in range(6):
            world.now += timedelta(minutes=15)
            world.scheduler.run_due()
        assert world.started == []
        assert [outcome for _, outcome in world.outcomes()] == ["running", *["skipped"] * 6]
    world.scheduler.run_due()
    world.scheduler.run_due()
    assert world.started == [f"a-{int(due.timestamp() // 60)}"]
    assert world.outcomes()[-2:] == [("03:00", "running"), ("03:00", "passed")]


def test_a_firing_interrupted_by_hand_is_not_taken_up_hours_later(world: World) -> None:
    world.make("a", "0 3 * * *")
    due = START.replace(second=0)
    with world.timetable.firing("a"):
        world.now += timedelta(hours=2)
        world.scheduler.run_due()
        for outcome in ("running", "interrupted"):
            world.timetable.record(Event(schedule="a", firing="a-1", due=due, at=world.now, outcome=outcome))
    world.scheduler.run_due()
    assert world.started == []


def test_a_schedule_that_is_deleted_while_it_runs_ends_quietly(world: World) -> None:
    world.make("a")
    world.during = ["a"]
    world.timetable.put(replace(world.timetable.find("a")))

    def start(entry: Entry, firing: str, lock: int) -> FiringResult:
        world.timetable.remove("a")
        world.scheduler.skip("a")
        return PASSED

    world.scheduler.start = start
    assert world.scheduler.run_due() is None
    assert world.outcomes() == [("03:00", "running"), ("03:00", "passed")]


def test_it_works_until_it_is_interrupted_and_only_one_works(world: World) -> None:
    world.make("a")
    refused: list[str] = []

    def meanwhile() -> None:
        try:
            Scheduler(timetable=world.timetable, start=world.scheduler.start, say=world.said.append).run()
        except SpecError as e:
            refused.append(e.message)
        end = time.monotonic() + 10
        while ("03:00", "passed") not in world.outcomes() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)  # now it sleeps until the next firing
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=meanwhile)
    assert world.scheduler.run(ready=other.start) == 130
    other.join()
    assert len(refused) == 1
    assert "another scheduler works on" in refused[0]
    assert not world.timetable.is_working()
