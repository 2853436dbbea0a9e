"""The contract of backends on this machine and on a Ray cluster, and programs of graceful there.

`graceful.testing.backend` has the contract; tests/cluster applies it to Kubernetes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from graceful.launch import profile
from graceful.testing.backend import BackendContract, BackendUnderTest
from tests.support.ray_cluster import RayCluster, ray_cluster

SECONDS = 800.0
"""A limit that ends a hang alone; on a busy machine each of several trainings takes minutes."""
WINE = Path(__file__).parents[2] / "jobs" / "wine" / "v1.yaml"


@pytest.fixture(scope="session")
def ray() -> Iterator[RayCluster]:
    with ray_cluster() as cluster:
        yield cluster


class TestBackends(BackendContract):
    @pytest.fixture(params=["local", pytest.param("rayjobs", marks=pytest.mark.integration)])
    def target(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> BackendUnderTest:
        described: dict[str, object] = {"kind": request.param}
        if request.param == "rayjobs":
            cluster: RayCluster = request.getfixturevalue("ray")
            monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
            described |= {"address": cluster.address, "home": str(tmp_path / "home")}
        built = profile.parse(described).build(home=tmp_path / "home")
        return BackendUnderTest(backend=built, python=sys.executable, folder=tmp_path)


@pytest.fixture
def shared(ray: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A profile of the Ray cluster, and the home that its runs share with this machine."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", ray.token)
    on, home = tmp_path / "ray.yaml", tmp_path / "shared"
    on.write_text(f"{{kind: rayjobs, address: '{ray.address}', home: '{home}'}}", encoding="utf-8")
    return on, home


@pytest.mark.integration
def test_a_refresh_runs_on_a_ray_cluster_and_its_verdict_comes_back(
    ray: RayCluster, shared: tuple[Path, Path], command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    on, home = shared
    small = ("--set", "train.num_workers=1", "--set", "train.epochs=1")
    for _ in range(2):
        sent = command_line("submit", WINE, "--on", on, *small, "--yes", "-o", "json")
        assert sent.returncode == 0, sent.stderr
        assert json.loads(sent.stdout)["handle"] == f"rayjobs://{ray.address.removeprefix('http://')}/wine-v1"
    followed = Follow(command_line, "--on", on)
    followed.until_ended("wine-v1", seconds=SECONDS)
    found = json.loads(followed("status", "wine-v1", "--wait", "-o", "json", code=3))
    assert (found["phase"], found["exit_code"], found["cause"]) == ("SUCCEEDED", 3, "held by the gate")
    log = followed("logs", "wine-v1", "-f")
    assert log.count("stage=register") == 1
    assert (home / "runs" / "wine-v1" / "report.json").is_file()
    assert [one["run_id"] for one in json.loads(followed("list", "-o", "json")) if one["run_id"] == "wine-v1"]
    doctor = json.loads(followed("doctor", "-o", "json"))
    assert {one["name"]: one["state"] for one in doctor} == {
        "dashboard": "ok", "ray": "ok", "token": "ok", "mlflow": "warn",
    }  # fmt: skip


@pytest.mark.integration
def test_weights_are_searched_on_a_ray_cluster_by_its_workers(
    shared: tuple[Path, Path], command_line: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    on, home = shared
    first = command_line("refresh", _digits(tmp_path, "v1", share=0.5), "--home", home)
    assert first.returncode == 0, first.stderr
    search = {"trials": 1, "tolerance": 1.0, "space": {"runs": [1]}, "final": {"candidates": 1, "seeds": 2}}
    spec = _digits(tmp_path, "v2", workers=1, tune=search)
    sent = command_line("submit", spec, "--on", on, "--tune", "--yes", "-o", "json")
    assert json.loads(sent.stdout)["run_id"] == "digits-v2-tune-1", sent.stderr
    followed = Follow(command_line, "--on", on)
    found = followed.until_ended("digits-v2-tune-1", seconds=SECONDS)
    assert (found["phase"], found["exit_code"]) == ("SUCCEEDED", 0), followed("logs", "digits-v2-tune-1")
    folder = home / "tunes" / "digits-v2"
    assert json.loads((folder / "tune.json").read_text())["trials"] == 1
    jobs = [json.loads(path.read_text()) for path in folder.glob("fits/*/spec.json")]
    assert len(jobs) == 3, "one trial, and the same with two fresh seeds"
    assert {job["job"]["train"]["num_workers"] for job in jobs} == {1}


def _digits(folder: Path, name: str, *, share: float = 1.0, workers: int = 0, **sections: object) -> Path:
    document = {
        "model": "digits",
        "name": name,
        "task": {"kind": "digits", "share": share, "network": {"head": "cosine"}},
        "train": {"num_workers": workers, "engine": {"kind": "torch"}, "epochs": 2, "batch_size": 32},
        "evaluate": {"retrieval": False},
        "gate": {"constraints": [{"metric": "error_rate", "bound": 0.95, "against": "self"}]},
        **sections,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Follow:
    """Commands against one place, and what they print."""

    command_line: Callable[..., subprocess.CompletedProcess[str]]
    flag: str
    on: Path

    def __call__(self, *words: str, code: int = 0) -> str:
        done = self.command_line(*words, self.flag, self.on)
        assert done.returncode == code, done.stderr
        return done.stdout

    def until_ended(self, run: str, *, seconds: float) -> dict[str, object]:
        """Its last status."""
        end = time.monotonic() + seconds
        while True:
            found: dict[str, object] = json.loads(self("status", run, "-o", "json"))
            if found["exit_code"] is not None:
                return found
            assert time.monotonic() < end, self("logs", run)
            time.sleep(2.0)


def test_a_local_job_outlives_nothing_of_its_own(tmp_path: Path) -> None:
    """The supervisor ends with its program, and leaves no process behind."""
    backend = profile.parse({"kind": "local"}).build(home=tmp_path)
    here = BackendUnderTest(backend=backend, python=sys.executable, folder=tmp_path)
    handle = here.start("endless once")
    here.until_it_listens(handle)
    here.backend.stop(handle)
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _bytes(path)]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.parent.name != str(os.getpid()) else b""
    except OSError:
        return b""
