"""`graceful schedule` on this machine, as people meet it: help, refusals, what is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from graceful import cli
from graceful.cli.applying import MINUTES
from graceful.cli.schedule import schedule
from graceful.cli.scheduling import ScheduleLocation
from graceful.launch.kuberay.cronjob import LONGEST
from graceful.schedules.cron import firing_name
from graceful.schedules.history import Event
from graceful.schedules.timetable import Timetable
from graceful.spec import load

Golden = Callable[[str, str], None]
Command = Callable[..., tuple[int, str, str]]
COMMANDS = list(schedule.commands)
SPEC = "model: digits\nname: v1\ntask: {kind: digits}\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`graceful schedule ...` in a folder with a spec and a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    (tmp_path / "v1.yaml").write_text(SPEC, encoding="utf-8")

    def command(*words: str) -> tuple[int, str, str]:
        code = cli.main(["schedule", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
def table(tmp_path: Path) -> Timetable:
    return Timetable(tmp_path / "home" / "schedules")


def apply(run: Command, *words: str) -> str:
    code, stdout, stderr = run("apply", "nightly", "v1.yaml", "--cron", "0 3 * * *", *words)
    assert code == 0, stderr
    return stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_golden_help_of_the_subcommands(
    command: str, golden: Golden, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["schedule", command, "--help"]) == 0
    text = capsys.readouterr().out
    golden(f"help/schedule-{command}.txt", text)
    assert f"graceful schedule {command}" in text.partition("Example:")[2]


def test_without_a_subcommand_the_help_is_shown(run: Command) -> None:
    code, stdout, _ = run()
    assert code == 0
    assert all(f"  {command} " in stdout for command in COMMANDS)
    assert "if less than an hour late" in stdout


def test_the_resolved_spec_is_kept_and_asks_for_new_data(run: Command, table: Timetable, tmp_path: Path) -> None:
    assert apply(run, "--set", "train.epochs=7") == "create: schedule nightly\n"
    (tmp_path / "v1.yaml").unlink()
    entry = table.find("nightly")
    assert (entry.document["train"]["epochs"], entry.document["if_new_data"]) == (7, True)
    assert datetime.now(UTC) - entry.since < timedelta(minutes=5)


def test_apply_again_says_what_changes(run: Command, table: Timetable) -> None:
    apply(run)
    before = (table.folder / "nightly.json").read_bytes()
    assert apply(run) == "schedule nightly: unchanged\n"
    assert (table.folder / "nightly.json").read_bytes() == before
    stdout = apply(run, "--always", "--time-zone", "Europe/Berlin", "--dry-run")
    assert "-time_zone: Etc/UTC" in stdout
    assert "+  if_new_data: false" in stdout
    assert (table.folder / "nightly.json").read_bytes() == before
    apply(run, "--always")
    assert table.find("nightly").document["if_new_data"] is False


def test_a_change_that_is_not_shown_because_it_is_secret_is_kept(run: Command, table: Timetable) -> None:
    apply(run, "--set", "registry.uri=postgresql://ada:first@db/mlflow")
    stdout = apply(run, "--set", "registry.uri=postgresql://ada:second@db/mlflow")
    assert "second" not in stdout
    assert "second" in table.find("nightly").document["registry"]["uri"]


def test_apply_as_json(run: Command) -> None:
    first, again = (json.loads(apply(run, "-o", "json")) for _ in range(2))
    assert (first["changed"], again["changed"]) == (True, False)
    assert first["changes"][0]["change"] == "create"
    assert first["next"].endswith("T03:00:00+00:00")


def test_a_change_keeps_a_paused_schedule_paused(run: Command, table: Timetable) -> None:
    apply(run)
    assert run("pause", "nightly")[1] == "schedule nightly: paused\n"
    assert run("pause", "nightly")[1] == "schedule nightly: paused, as before\n"
    apply(run, "--always")
    assert table.find("nightly").paused
    assert run("resume", "nightly")[1] == "schedule nightly: active\n"


def test_the_list_shows_next_and_last_firing(run: Command, table: Timetable) -> None:
    assert "no schedules" in run("list")[2]
    apply(run)
    row = json.loads(run("list", "-o", "json")[1])[0]
    assert (row["last"], row["overlapping"], row["missed_after_seconds"]) == (None, "skipped", 3600)
    moment = datetime(2026, 11, 22, 3, tzinfo=UTC)
    facts = {"schedule": "nightly", "firing": "nightly-1", "due": moment, "at": moment}
    table.record(Event(**facts, outcome="skipped", exit_code=0, reason="no new data since digits@1"))
    stdout = run("list")[1]
    assert "2026-11-22 03:00Z  skipped: no new data since digits@1  active" in stdout
    table.record(Event(**facts, outcome="running"))
    assert "interrupted" in run("list")[1]
    with table.firing("nightly"):
        assert json.loads(run("list", "-o", "json")[1])[0]["last"]["outcome"] == "running"


def test_the_list_says_when_nobody_fires(run: Command, table: Timetable) -> None:
    apply(run)
    assert "start one with `graceful schedule run`" in run("list")[2]
    with table.working():
        assert "start one" not in run("list")[2]


def test_delete_forgets_the_schedule_and_names_a_firing_that_runs(run: Command, table: Timetable) -> None:
    apply(run)
    with table.firing("nightly"):
        code, stdout, stderr = run("delete", "nightly")
    assert (code, stdout) == (0, "schedule nightly: deleted\n")
    assert "still runs and is left alone" in stderr
    assert table.entries() == ()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("apply", "n", "v1.yaml", "--cron", "0 3 * *"), "cron '0 3 * *': 4 fields, must be five"),
        (("apply", "n", "v1.yaml", "--cron", "@daily", "--time-zone", "Mars"), "time zone 'Mars': not known"),
        (("apply", "N", "v1.yaml", "--cron", "@daily"), "schedule 'N': must be lower case letters"),
        (("apply", "n" * (LONGEST + 1), "v1.yaml", "--cron", "@daily"), "at most 52"),
        (("apply", "n", "v2.yaml", "--cron", "@daily"), "v2.yaml: no such spec file"),
        (("apply", "n", "v1.yaml"), "missing option '--cron'"),
        (("apply", "n", "v1.yaml", "--cron", "@daily", "-n", "team"), "pods need a profile; name one with --on"),
        (("pause", "x"), "no schedule 'x'"),
        (("run-now", "x"), "no schedule 'x'"),
        (("list", "--on", "nowhere"), "--on nowhere: no profile"),
        (("lst",), "no such command 'lst'"),
    ],
)
def test_refusals_are_one_line(run: Command, table: Timetable, words: tuple[str, ...], said: str) -> None:
    code, stdout, stderr = run(*words)
    assert (code, stdout) == (2, "")
    assert said in stderr
    assert stderr.count("\n") == 1
    assert not table.folder.exists()


def test_a_firing_by_hand_is_refused_while_one_runs(run: Command, table: Timetable) -> None:
    apply(run)
    with table.firing("nightly"):
        code, _, stderr = run("run-now", "nightly")
    assert code == 2
    assert "a firing is running, two never overlap" in stderr


def test_a_second_scheduler_is_refused(run: Command, table: Timetable) -> None:
    with table.working():
        code, _, stderr = run("run")
    assert code == 2
    assert "another scheduler works on" in stderr


def test_the_longest_schedule_still_names_a_version(run: Command, tmp_path: Path) -> None:
    firing = firing_name("n" * LONGEST, datetime.now(UTC))
    assert len(firing) == len(f"{'n' * LONGEST}-{MINUTES}")
    assert load(tmp_path / "v1.yaml", [f"name={firing}"]).name == firing


@pytest.mark.parametrize(
    ("where", "here"),
    [
        (ScheduleLocation(), True),
        (ScheduleLocation(on="local"), True),
        (ScheduleLocation(on="kind"), False),
        (ScheduleLocation(namespace="team"), False),
        (ScheduleLocation(context="kind"), False),
    ],
)
def test_without_a_cluster_this_machine_is_meant(where: ScheduleLocation, here: bool) -> None:
    assert where.here is here
