"""Programs run as processes of their own: their input, and how signals and exit codes are passed on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graceful import spec
from graceful.cli import browser, doctor, programs
from graceful.errors import InfrastructureError, RegistryError
from graceful.launch import foreground
from graceful.launch.job import JobSpec

DIGITS = spec.parse({"model": "digits", "name": "v1", "task": {"kind": "digits"}})


def python(program: str, **fields: Any) -> JobSpec:
    return JobSpec(name="test", command=(sys.executable, "-c", program), **fields)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5])
def test_the_exit_code_of_the_program_is_ours(code: int) -> None:
    assert foreground.run(python(f"raise SystemExit({code})")) == code


def test_the_program_reads_its_document_and_environment() -> None:
    program = "import os, sys; sys.exit(sys.stdin.read() != 'é' * 100_000 or os.environ['X'] != 'y')"
    assert foreground.run(python(program, document="é" * 100_000, env={"X": "y"})) == 0


def test_a_program_that_ends_before_it_reads_everything_tells_its_own_exit_code() -> None:
    assert foreground.run(python("raise SystemExit(2)", document="x" * 1_000_000)) == 2


def test_a_program_that_cannot_start_is_an_infrastructure_error() -> None:
    with pytest.raises(InfrastructureError, match="cannot start nowhere"):
        foreground.run(JobSpec(name="test", command=("nowhere",)))


def test_a_program_that_was_killed_is_an_infrastructure_error() -> None:
    with pytest.raises(InfrastructureError, match="ended by SIGKILL; out of memory"):
        foreground.run(python("import os; os.kill(os.getpid(), 9)"))


def test_signal_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    foreground.run(python("pass"))
    assert signal.getsignal(signal.SIGTERM) is before


CHILD = """
import signal, sys
stopped, listening = {stopped}, {{signal.SIGINT}}
signal.pthread_sigmask(signal.SIG_BLOCK, listening)  # kept until asked for: no interrupt falls between two lines
print("ready", flush=True)
while True:
    signal.sigwait(listening)
    print("interrupted", flush=True)
    if stopped is not None:
        raise SystemExit(stopped)
"""
PARENT = """
import sys
from graceful.launch import foreground
from graceful.launch.job import JobSpec
sys.exit(foreground.run(JobSpec(name="test", command=(sys.executable, "-c", sys.argv[1]))))
"""


def start(child: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PARENT, child]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(("ending", "code"), [(5, 130), (130, 130), (3, 3), (0, 0)])
def test_ctrl_c_in_a_terminal_reaches_the_program(ending: int, code: int) -> None:
    with start(CHILD.format(stopped=ending)) as parent:
        assert read(parent) == "ready"
        os.killpg(parent.pid, signal.SIGINT)  # what a terminal does: to everyone in its foreground group
        rest = parent.stdout.read() if parent.stdout else ""
        assert parent.wait(timeout=30) == code
    assert rest == "interrupted\n"


def test_a_program_leads_its_own_group_so_that_a_terminal_does_not_interrupt_it_twice() -> None:
    assert foreground.run(python("import os, sys; sys.exit(os.getpgrp() != os.getpid())")) == 0


def test_sigterm_stops_the_program() -> None:
    with start(CHILD.format(stopped=None)) as parent:
        assert read(parent) == "ready"
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=30) == 130


def test_the_third_interrupt_kills_a_program_that_does_not_listen() -> None:
    with start(CHILD.format(stopped=None)) as parent:
        assert read(parent) == "ready"
        for _ in range(2):
            parent.send_signal(signal.SIGINT)
            assert read(parent) == "interrupted"
        parent.send_signal(signal.SIGINT)
        assert parent.wait(timeout=30) == 130


BLOCKED = "import signal, sys; sys.exit(10 + len(signal.pthread_sigmask(signal.SIG_BLOCK, []) & {2, 15}))"


def test_signals_wait_only_for_programs_that_ask_for_it_and_our_own_stay_as_they_were() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert foreground.run(python(BLOCKED)) == 10
    assert foreground.run(python(BLOCKED), deferred=True) == 12
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_the_imports_of_a_program_is_one_line(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, foreground.DEFERRED)
    try:  # the signal is there before the interpreter is
        child = subprocess.Popen(
            [sys.executable, "-m", "graceful.programs", "lineage", "nowhere"],
            env={**os.environ, "GRACEFUL_HOME": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        child.send_signal(number)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _, told = child.communicate(timeout=600)
    assert (child.returncode, told) == (130, "graceful: interrupted; run the same command again to resume\n")


def test_a_program_is_started_with_the_resolved_spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobs: list[JobSpec] = []
    monkeypatch.setattr(foreground, "run", lambda job, **options: jobs.append(job) or 3)  # type: ignore[func-returns-value]
    assert programs.start("refresh", resolved=DIGITS, output="json", quiet=True) == 3
    assert programs.start("lineage", arguments=("digits",), home=tmp_path) == 3
    refresh, lineage = jobs
    assert refresh.command[1:] == ("-P", "-m", "graceful.programs", "refresh", "--output", "json", "--quiet")
    assert spec.parse(json.loads(refresh.document or "")) == DIGITS
    assert lineage.command[3:] == ("graceful.programs", "lineage", "digits", "--output", "table")
    assert lineage.document is None
    assert lineage.env["GRACEFUL_HOME"] == str(tmp_path)


def test_the_environment_fits_one_machine_and_leaves_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "GPU", Path("/nowhere"))
    env = programs.environment({"OMP_NUM_THREADS": "8"}, verbose=2)
    assert "OMP_NUM_THREADS" not in env
    assert env["DS_ACCELERATOR"] == "cpu"
    assert "RAY_AUTH_MODE" not in env, "the driver makes a token for its own cluster"
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert env["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert env["GRACEFUL_LOG_LEVEL"] == "DEBUG"


def test_with_an_accelerator_deepspeed_finds_it_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "GPU", tmp_path)
    assert "DS_ACCELERATOR" not in programs.environment({})


def test_the_page_is_served_on_this_machine_only(tmp_path: Path) -> None:
    job = browser.server("postgresql://user:secret@db/mlflow", tmp_path, 5001)
    line = " ".join(job.command)
    assert "--host 127.0.0.1 --port 5001 --workers 1" in line
    assert line.endswith("--allowed-hosts 127.0.0.1:5001,localhost:5001")
    assert "secret" not in line
    assert job.env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_the_page_needs_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RegistryError, match=r"no registry at .* yet; run `graceful refresh SPEC` first"):
        browser.serve(home=tmp_path, port=None)


def test_a_server_serves_its_own_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example/")
    assert browser.serve(home=None, port=None) == 0
    assert capsys.readouterr().out == "https://mlflow.example/#/models?workflowType=machine_learning\n"


def test_a_taken_port_is_told_and_free_ones_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "_is_free", lambda port: port >= 5003)
    assert browser.free_port(None) == browser.free_port(0) == 5003
    assert browser.free_port(5004) == 5004
    with pytest.raises(InfrastructureError, match="--port 5001: taken"):
        browser.free_port(5001)
    monkeypatch.setattr(browser, "_is_free", lambda port: False)
    with pytest.raises(InfrastructureError, match="5000 to 5099 are all taken"):
        browser.free_port(None)


def test_requirements_are_compared_with_what_is_installed() -> None:
    found = doctor.unmet(["click>=8.1", "click<1", "no-such-package-here>=2", "timm; extra == 'zoo'"])
    assert found[0].startswith("click ")
    assert found[0].endswith(" is not <1")
    assert found[1:] == ["no-such-package-here is missing"]


@pytest.mark.parametrize(("free", "state"), [(100, "ok"), (2, "warn"), (0.1, "fail")])
def test_little_disk_space_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    usage = type("Usage", (), {"free": int(free * doctor.GIB), "total": 0})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    check = doctor.disk(tmp_path / "not" / "yet" / "there")
    assert check.state == state
    assert bool(check.remedy) is (state != "ok")


def test_a_home_that_is_a_file_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    check = doctor.disk(tmp_path / "home")
    assert (check.state, check.found) == ("fail", f"{tmp_path / 'home'} is a file")


def test_a_probe_that_fails_is_a_failure_with_its_last_line(tmp_path: Path) -> None:
    check = doctor.probe("no-such-probe", home=tmp_path, remedy="do this")
    assert check.state == "fail"
    assert "KeyError" in check.found
    assert check.remedy == "do this"


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("fail", 4)])
def test_doctor_fails_only_if_a_check_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: doctor.State, code: int
) -> None:
    monkeypatch.setattr(doctor, "gather", lambda home: [doctor.Check(name="x", state=state, found="y", remedy="z")])
    assert doctor.report(home=None, output="json") == code
    assert json.loads(capsys.readouterr().out) == [{"name": "x", "state": state, "found": "y", "remedy": "z"}]
    assert doctor.report(home=None, output="table") == code
