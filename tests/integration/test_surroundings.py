"""Training on Ray in a working directory whose files are named like modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ray_cluster import ray_cluster

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
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert not (work / "executed").exists()


DRIVER = """\
import os
import ray
from graceful.training import ray_fit

@ray.remote
def module():
    import wave
    return wave.__file__

ray_fit.connect()
print(ray.get(module.remote()), os.getcwd(), sep="\\n")
"""


def test_workers_of_an_existing_cluster_do_not_import_from_the_working_directory(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "wave.py").write_text("", encoding="utf-8")
    with ray_cluster(cpus=1) as cluster:
        (work / "token").write_text(cluster.token, encoding="utf-8")
        env = {**os.environ, **cluster.joining(), "RAY_AUTH_TOKEN_PATH": "token"}
        del env["RAY_AUTH_TOKEN"]
        done = subprocess.run(
            [sys.executable, "-P", "-c", DRIVER],
            cwd=work,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    imported, folder = done.stdout.splitlines()
    assert Path(imported).parent != work
    assert folder == str(work)
