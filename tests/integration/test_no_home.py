"""A user without a home directory or a name: usual in containers that run under a number of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
NO_HOME = ROOT / "tests/support/no_home"
SPEC = ROOT / "jobs/wine/v1.yaml"


def graceful(*words: object, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    nameless = {"HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "KUBECONFIG", "GRACEFUL_HOME"}
    env = {key: value for key, value in os.environ.items() if key not in nameless}
    paths = os.pathsep.join([str(NO_HOME), str(ROOT)])
    command = [sys.executable, "-m", "graceful.cli", *map(str, words)]
    env |= {"PYTHONPATH": paths, **variables}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)


def test_a_version_is_trained_registered_and_promoted(tmp_path: Path) -> None:
    done = graceful("refresh", SPEC, "--set", "train.epochs=2", "-o", "json", folder=tmp_path)
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["outcome"] in ("passed", "held")
    assert "Traceback" not in done.stderr
    listed = graceful("lineage", "wine", "-o", "json", folder=tmp_path)
    assert [version["name"] for version in json.loads(listed.stdout)] == ["v1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".graceful"]


@pytest.mark.parametrize(
    "words",
    [
        ("list", "--on", "local"),
        ("schedule", "run"),
        ("doctor",),
        ("refresh", SPEC),
        ("refresh", SPEC, "--set", "home=~/x"),
        ("lineage", "wine", "--home", "~/x"),
        ("ui",),
    ],
)
def test_a_path_below_a_home_directory_that_is_not_there_is_one_line(words: tuple[object, ...], tmp_path: Path) -> None:
    variables = {} if "--home" in words or "--set" in words else {"GRACEFUL_HOME": "~/x"}
    done = graceful(*words, folder=tmp_path, **variables)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("graceful: ")
    assert "home directory; write an absolute path" in line
    assert list(tmp_path.iterdir()) == []
