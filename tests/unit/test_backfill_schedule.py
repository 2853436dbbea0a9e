"""`graceful backfill schedule`: here, and the command that pods of a cluster run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graceful import cli
from graceful.cli import backfill_jobs, backfill_schedules
from graceful.index import Index, files
from graceful.launch.kuberay import cronjob
from graceful.schedules.timetable import Timetable
from tests.contract.test_backfill import COUNT, NEW, OLD, mapped, vectors
from tests.support import launch

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`graceful ...` in a folder with a home of its own; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))

    def command(*words: str) -> tuple[int, str, str]:
        code = cli.main(list(words))
        said = capfd.readouterr()
        return code, said.out, said.err

    return command


def test_a_schedule_of_this_machine_goes_on_with_the_backfill(run: Command, tmp_path: Path) -> None:
    Index.create(tmp_path / "index", vectors(), OLD)
    files.write(tmp_path / "new.npz", mapped(vectors()), NEW)
    command = ("backfill", "schedule", "nightly", "index", "--cron", "0 3 1 1 *", "--vectors", "new.npz")
    assert run(*command, "--stop-at", "0.5", "--dry-run")[1] == "create: schedule nightly\n"
    assert Timetable(tmp_path / "home" / "schedules").peek("nightly") is None
    for share, state, done in (("0.5", "stopped", COUNT // 2), ("1", "moved", COUNT)):
        assert run(*command, "--stop-at", share)[0] == 0
        assert run(*command, "--stop-at", share)[1] == "schedule nightly: unchanged\n"
        Timetable(tmp_path / "home" / "schedules").folder.joinpath("history.jsonl").unlink(missing_ok=True)
        code, stdout, stderr = run("schedule", "run-now", "nightly", "-o", "json")
        assert code == 0, stderr
        assert (json.loads(stdout)["state"], json.loads(stdout)["done"]) == (state, done)
    (row,) = json.loads(run("schedule", "list", "-o", "json")[1])
    assert (row["schedule"], row["last"]["outcome"]) == ("nightly", "passed")
    assert Index.open(tmp_path / "index").head().serving == "new"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--order", "traffic", "--traffic", "s3://b/t.json", "--seed", "7", "--rate", "2.5", "--shard", "2/3"),
        ("--batch", "10", "--stop-at", "0", "--reason", "for $(X) & more", "--author", "me"),
    ],
)
def test_pods_of_a_cluster_send_what_was_scheduled(
    options: tuple[str, ...], run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    def keep(document: dict[str, Any], **_: Any) -> int:
        sent.append(document)
        return 0

    monkeypatch.setattr(backfill_jobs, "submit", keep)
    monkeypatch.setattr(backfill_schedules, "apply", keep)
    asked = ("s3://b/index", "--vectors", "s3://b/v.npz", "--space", "e5", *options)
    assert run("backfill", "schedule", "nightly", *asked, "--cron", "@daily")[0] == 0
    scheduled = sent.pop()
    assert run(*backfill_schedules.words(scheduled), "--on", "kind", "--yes", "--name", "nightly-1")[0] == 0
    assert sent == [scheduled]


def test_the_pod_waits_for_the_job_that_it_has_sent() -> None:
    schedule = cronjob.Schedule(
        name="nightly", cron="@daily", time_zone="Etc/UTC", model=backfill_jobs.PROGRAM, document={}, account="may",
        command=("backfill", "run", "s3://b/index", "--reason=for $(X)"),
    )  # fmt: skip
    _, rendered = cronjob.render(schedule, launch.cluster())
    pod = rendered["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (submit,), (wait,) = pod["initContainers"], pod["containers"]
    firing = "$(GRACEFUL_FIRING)"
    on = "--on=/etc/graceful/job/profile.yaml"
    assert submit["args"] == [
        "backfill", "run", "s3://b/index", "--reason=for $$(X)", on, "--yes", f"--name={firing}"
    ]  # fmt: skip
    assert wait["args"] == ["status", f"backfill-{firing}", on, "--wait"]
