"""Detached jobs of this machine: what the contract of backends does not reach, such as killed supervisors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from graceful.errors import InfrastructureError, SpecError
from graceful.launch.backend import Handle, Phase
from graceful.launch.job import JobSpec
from graceful.launch.local.backend import LocalBackend
from graceful.launch.local.jobfolder import JobFolder
from graceful.launch.local.profile import Local
from graceful.patience import Patience

PLACE = Local(kind="local")
WAITING = "import sys, time\nprint('ready', flush=True)\ntime.sleep(600)"
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(600)"


def job(program: str, *, name: str = "m-v1", digest: str = "c0ffee", **changes: object) -> JobSpec:
    command = (sys.executable, "-c", program)
    return JobSpec(name=name, run_id=name, command=command, labels={"config-hash": digest}, **changes)  # type: ignore[arg-type]


@pytest.fixture
def here(tmp_path: Path) -> LocalBackend:
    return LocalBackend(profile=PLACE, home=tmp_path)


def start(here: LocalBackend, program: str) -> tuple[Handle, JobFolder]:
    handle = here.submit(here.plan(job(program)))
    return handle, JobFolder(here.home / "jobs" / handle.name)


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_supervisor_whose_program_lives_is_running_and_can_be_stopped(here: LocalBackend) -> None:
    handle, folder = start(here, WAITING)
    until(lambda: "ready" in folder.end())
    os.kill(folder.state().pid, signal.SIGKILL)
    assert here.status(handle).phase is Phase.RUNNING
    assert here.stop(handle).phase is Phase.STOPPED
    assert not folder.alive()


def test_a_job_killed_with_its_supervisor_is_told_and_resumes(here: LocalBackend) -> None:
    handle, folder = start(here, WAITING)
    until(lambda: "ready" in folder.end())
    os.killpg(folder.state().pid, signal.SIGKILL)
    until(lambda: not folder.alive())
    now = here.status(handle)
    assert (now.phase, now.exit_code) == (Phase.FAILED, 4)
    assert "killed with its supervisor" in now.cause
    assert here.resume(handle).attempt == 2
    here.stop(handle)
    assert folder.end().count("ready") <= 2


def test_a_program_that_does_not_listen_is_killed_after_a_while(tmp_path: Path) -> None:
    clock = iter(range(0, 100_000, 60))
    hurried = LocalBackend(
        profile=PLACE,
        home=tmp_path,
        patience=Patience(now=lambda: float(next(clock)), sleep=lambda _: time.sleep(0.02)),
    )
    handle, folder = start(hurried, DEAF)
    until(lambda: "ready" in folder.end())
    assert hurried.stop(handle).phase is Phase.STOPPED
    assert not folder.alive()


def test_what_a_job_reads_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    secretive = Local(kind="local", env={"GRACEFUL_WEBHOOK": "https://chat.example/mark3r"})
    here = LocalBackend(profile=secretive, home=tmp_path)
    planned = here.plan(job("pass", document='{"registry": {"uri": "http://bob:mark3r@host"}}', files={"task.py": ""}))
    handle = here.submit(planned)
    until(lambda: here.status(handle).phase.terminal)
    files = [path for path in (tmp_path / "jobs").rglob("*") if path.is_file()]
    assert len([path for path in files if b"mark3r" in path.read_bytes()]) == 2
    assert not any(b"mark3r" in path.read_bytes() for path in files if path.stat().st_mode & 0o077)


def test_a_program_that_cannot_start_says_so_in_its_log(here: LocalBackend) -> None:
    nowhere = JobSpec(name="x", run_id="x", command=("/nowhere/python",), labels={"config-hash": "1"})
    handle = here.submit(here.plan(nowhere))
    until(lambda: here.status(handle).phase.terminal)
    now = here.status(handle)
    assert (now.phase, now.exit_code) == (Phase.FAILED, 4)
    assert now.cause == "cannot start /nowhere/python (No such file or directory); check the path"


def test_of_many_who_submit_at_once_one_makes_the_job(here: LocalBackend) -> None:
    planned = here.plan(job(WAITING))
    with ThreadPoolExecutor(8) as pool:
        handles = set(pool.map(lambda _: here.submit(planned), range(8)))
    assert handles == {planned.handle}
    assert [path.name for path in (here.home / "jobs").iterdir()] == ["m-v1"]
    (status,) = here.list()
    assert status.attempt == 1
    here.stop(planned.handle)


def test_a_log_of_two_attempts_is_one_and_the_verdict_is_the_last_ones(here: LocalBackend, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    outcome = 'graceful-outcome: {"exit_code": 3}'
    program = f"import os, sys\nprint({outcome!r})\nnew = not os.path.exists({str(mark)!r})\nopen({str(mark)!r}, 'w')\n"
    handle, _ = start(here, program + "sys.exit(1 if new else print('second') or 0)")
    until(lambda: here.status(handle).phase.terminal)
    assert here.status(handle).exit_code == 1
    here.resume(handle)
    assert list(here.logs(handle, follow=True)) == [outcome, outcome, "second"]
    assert here.status(handle).exit_code == 3


def test_a_line_without_an_end_is_given_at_the_end(here: LocalBackend) -> None:
    handle, _ = start(here, "import sys; sys.stdout.write('one\\ntwo')")
    assert list(here.logs(handle, follow=True)) == ["one", "two"]


MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
sys.stderr.write(f"\\n{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}")
sys.exit(done.returncode)
"""
"""Runs a command and tells its peak memory; a small process must start it, whose own memory counts until then."""


@pytest.mark.parametrize("command", ["list", "logs"])
def test_a_log_of_400_mb_is_not_read_into_memory(here: LocalBackend, command: str) -> None:
    handle, folder = start(here, "pass")
    until(lambda: here.status(handle).phase.terminal)
    with folder.log.open("r+b") as log:
        for line in range(0, 300, 2):
            log.seek(line << 20)
            log.write(b"a line\n")
        log.seek(420 << 20)  # behind a hole of 120 MB without a newline
        log.write('r\u00e9sum\u00e9\ngraceful-outcome: {"exit_code": 3, "message": "held by a bound"}\n'.encode())
    folder.write_state(replace(folder.state(), exit_code=3))
    words = [sys.executable, "-m", "graceful.cli", command, *(["m-v1"] if command == "logs" else []), "--on", "local"]
    env = {**os.environ, "GRACEFUL_HOME": str(here.home)}
    command = [sys.executable, "-c", MEASURED, *words]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=here.home) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        end = b""
        while read := process.stdout.read(1 << 20):
            end = (end + read)[-200:]
        kilobytes = int(process.stderr.read().split()[-1])
    assert process.returncode == 0
    assert b"held by a bound" in end
    assert kilobytes < 150 << 10


def test_since_is_refused_because_a_log_keeps_no_times(here: LocalBackend) -> None:
    from datetime import UTC, datetime

    handle, _ = start(here, "pass")
    with pytest.raises(SpecError, match="--since"):
        here.logs(handle, since=datetime.now(UTC))
    until(lambda: here.status(handle).phase.terminal)


def test_the_caller_reads_no_secrets_of_its_environment_back(
    here: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcdef")
    handle, folder = start(here, "import os; print(os.environ['MLFLOW_TRACKING_TOKEN'])")
    assert list(here.logs(handle, follow=True)) == ["abcdef"]
    assert "abcdef" not in json.dumps(folder.job())


def test_every_command_follows_a_job_of_this_machine(
    command_line: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    here = LocalBackend(profile=PLACE, home=tmp_path / "home")
    handle, folder = start(here, WAITING)
    until(lambda: "ready" in folder.end())

    def told(*words: str, code: int = 0) -> str:
        done = command_line(*words, "--on", "local")
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    assert json.loads(told("status", str(handle), "-o", "json"))["phase"] == "RUNNING"
    assert told("logs", "m-v1") == "ready\n"
    assert "m-v1 STOPPED: stopped" in told("stop", "m-v1")
    assert "STOPPED" in told("list").splitlines()[1]
    assert "m-v1 RUNNING" in told("resume", "m-v1")
    assert json.loads(told("stop", "m-v1", "-o", "json"))["attempt"] == 2
    assert "local://m-v1" in told("status", "m-v1", "--wait", code=5) + told("status", "m-v1")
    assert told("gc") == ""
    assert "no run 'other'" in told("status", "other", code=2)
    assert "kuberay://n/m-v1: not on this machine" in told("stop", "kuberay://n/m-v1", code=2)


def test_a_home_that_cannot_be_written_is_an_infrastructure_error(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("")
    there = LocalBackend(profile=PLACE, home=tmp_path)
    planned = LocalBackend(profile=PLACE, home=tmp_path / "other").plan(job("pass"))
    with pytest.raises(InfrastructureError, match="cannot be made"):
        there.submit(planned)
