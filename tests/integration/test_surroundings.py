"""Training on Ray in a working directory whose files are named like modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

TASK = """\
from pathlib import Path
from jobs_wine_task import task as wine


def task(note, width=16):
    assert Path(note).read_text() == "relative to the working directory"
    return wine(width=width)
"""


def test_ray_workers_do_not_import_from_the_working_directory_and_find_its_files(tmp_path: Path) -> None:
    work, code = tmp_path / "work", tmp_path / "code"
    work.mkdir()
    code.mkdir()
    for name in ("torch", "secrets", "ray", "numpy"):
        (work / f"{name}.py").write_text("open('executed', 'w')\nraise ImportError('executed')\n", encoding="utf-8")
    (work / "note.txt").write_text("relative to the working directory", encoding="utf-8")
    wine = Path(__file__).parents[2] / "jobs" / "wine" / "task.py"
    (code / "jobs_wine_task.py").write_text(wine.read_text(encoding="utf-8"), encoding="utf-8")
    (code / "task.py").write_text(TASK, encoding="utf-8")
    spec = tmp_path / "v1.yaml"
    spec.write_text(
        "{model: wine, name: v1, task: {kind: python, file: code, options: {note: note.txt}},"
        " train: {epochs: 1, batch_size: 16, num_workers: 1, use_gpu: false, engine: {kind: torch}}}",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "graceful.cli", "train", str(spec)],
        cwd=work,
        env={**os.environ, "GRACEFUL_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert not (work / "executed").exists()
