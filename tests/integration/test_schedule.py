"""Schedules with real refreshes: nothing new is skipped, a missed firing is made up for, a stop can resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from graceful import spec, tasks
from graceful.lineage import LineageRecord
from graceful.programs.runs import novelty
from graceful.programs.runs.run import Run
from graceful.schedules.timetable import Timetable
from tests.support import mlflow_versions
from tests.support.mlflow_versions import local_store

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]
SPEC = Path(__file__).parents[2] / "jobs/wine/v1.yaml"


def graceful(*arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graceful.cli", *map(str, arguments)]
    env = {**os.environ, "GRACEFUL_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False)


def test_a_refresh_without_new_data_is_skipped_and_registers_nothing(tmp_path: Path) -> None:
    first = graceful("refresh", SPEC, "-o", "json", home=tmp_path)
    assert first.returncode == 0, first.stderr
    again = graceful("refresh", SPEC, "--set", "name=v2", "--if-new-data", "-o", "json", home=tmp_path)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert (result["outcome"], result["champion"]) == ("skipped", 1)
    assert result["reasons"][0].startswith("no new data since wine@1 (sha256 ")
    assert not (tmp_path / "runs/wine-v2").exists()
    listed = json.loads(graceful("lineage", "wine", "-o", "json", home=tmp_path).stdout)
    assert [version["name"] for version in listed] == ["v1"]
    same = graceful("refresh", SPEC, "--if-new-data", "-o", "json", home=tmp_path)
    assert json.loads(same.stdout) == json.loads(first.stdout)
    assert graceful("schedule", "apply", "nightly", SPEC, "--cron", "@yearly", home=tmp_path).returncode == 0
    fired = graceful("schedule", "run-now", "nightly", home=tmp_path)
    assert fired.returncode == 0, fired.stderr
    (row,) = json.loads(graceful("schedule", "list", "-o", "json", home=tmp_path).stdout)
    assert (row["last"]["outcome"], row["last"]["reason"]) == ("skipped", result["reasons"][0])


def test_what_the_gate_held_is_not_tried_again_until_something_changes(tmp_path: Path) -> None:
    store = local_store(tmp_path)

    def resolved(name: str, **changes: Any) -> spec.RefreshSpec:
        document = mlflow_versions.spec(
            name, home=str(tmp_path), registry={"uri": store.registry.address.uri}, **changes
        )
        return spec.parse(document)

    def register(name: str, chain: list[LineageRecord], *, flips: float, **changes: Any) -> LineageRecord:
        section = resolved(name, **changes).task
        item = mlflow_versions.registration(store, tmp_path / "bundles", name, chain, flips=flips, **changes)
        digest = tasks.build(section).samples("train").digest
        return store.register(mlflow_versions.changed(item, training=novelty.ingredients(section, data=digest)))

    assert novelty.skipped(Run.of(resolved("v1"))) is None  # an empty registry
    first = register("v1", [], flips=0.0)
    assert first.verdict == "passed"
    store.promote("glyphs", first.version, expected=None, reason="test", actor="pytest")
    found = novelty.skipped(Run.of(resolved("v2")))
    assert found is not None
    assert found.reasons[0].startswith("no new data since glyphs@1 (sha256 ")
    other = {"task": {"kind": "digits", "share": 0.5}}
    assert novelty.skipped(Run.of(resolved("v2", **other))) is None
    held = register("v2", [first], flips=0.5, **other)
    assert held.verdict == "held"
    found = novelty.skipped(Run.of(resolved("v3", **other)))
    assert found is not None
    assert (found.champion, found.reasons[0].partition(" (")[0]) == (1, "no new data since glyphs@2, which was held")
    assert novelty.skipped(Run.of(resolved("v3", **other, train={"seed": 1}))) is None


def test_a_missed_firing_runs_at_the_start_and_a_stop_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    table = Timetable(tmp_path / "schedules")
    long = ("--set", "train.epochs=100000", "--cron", "* * * * *")
    assert graceful("schedule", "apply", "nightly", SPEC, *long, home=tmp_path).returncode == 0
    entry = table.find("nightly")
    past = datetime.now(UTC) - timedelta(minutes=10)
    table.put(replace(entry, cron=f"{past.minute} {past.hour} * * *", since=past - timedelta(minutes=1)))
    env = {**os.environ, "GRACEFUL_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "graceful.cli", "schedule", "run"]
    with (tmp_path / "log").open("w") as log:
        worker = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            until(lambda: "event=step" in (tmp_path / "log").read_text(encoding="utf-8"))
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=600) == 130
        finally:
            worker.kill()
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "interrupted; run the same command again to resume" in text
    assert "Traceback" not in text
    begun, ended = table.history()
    assert (begun.outcome, ended.outcome, ended.exit_code) == ("running", "interrupted", 130)
    assert begun.due == past.replace(second=0, microsecond=0)
    run = tmp_path / "runs" / f"wine-{ended.firing}"
    assert list(run.glob("checkpoints/*"))
    assert not (run / "result.json").exists()
    assert not table.is_working()


def test_a_firing_whose_scheduler_was_killed_lives_on_and_no_other_starts_beside_it(tmp_path: Path) -> None:
    table = Timetable(tmp_path / "schedules")
    long = ("--set", "train.epochs=100000", "--cron", "* * * * *")
    assert graceful("schedule", "apply", "nightly", SPEC, *long, home=tmp_path).returncode == 0
    entry, past = table.find("nightly"), datetime.now(UTC) - timedelta(minutes=2)
    once = replace(entry, cron=f"{past.minute} {past.hour} * * *", since=past - timedelta(minutes=1))
    table.put(once)
    log = tmp_path / "log"
    env = {**os.environ, "GRACEFUL_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "graceful.cli", "schedule", "run"]

    def scheduler() -> subprocess.Popen[bytes]:
        with log.open("a") as file:
            return subprocess.Popen(command, env=env, stdout=file, stderr=file)

    first = scheduler()
    refresh = 0
    second = None
    try:
        until(lambda: "event=step" in log.read_text(encoding="utf-8"))
        refresh = int(Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()[0])
        first.kill()
        first.wait()
        assert not table.is_working()
        assert table.is_firing("nightly")
        begun = table.history()[0]
        table.put(replace(once, cron="* * * * *"))
        second = scheduler()
        until(lambda: any(event.outcome == "skipped" for event in table.history()))
        assert {event.due for event in table.history() if event.outcome == "running"} == {begun.due}
        table.pause("nightly", paused=True, now=datetime.now(UTC))
        os.kill(refresh, signal.SIGTERM)
        until(lambda: not table.is_firing("nightly"))
        refresh = 0
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=600) == 130
    finally:
        for process in filter(None, (first, second)):
            process.kill()
        if refresh:
            os.kill(refresh, signal.SIGKILL)
    assert "Traceback" not in log.read_text(encoding="utf-8")


def until(true: object, *, seconds: float = 300.0) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.2)
