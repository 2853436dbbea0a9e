"""What every place where programs run must do. Here on this machine and on a Ray cluster; tests/cluster has Kubernetes.

A place starts small programs; `unfold` lets the world go on where nothing really runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from graceful.errors import InfrastructureError, SpecError
from graceful.launch import profile
from graceful.launch.backend import Backend, Change, Handle, Phase, Status
from graceful.launch.job import JobSpec
from tests.support.ray_cluster import RayCluster, ray_cluster

LINES = [f"line {number}" for number in range(5)]
OUTCOME = 'graceful-outcome: {{"exit_code": {code}, "message": "{message}", "error": "", "retryable": false}}'
SAY = "\n".join(f"print({line!r}, flush=True)" for line in LINES)
PROGRAMS = {
    "passed": f"{SAY}\nprint({OUTCOME.format(code=0, message='')!r})",
    "held": f"{SAY}\nprint({OUTCOME.format(code=3, message='too many flips')!r})",
    "spec": "import sys\nprint('graceful: x.csv: no such file', flush=True)\nsys.exit(2)",
    "failed": "import sys\nprint('graceful: step 7: loss is nan', flush=True)\nsys.exit(5)",
    "endless": f"{SAY}\nimport time\ntime.sleep(600)",
    "endless once": "import os, sys, time\n"
    "if os.path.exists(os.environ['MARK']):\n    sys.exit()\n"
    "open(os.environ['MARK'], 'w').close()\ntime.sleep(600)",
}
READS = """
import os, pathlib
spec = pathlib.Path(os.environ["GRACEFUL_RUN_SPEC"])
assert spec.read_text() == '{"model": "é"}', spec.read_text()
assert spec.with_name("task.py").read_text() == "one = 1\\n"
assert os.environ["GRACEFUL_HOME"] and os.environ["FROM_PROFILE"] == "yes"
print("read")
"""
ENDS = [
    ("passed", Phase.SUCCEEDED, 0, ""),
    ("held", Phase.SUCCEEDED, 3, "too many flips"),
    ("spec", Phase.FAILED, 2, "x.csv: no such file"),
    ("failed", Phase.FAILED, 5, "step 7: loss is nan"),
]
SECONDS = 120.0
WINE = Path(__file__).parents[2] / "jobs" / "wine" / "v1.yaml"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A backend under test.

    Attributes:
        backend: It.
        python: Interpreter there.
        unfold: Lets a submitted program of that name run, where nothing runs by itself.
        marks: Folder that programs see.
    """

    backend: Backend
    python: str
    marks: Path
    unfold: Callable[[Handle, str], None] = lambda handle, program: None

    def job(self, program: str, *, digest: str = "c0ffee", **changes: object) -> JobSpec:
        name = f"m-{uuid.uuid4().hex[:10]}"
        script = self.marks / f"{name}.py"  # a cluster takes plain words only
        script.write_text(PROGRAMS.get(program, program), encoding="utf-8")
        job = JobSpec(
            name=f"test {name}",
            run_id=name,
            command=(self.python, str(script)),
            env={"MARK": str(self.marks / name)},
            labels={"config-hash": digest},
        )
        return replace(job, **changes)

    def start(self, program: str) -> Handle:
        handle = self.backend.submit(self.backend.plan(self.job(program)))
        self.unfold(handle, program)
        return handle

    def until(self, handle: Handle, done: Callable[[Status], bool]) -> Status:
        end = time.monotonic() + SECONDS
        while not done(now := self.backend.status(handle)):
            assert time.monotonic() < end, now
            time.sleep(0.1)
        return now

    def ended(self, handle: Handle) -> Status:
        return self.until(handle, lambda now: now.phase.terminal)


@pytest.fixture(scope="session")
def ray() -> Iterator[RayCluster]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture(params=["local", pytest.param("rayjobs", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    described: dict[str, object] = {"kind": request.param, "env": {"FROM_PROFILE": "yes"}}
    if request.param == "rayjobs":
        cluster: RayCluster = request.getfixturevalue("ray")
        monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
        described |= {"address": cluster.address, "home": str(tmp_path / "home")}
    built = profile.parse(described).build(home=tmp_path / "home")
    return Place(backend=built, python=sys.executable, marks=tmp_path)


def test_a_plan_changes_nothing_and_says_what_sending_it_would(place: Place) -> None:
    job = place.job("passed")
    planned = place.backend.plan(job)
    assert {item.change for item in planned.differences} == {Change.CREATE}
    assert planned.errors == ()
    assert planned == place.backend.plan(job)
    assert not any(one.run_id == job.run_id for one in place.backend.list())
    with pytest.raises(SpecError, match="no run"):
        place.backend.status(planned.handle)


def test_submitting_twice_makes_one_job_and_another_content_is_refused(place: Place) -> None:
    job = place.job("endless")
    other = replace(job, labels={"config-hash": "decaf"})
    planned, stale = place.backend.plan(job), place.backend.plan(other)
    first = place.backend.submit(planned)
    assert place.backend.submit(planned) == place.backend.submit(place.backend.plan(job)) == first == planned.handle
    assert [one.handle for one in place.backend.list()].count(first) == 1
    assert Handle.parse(str(first)) == first

    for late in (stale, place.backend.plan(other)):
        with pytest.raises(SpecError, match="is there already with another spec"):
            place.backend.submit(late)
    place.backend.stop(first)


@pytest.mark.parametrize(("program", "phase", "code", "cause"), ENDS, ids=[program for program, *_ in ENDS])
def test_a_job_ends_with_its_phase_its_exit_code_and_its_last_words(
    place: Place, program: str, phase: Phase, code: int, cause: str
) -> None:
    now = place.ended(place.start(program))
    assert (now.phase, now.exit_code, now.attempt) == (phase, code, 1)
    assert cause in now.cause
    assert now.created is not None


def test_a_followed_log_has_every_line_once_and_ends(place: Place) -> None:
    handle = place.start("passed")
    followed = [line for line in place.backend.logs(handle, follow=True) if line.startswith("line ")]
    assert followed == LINES
    assert [line for line in place.backend.logs(handle) if line.startswith("line ")] == LINES


def test_a_stopped_job_stays_stopped_and_resumes_under_its_name(place: Place) -> None:
    handle = place.start("endless once")
    place.until(handle, lambda now: now.phase is Phase.RUNNING)
    _until_it_listens(place, handle)
    for _ in range(2):
        stopped = place.backend.stop(handle)
        assert (stopped.phase, stopped.exit_code) == (Phase.STOPPED, 5)
    assert place.backend.status(handle).phase is Phase.STOPPED
    resumed = place.backend.resume(handle)
    assert (resumed.handle, resumed.phase.terminal, resumed.attempt) == (handle, False, 2)
    place.unfold(handle, "passed")
    assert place.ended(handle).exit_code == 0
    with pytest.raises(SpecError, match="nothing to resume"):
        place.backend.resume(handle)
    assert place.backend.stop(handle).phase is Phase.SUCCEEDED


def test_what_is_not_there_is_told_by_every_command(place: Place) -> None:
    nowhere = replace(place.backend.plan(place.job("passed")).handle, name="nowhere")
    for ask in (place.backend.status, place.backend.stop, place.backend.resume):
        with pytest.raises(SpecError, match="no run 'nowhere'"):
            ask(nowhere)
    with pytest.raises((SpecError, InfrastructureError), match="nowhere"):
        next(iter(place.backend.logs(nowhere)))


def test_jobs_are_listed_newest_first(place: Place) -> None:
    handles = []
    for _ in range(2):
        handles.append(place.start("spec"))
        if handles[0].scheme == "kuberay":
            time.sleep(1.1)  # the server's times have whole seconds
    found = [one.handle for one in place.backend.list()]
    assert [one for one in found if one in handles] == handles[::-1]


def test_a_program_reads_its_document_its_files_and_its_variables(place: Place) -> None:
    if place.backend.__class__.__name__ == "KubeRayBackend":
        pytest.skip("nothing runs there; the manifests' golden files say the same")
    job = place.job(READS, document='{"model": "é"}', files={"task.py": "one = 1\n"})
    handle = place.backend.submit(place.backend.plan(job))
    log = list(place.backend.logs(handle, follow=True))
    assert place.ended(handle).exit_code == 0, log
    assert "read" in log


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
    followed.until_ended("wine-v1", seconds=2 * SECONDS)
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
    search = {"trials": 2, "tolerance": 1.0, "space": {"runs": [1]}, "final": {"candidates": 1, "seeds": 2}}
    spec = _digits(tmp_path, "v2", workers=1, tune=search)
    sent = command_line("submit", spec, "--on", on, "--tune", "--yes", "-o", "json")
    assert json.loads(sent.stdout)["run_id"] == "digits-v2-tune-2", sent.stderr
    followed = Follow(command_line, "--on", on)
    found = followed.until_ended("digits-v2-tune-2", seconds=4 * SECONDS)
    assert (found["phase"], found["exit_code"]) == ("SUCCEEDED", 0), followed("logs", "digits-v2-tune-2")
    folder = home / "tunes" / "digits-v2"
    assert json.loads((folder / "tune.json").read_text())["trials"] == 2
    jobs = [json.loads(path.read_text()) for path in folder.glob("fits/*/spec.json")]
    assert len(jobs) == 4, "two trials, and the better one with two fresh seeds"
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


def _until_it_listens(place: Place, handle: Handle) -> None:
    mark = place.marks / handle.name
    end = time.monotonic() + SECONDS
    while handle.scheme != "kuberay" and not mark.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_local_job_outlives_nothing_of_its_own(tmp_path: Path) -> None:
    """The supervisor ends with its program, and leaves no process behind."""
    place = Place(backend=profile.parse({"kind": "local"}).build(home=tmp_path), python=sys.executable, marks=tmp_path)
    handle = place.start("endless once")
    _until_it_listens(place, handle)
    place.backend.stop(handle)
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _bytes(path)]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.parent.name != str(os.getpid()) else b""
    except OSError:
        return b""
