"""The command line as people meet it: help, schema, one-line errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import yaml

from graceful import __version__, cli, crash, databases, homes, spec
from graceful.cli import boundary, programs
from graceful.cli.app import graceful
from graceful.cli.registry_address import registry_uri
from graceful.errors import TrainingError
from tests.support.limits import largest_file

Run = Callable[..., subprocess.CompletedProcess[str]]
Golden = Callable[[str, str], None]
COMMANDS = sorted(graceful.commands)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr."""
    assert done.stdout == ""
    assert done.stderr.startswith("graceful: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("graceful: ").strip()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_golden_help(
    command: str, golden: Golden, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main([*command.split(), "--help"]) == 0
    golden(f"help/{command.replace(' ', '-') or 'graceful'}.txt", capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str) -> None:
    assert f"graceful {command}" in (graceful.commands[command].help or "").partition("Example:")[2]


def test_the_help_names_every_exit_code() -> None:
    codes = {0, 1, 2, 3, 4, 5, 130}
    assert all(f" {code}  " in (graceful.epilog or "") for code in codes)


def test_without_a_command_the_first_steps_or_the_help_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GRACEFUL_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    steps = [line.split()[1:3] for line in shown.splitlines() if line.startswith(("  1", "  2", "  3"))]
    assert steps == [["graceful", "demo"], ["graceful", "init"], ["graceful", "refresh"]]
    assert max(map(len, shown.splitlines())) <= 80
    (tmp_path / ".graceful").mkdir()
    assert cli.main([]) == 0
    assert "Start with:" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"graceful {__version__}\n"


def test_golden_json_schema(golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", "-o", "json"]) == 0
    golden("refresh.schema.json", capsys.readouterr().out)


def test_golden_schema_table(golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", "train"]) == 0
    golden("schema-train.txt", "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n")


@pytest.mark.parametrize(
    "key", ["task", "task.network", "task.python.file", "train.optimizer.adamw", "compatibility.losses.influence.scale"]
)
def test_schema_narrows_to_a_key_in_both_forms(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", key]) == 0
    table = capsys.readouterr().out
    assert key.rpartition(".")[2] in table
    assert "registry" not in table
    assert cli.main(["schema", key, "-o", "json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["refersh"], "no such command 'refersh'"),
        (["refresh"], "missing argument 'SPEC'; see `graceful refresh --help`"),
        (["schema", "--otput", "json"], "no such option '--otput'"),
        (["schema", "-o", "xml"], "'xml' is not one of"),
        (["schema", "task.netwrok"], "schema: no key 'task.netwrok', did you mean task.network?"),
        (["refresh", "nowhere.yaml"], "nowhere.yaml: no such spec file; check the path"),
        (["ui", "--port", "70000"], "70000 is not in the range"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_misspelt_key_ends_with_exit_code_2(command_line: Run, tmp_path: Path) -> None:
    path = tmp_path / "v1.yaml"
    path.write_text("{model: a, name: v1, task: {kind: digits, netwrok: {}}}", encoding="utf-8")
    done = command_line("refresh", path)
    assert done.returncode == 2
    assert told(done) == f"task.netwrok in {path}: unknown key, did you mean network?; see `graceful schema`"


def test_gate_passes_with_exit_code_0(command_line: Run, report_and_spec: tuple[Path, Path]) -> None:
    done = command_line("gate", *report_and_spec)
    assert done.returncode == 0
    assert "digits v2: passed" in done.stdout
    assert "negative_flip_rate at_most 0.05" in done.stdout


def test_gate_holds_with_exit_code_3(command_line: Run, report_and_spec: tuple[Path, Path]) -> None:
    done = command_line("gate", *report_and_spec, "--set", "gate.constraints.0.bound=0.02", "-o", "json")
    assert done.returncode == 3
    verdict = json.loads(done.stdout)
    assert verdict["outcome"] == "held"
    assert [finding["met"] for finding in verdict["findings"]] == [False, True]


def test_gate_refuses_files_of_two_models(
    report_and_spec: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["gate", *map(str, report_and_spec), "--set", "model=glyphs"]) == 2
    report, path = report_and_spec
    assert f"{report} is about digits, {path} about glyphs; give files of one model\n" in capsys.readouterr().err


def test_gate_remarks_on_the_constraints_of_another_version(
    command_line: Run, report_and_spec: tuple[Path, Path]
) -> None:
    report, path = report_and_spec
    assert command_line("gate", report, path).stderr.count("\n") == 1
    done = command_line("gate", report, path, "--set", "name=v3", "-o", "json")
    assert done.returncode == 0
    assert done.stderr == f"note: {report} is about v2, judged by the constraints of v3 in {path}\n"
    assert json.loads(done.stdout)["outcome"] == "passed"


def test_gate_refuses_what_is_no_report(report_and_spec: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    report, path = report_and_spec
    assert cli.main(["gate", str(report.with_name("nowhere.json")), str(path)]) == 2
    assert "no such report" in capsys.readouterr().err
    report.write_text("{}", encoding="utf-8")
    assert cli.main(["gate", str(report), str(path)]) == 2
    assert str(report) in capsys.readouterr().err


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_a_dry_run_prints_a_spec_that_repeats_the_run(
    report_and_spec: tuple[Path, Path],
    output: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = report_and_spec[1]
    monkeypatch.chdir(path.parent)
    asked = ["refresh", str(path), "--dry-run", "--set", "train.epochs=2", "--home", "h", "-o", output]
    assert cli.main(asked) == 0
    printed = capsys.readouterr()
    resolved = spec.parse(yaml.safe_load(printed.out))
    assert resolved.train.epochs == 2
    assert resolved.home == str(path.parent / "h")
    assert "promote: champion moves only if passed" in printed.err


def command_that(error: BaseException) -> click.Command:
    @click.command()
    def failing() -> None:
        raise error

    return failing


def test_an_error_of_ours_is_one_line_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert boundary.guarded(command_that(TrainingError("out of time; raise train.timeout")), []) == 5
    assert capsys.readouterr().err == "graceful: out of time; raise train.timeout\n"


def test_an_interrupt_ends_with_130_and_says_how_to_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert boundary.guarded(command_that(KeyboardInterrupt()), []) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_bug_is_one_line_that_names_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path))
    assert boundary.guarded(command_that(ValueError("two\nlines")), []) == 1
    line = capsys.readouterr().err
    assert line.startswith("graceful: bug: ValueError: two lines (traceback in ")
    assert line.count("\n") == 1
    (log,) = tmp_path.glob("graceful-crash-*.log")
    assert str(log) in line
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_without_a_home_the_traceback_goes_to_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(crash.tempfile, "gettempdir", lambda: str(tmp_path))
    assert boundary.guarded(command_that(ValueError("x")), []) == 1
    assert len(list(tmp_path.glob("graceful-crash-*.log"))) == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("form", [("--set", "task.options.key={}"), ("--set=registry.webhook=https://h.example/{}",)])
def test_a_crash_log_is_private_and_holds_no_secret(
    form: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "mark3r-Secret"
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{secret}-of-env\n")
    monkeypatch.setattr(sys, "argv", ["graceful", "refresh", *(word.format(secret) for word in form)])
    error = ValueError(f"odd value {secret!r} for b'{secret}-of-env\n' at http://bob:{secret}@host")
    assert boundary.guarded(command_that(error), []) == 1
    (log,) = tmp_path.iterdir()
    assert log.stat().st_mode & 0o777 == 0o600
    assert str(os.getpid()) not in log.name
    assert secret not in log.read_text(encoding="utf-8") + capsys.readouterr().err


def test_a_full_disk_under_the_crash_log_is_said_in_the_line_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path))
    with largest_file(100):
        assert boundary.guarded(command_that(ValueError("x")), []) == 1
    assert "(its traceback cannot be kept: File too large; please report it)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_is_the_option_then_the_variable_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRACEFUL_HOME", raising=False)
    assert homes.folder(None) == tmp_path / ".graceful"
    monkeypatch.setenv("GRACEFUL_HOME", "elsewhere")
    assert homes.folder(None) == tmp_path / "elsewhere"
    assert homes.folder(Path("given")) == tmp_path / "given"


def test_the_client_and_lineage_agree_where_the_registry_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graceful.lineage import connection

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert registry_uri(tmp_path) == connection.resolve(None, tmp_path).uri
    assert databases.file(registry_uri(tmp_path)) == tmp_path / "mlflow.db"


def test_steps_tell_what_would_be_done() -> None:
    document = {
        "model": "a",
        "name": "v2",
        "task": {"kind": "digits"},
        "compatibility": {"losses": [{"kind": "influence"}]},
    }
    steps = programs.steps(spec.parse(document))
    assert len(steps) == 7
    assert "2 Ray workers; losses: task, influence" in steps[2]
    elastic = {**document, "train": {"num_workers": {"min": 2, "max": 8}, "engine": {"kind": "torch"}}}
    assert (
        "torch, 2 to 8 Ray workers, as there is room (2, 4, 8 divide a batch);"
        in programs.steps(spec.parse(elastic))[2]
    )
    assert "negative_flip_rate at_most 0.05 (all)" in steps[4]


def test_a_reader_that_goes_away_is_neither_a_verdict_nor_a_bug(report_and_spec: tuple[Path, Path]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "graceful.cli", "gate", *map(str, report_and_spec)]
    with os.fdopen(writing, "wb") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 141
    assert "bug" not in done.stderr
