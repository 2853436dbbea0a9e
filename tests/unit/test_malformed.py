"""A user's mistake ends in one line and exit code 2, whatever it is and wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import malformed, malformed_values, spec_fuzz
from graceful import spec
from graceful.launch import profile

SEED, COUNT = 7, 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the valid files that command lines name."""
    prepared = tmp_path_factory.mktemp("malformed")
    spec_fuzz.prepare(prepared)
    return prepared


def test_what_the_malformed_documents_begin_with_is_valid() -> None:
    parsed = [spec.parse(document) for document in malformed_values.SPECS]
    assert [(one.model, one.name) for one in parsed] == [(one["model"], one["name"]) for one in malformed_values.SPECS]
    profiles = [profile.parse(document) for document in malformed_values.PROFILES]
    assert [one.kind for one in profiles] == [document["kind"] for document in malformed_values.PROFILES]


@pytest.mark.parametrize("part", range(6))
def test_generated_mistakes_end_with_one_line_and_exit_code_2(part: int, folder: Path) -> None:
    """The first cases of `python -m benchmarks.spec_fuzz`, which runs ten thousand."""
    wrong = {}
    for number, case in enumerate(malformed.cases(SEED, COUNT)):
        if number % 6 == part:
            ended = spec_fuzz.run(case, folder, alone=False)
            if ended.problem():
                wrong[case.what, case.arguments] = (ended.problem(), ended.stderr)
    assert not wrong


VALID = ("refresh", "v2.yaml", "--dry-run")
MISTAKES: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "home of nobody": ((*VALID, "--set", "home=~nosuchuser/x"), {}, "home in v2.yaml: there is no such home directory"),
    "option of nobody": (
        (*VALID, "--home", "~nosuchuser"),
        {},
        "'--home': there is no such home directory",
    ),
    "variable of nobody": (
        ("list", "--on", "local"),
        {"GRACEFUL_HOME": "~nosuchuser"},
        "GRACEFUL_HOME '~nosuchuser': there is no such home",
    ),
    "root of nobody": (
        (*VALID, "--set", "task={kind: image_folder, root: ~nosuchuser/x}"),
        {},
        "task.root in v2.yaml: '~nosuchuser/x': there is no such home directory",
    ),
    "NUL": (("train", "nul\0.yaml"), {}, "'SPEC': must not hold a NUL character"),
    "long path": (
        ("train", "x" * 300),
        {},
        "'SPEC': must be a path of at most 4095 bytes, and 255 between two slashes",
    ),
    "webhook": ((*VALID, "--set", "registry.webhook=http://[::1"), {}, "registry.webhook in v2.yaml: must be http(s)"),
    "registry": (
        (*VALID, "--set", "registry.uri=http://[::1"),
        {},
        "registry.uri in v2.yaml: must be an address such as",
    ),
    "registry's variable": (
        ("lineage", "glyphs"),
        {"MLFLOW_TRACKING_URI": "http://[::1"},
        "MLFLOW_TRACKING_URI: must be",
    ),
    "parent": ((*VALID, "--set", "parents=[glyphs]"), {}, "parents.0 in v2.yaml: must be MODEL@ALIAS, MODEL:NUMBER or"),
    "name": ((*VALID, "--set", "name=V2"), {}, "name in v2.yaml: must be lower case letters, digits and inner hyphens"),
    "digits": ((*VALID, "--set", f"train.epochs={'9' * 400}"), {}, "a number of 400 digits"),
    "quoted digits": ((*VALID, "--set", f"train.epochs='{'9' * 400}'"), {}, "train.epochs in v2.yaml: must be at most"),
    "item": ((*VALID, "--set", "gate.constraints.\u00b2.bound=1"), {}, "it has no item '\u00b2'; count from 0"),
    "version": (
        ("promote", "glyphs:1", "--reason", "x", "--expect", "\u00b2"),
        {},
        "must be the number of a version, or",
    ),
    "reference": (("promote", "glyphs:", "--reason", "x"), {}, "version 'glyphs:': must be MODEL, MODEL:NUMBER"),
    "duration": (("logs", "a-v1", "--on", "local", "--since", "9" * 5000 + "d"), {}, "must be at most 36500d"),
    "seconds": (("status", "a-v1", "--on", "local", "--wait", "--timeout", "nan"), {}, "'nan' is not a finite number"),
    "cron": (
        ("schedule", "apply", "nightly", "v2.yaml", "--dry-run", "--cron", "*/\u00b2 * * * *"),
        {},
        "the step must be a number of at least 1",
    ),
    "log level": (
        ("train", "v2.yaml"),
        {"GRACEFUL_LOG_LEVEL": "loud"},
        "GRACEFUL_LOG_LEVEL: must be one of DEBUG, INFO",
    ),
    "endless report": (("gate", "/dev/zero", "v2.yaml"), {}, "/dev/zero: cannot be read (more than"),
    "bytes": ((*VALID, "--set", "description=\udcff"), {}, "not valid YAML (not UTF-8"),
    "new lines": ((*VALID, "--set", "a\n\x1b[31mb=1"), {}, r"'a\n\x1b[31mb' in v2.yaml: unknown key"),
    "profile's address": (("list", "--on", "./bad.yaml"), {}, "address in bad.yaml: must be an address such as"),
}


@pytest.mark.parametrize(("arguments", "env", "message"), MISTAKES.values(), ids=MISTAKES)
def test_every_rule_names_itself(arguments: tuple[str, ...], env: dict[str, str], message: str, folder: Path) -> None:
    content = b"kind: rayjobs\naddress: http://[::1\nhome: /runs\n"
    (folder / "bad.yaml").write_bytes(content)
    ended = spec_fuzz.run(malformed.Case(what="", arguments=arguments, env=env), folder, alone=False)
    assert ended.problem() == ""
    assert message in ended.stderr


def test_programs_refuse_a_log_level_that_is_none(folder: Path) -> None:
    """Pods start programs without the command line."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "graceful.programs", "lineage", "glyphs"]
    environment = {"GRACEFUL_LOG_LEVEL": "loud", "GRACEFUL_HOME": str(folder / "home")}
    done = subprocess.run(
        command, env={**spec_fuzz.environment(environment)}, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("graceful: GRACEFUL_LOG_LEVEL: must be one of DEBUG")
