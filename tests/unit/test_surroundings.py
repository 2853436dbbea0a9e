"""What lies around a command changes nothing: files named like modules, poor encodings, a full disk behind stdout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graceful import startup

MODULES = ("torch", "secrets", "json", "yaml", "click", "numpy", "mlflow", "rich", "socket")
DELETED = "graceful: the working directory was deleted; change to a folder that exists (cd) and try again\n"
LOUD = "raise SystemExit('executed from the working directory')\n"


@pytest.fixture
def littered(tmp_path: Path) -> Path:
    """A folder with files of a user that are named like modules."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(LOUD, encoding="utf-8")
    return folder


def graceful(*arguments: object, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "GRACEFUL_HOME": str(folder.parent / "home"), **changes}
    command = [sys.executable, "-m", "graceful.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", check=False, timeout=120
    )


def test_modules_in_the_working_directory_are_not_executed(littered: Path, report_and_spec: tuple[Path, Path]) -> None:
    report, spec = report_and_spec
    for arguments, code in (
        (("gate", report, spec), 0),
        (("refresh", spec, "--dry-run"), 0),
        (("history", "nosuch"), 2),  # in a program of its own, which reads the registry
    ):
        done = graceful(*arguments, folder=littered)
        assert (done.returncode, "executed" in done.stderr) == (code, False), done.stderr


def test_every_interpreter_that_we_start_leaves_the_working_directory_out() -> None:
    """Who starts Python by itself forgets -P sooner or later."""
    package = Path(startup.__file__).parent
    own = [path for path in package.rglob("*.py") if "sys.executable" in path.read_text(encoding="utf-8")]
    assert [path.name for path in own] == ["startup.py"]
    assert startup.python("graceful.programs")[1] == "-P"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_talk_and_results_arrive_at_once_where_python_is_unbuffered(unbuffered: str) -> None:
    code = "import os, sys; sys.stderr.write('talk\\n'); sys.stdout.write('result'); os._exit(0)"
    command = [sys.executable, "-c", f"from graceful import startup; startup.write_anything(); {code}"]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert (done.stderr, done.stdout) == ("talk\n", "result" if unbuffered else "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("lineage", "wine"), 2),
        (("doctor",), 2),
        (("submit", "V1", "--on", "local"), 2),
        (("refresh", "V1", "--dry-run"), 0),
        (("list", "--on", "local"), 0),
        (("schema", "train"), 0),
    ],
    ids=str,
)
def test_a_working_directory_that_was_deleted_is_no_bug(
    arguments: tuple[str, ...], code: int, tmp_path: Path, report_and_spec: tuple[Path, Path]
) -> None:
    folder = tmp_path / "deleted"
    words = [str(report_and_spec[1]) if word == "V1" else word for word in arguments]
    for home in (str(tmp_path / "home"), ""):
        folder.mkdir()
        command = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", sys.executable, "-m", "graceful.cli", *words]
        env = {**os.environ, "GRACEFUL_HOME": home}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == (2 if "list" in words and not home else code), done.stderr
        if done.returncode:
            assert done.stderr == DELETED


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_stdout_that_lacks_characters_shows_others_instead(
    encoding: str, report_and_spec: tuple[Path, Path], tmp_path: Path
) -> None:
    _, spec = report_and_spec
    spec.write_text(spec.read_text() + "description: 'größer → ≥ 模型'\n", encoding="utf-8")
    tmp_path.joinpath("größer.yaml").write_text("a: [", encoding="utf-8")
    for arguments, code in (
        (("refresh", spec, "--dry-run"), 0),
        (("refresh", spec, "--dry-run", "-o", "json"), 0),
        (("schema", "train"), 0),
        (("--help",), 0),
        (("train", "größer.yaml"), 2),
    ):
        done = graceful(*arguments, folder=tmp_path, PYTHONIOENCODING=encoding)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert "bug" not in done.stderr


def test_a_program_of_another_encoding_is_understood(tmp_path: Path) -> None:
    """What it says reaches us in the encoding that PYTHONIOENCODING names, not in that of the system."""
    code = tmp_path / "größer"
    code.mkdir()
    spec = tmp_path / "v1.yaml"
    spec.write_text("{model: a, name: v1, task: {kind: python, file: größer}}", encoding="utf-8")
    done = graceful("plan", spec, "--on", "local", folder=tmp_path, PYTHONIOENCODING="latin-1")
    assert done.returncode == 2, done.stderr
    assert "er is a folder without task.py" in done.stderr
    assert "bug" not in done.stderr


FULL = Path("/dev/full")


@pytest.mark.parametrize(("bound", "code"), [("0.05", 0), ("0.001", 3)])
@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_a_full_disk_behind_stdout_leaves_the_exit_code_of_a_verdict(
    bound: str, code: int, output: str, report_and_spec: tuple[Path, Path]
) -> None:
    arguments = ["gate", *report_and_spec, "-o", output, "--set", f"gate.constraints.0.bound={bound}"]
    with FULL.open("w") as stdout:
        command = [sys.executable, "-m", "graceful.cli", *map(str, arguments)]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("graceful: ")]
    assert told == (
        "graceful: stdout: the result cannot be written (No space left on device); the exit code is that of the result"
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("--help",), ("schema",), ("schema", "-o", "yaml"), ("list", "--on", "local")])
def test_a_command_that_only_prints_fails_with_a_full_disk(
    arguments: tuple[str, ...], unbuffered: str, tmp_path: Path
) -> None:
    env = {**os.environ, "GRACEFUL_HOME": str(tmp_path), "PYTHONUNBUFFERED": unbuffered}
    with FULL.open("w") as stdout:
        command = [sys.executable, "-m", "graceful.cli", *arguments, *(["-o", "json"] if "list" in arguments else [])]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (
        4,
        "graceful: stdout: the result cannot be written (No space left on device)\n",
    )


def test_talk_that_cannot_be_written_is_lost_alone(report_and_spec: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "graceful.cli", "gate", *map(str, report_and_spec)]
    with FULL.open("w") as full:
        both = subprocess.run(command, stdout=full, stderr=full, check=False)
        talk = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert (both.returncode, talk.returncode) == (0, 0)
    assert "negative_flip_rate" in talk.stdout
