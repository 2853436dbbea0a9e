"""Jobs of a Ray cluster, against a job server in memory: what is sent and read, and what when answers are lost."""

from __future__ import annotations

import base64
import io
import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from graceful import spec
from graceful.cli import planning
from graceful.errors import GracefulError, InfrastructureError, SpecError
from graceful.launch import follow
from graceful.launch.backend import Change, Handle, Phase, Status
from graceful.launch.job import JobSpec
from graceful.launch.local.profile import Local
from graceful.launch.ray_jobs import backend as rayjobs
from graceful.launch.ray_jobs import request as rayrequest
from graceful.launch.ray_jobs.backend import RayJobsBackend
from graceful.launch.ray_jobs.profile import RayJobs
from graceful.launch.refusals import ApiError, ForbiddenError, NotFoundError, UnreachableError
from graceful.patience import Patience

PLACE = RayJobs(kind="rayjobs", address="http://ray.example:8265", home="/shared", env={"A": "b"})
NAME = Handle(scheme="rayjobs", location="ray.example:8265", name="m-v1")


@dataclass
class Cluster:
    """As much of a job server as the backend uses; `before` is called with each request and may raise."""

    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    before: Callable[[str], None] = lambda request: None
    after: Callable[[str], None] = lambda request: None

    def jobs(self) -> list[dict[str, Any]]:
        return list(self.known.values())

    def job(self, name: str) -> dict[str, Any]:
        self.before("job")
        if name not in self.known:
            raise NotFoundError(f"no {name}")
        return self.known[name]

    def log(self, name: str) -> str:
        self.before("log")
        return self.logs.get(name, "")

    def submit(self, body: dict[str, Any]) -> None:
        self.before("submit")
        if body["submission_id"] in self.known:
            raise ApiError("exists", {"code": 500})
        start = 1_795_000_000_000 + len(self.known)
        self.known[body["submission_id"]] = {**body, "status": "PENDING", "message": "", "start_time": start}
        self.after("submit")

    def stop(self, name: str) -> None:
        self.known[name]["status"] = "STOPPED"

    def put_package(self, uri: str, data: bytes) -> None:
        self.packages[uri] = data


def place(cluster: Cluster) -> RayJobsBackend:
    clock = iter(range(10_000))
    patience = Patience(sleep=lambda seconds: None, now=lambda: float(next(clock)), random=lambda: 0.0)
    made = RayJobsBackend(profile=PLACE, patience=patience)
    made.__dict__["dashboard"] = cluster
    return made


def job(**changes: Any) -> JobSpec:
    given = {"name": "m-v1", "run_id": "m-v1", "command": ("python", "-m", "x y"), "document": '{"é": 1}'}
    return JobSpec(**{**given, "files": {"task.py": "one = 1\n"}, "labels": {"config-hash": "c0ffee"}, **changes})


def sent(cluster: Cluster, **ends: Any) -> RayJobsBackend:
    """A place with one job that is in a state."""
    there = place(cluster)
    there.submit(there.plan(job()))
    cluster.known["m-v1"] |= ends
    return there


def test_a_job_is_sent_as_a_command_variables_and_a_zip_named_by_its_content() -> None:
    body = rayrequest.render(job(), PLACE)
    assert body == rayrequest.render(job(), PLACE)
    assert (body["submission_id"], body["entrypoint"]) == ("m-v1", "python -m 'x y'")
    env = body["runtime_env"]["env_vars"]
    assert env.items() >= {"A": "b", "GRACEFUL_HOME": "/shared", "GRACEFUL_RUN_SPEC": "spec.json"}.items()
    assert "MLFLOW_TRACKING_URI" not in env
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(body["metadata"][rayrequest.PACKAGE]))) as package:
        assert {name: package.read(name).decode() for name in package.namelist() if not name.startswith(".")} == {
            "spec.json": '{"é": 1}',
            "task.py": "one = 1\n",
        }
    other = rayrequest.render(job(document="{}"), PLACE)
    assert other["runtime_env"]["working_dir"] != body["runtime_env"]["working_dir"]


def test_secrets_and_oversized_files_are_not_sent() -> None:

    large = random.Random(0).randbytes(rayrequest.LARGEST * 2).hex()
    loose = PLACE.model_copy(update={"env": {"API_TOKEN": "abcdefgh"}})
    there = RayJobsBackend(profile=loose, offline=True)
    planned = there.plan(job(files={"task.py": large}))
    assert [finding.rule for finding in planned.errors] == ["too-large", "secret-in-sight"]
    assert planned.errors[1].where == "runtime_env.env_vars.API_TOKEN"
    assert planned.differences[0].change is Change.UNKNOWN
    with pytest.raises(SpecError, match="at most 60000 are carried"):
        there.submit(planned)


def test_a_task_file_lies_in_the_working_directory_and_this_machine_keeps_its_own(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text("one = 1\n", encoding="utf-8")
    resolved = spec.parse({"model": "m", "name": "v1", "task": {"kind": "python", "file": str(file)}, "home": "/h"})
    there = planning.job_of(resolved, PLACE)
    assert '"file": "./task.py"' in (there.document or "")
    assert '"home": null' in (there.document or "")
    here = planning.job_of(resolved, Local(kind="local", env={"OMP_NUM_THREADS": "4"}))
    assert spec.parse(json.loads(here.document or "")) == resolved
    assert (here.files, "OMP_NUM_THREADS" in here.env) == ({}, False)
    assert here.labels["config-hash"] == there.labels["config-hash"]


ENDS: list[tuple[dict[str, Any], str, Phase, int | None, str]] = [
    ({"status": "PENDING", "message": "waits  for\nroom"}, "", Phase.PROVISIONING, None, "waits for room"),
    ({"status": "RUNNING"}, "", Phase.RUNNING, None, ""),
    ({"status": "STOPPED"}, "", Phase.STOPPED, 5, "stopped"),
    ({"status": "SUCCEEDED"}, "", Phase.SUCCEEDED, 0, ""),
    ({"status": "SUCCEEDED"}, 'graceful-outcome: {"exit_code": 3}\n', Phase.SUCCEEDED, 3, "held by the gate"),
    (
        {"status": "FAILED", "driver_exit_code": 2, "message": "exit code 2, logs:\ngraceful: no x.csv\n"},
        "",
        Phase.FAILED,
        2,
        "no x.csv",
    ),
    ({"status": "FAILED", "driver_exit_code": -9, "message": ""}, "", Phase.FAILED, 4, "ended by SIGKILL"),
    ({"status": "FAILED", "message": ""}, "", Phase.FAILED, 4, "vanished with its node"),
    (
        {"status": "FAILED", "driver_exit_code": 1, "message": "the node running low on memory"},
        "",
        Phase.FAILED,
        5,
        "out of memory",
    ),
]


@pytest.mark.parametrize(("ends", "log", "phase", "code", "cause"), ENDS)
def test_the_states_of_ray_are_ours(ends: Any, log: str, phase: Phase, code: int | None, cause: str) -> None:
    cluster = Cluster(logs={"m-v1": log})
    now = sent(cluster, **ends).status(NAME)
    assert (now.phase, now.exit_code) == (phase, code)
    assert cause in now.cause


def test_an_answer_that_is_lost_is_no_second_job() -> None:
    def lost(request: str) -> None:
        raise UnreachableError("cut")

    cluster = Cluster(after=lost)
    there = place(cluster)
    assert there.submit(there.plan(job())) == NAME
    assert list(cluster.known) == ["m-v1"]


def test_a_cluster_that_is_not_ready_yet_is_asked_again_and_one_that_never_is_is_told() -> None:
    failures = [ApiError("no agent", {"code": 500})] * 2

    def flaky(request: str) -> None:
        if request == "submit" and failures:
            raise failures.pop()

    cluster = Cluster(before=flaky)
    there = place(cluster)
    there.submit(there.plan(job()))
    assert list(cluster.known) == ["m-v1"]
    failures.extend([ApiError("no agent", {"code": 500})] * 99)
    planned = there.plan(job(run_id="m-v2"))
    with pytest.raises(InfrastructureError, match="no agent"):
        there.submit(planned)
    assert len(failures) == 99 - there.patience.tries


def test_a_refused_token_is_a_finding_of_the_place() -> None:
    def refuse(request: str) -> None:
        raise ForbiddenError("refuses this token", {"code": 403})

    planned = place(Cluster(before=refuse)).plan(job())
    assert [finding.rule for finding in planned.errors] == ["forbidden"]


def test_a_log_is_given_once_across_failures_and_half_lines() -> None:
    cluster = Cluster()
    there = sent(cluster, status="RUNNING")
    texts = iter(["one\ntw", UnreachableError("cut"), "one\ntwo\n", "one\ntwo\n\nfour"])
    told: list[GracefulError] = []

    def grow(request: str) -> None:
        if request != "log":
            return
        now = next(texts)
        if isinstance(now, UnreachableError):
            raise now
        cluster.logs["m-v1"] = now
        if now.endswith("four"):
            cluster.known["m-v1"]["status"] = "SUCCEEDED"
            texts_after.append(now)

    texts_after: list[str] = []
    cluster.before = grow
    object.__setattr__(there, "warn", told.append)
    lines = there.logs(NAME, follow=True)
    found = []
    for line in lines:
        found.append(line)
        if texts_after:
            cluster.before = lambda request: None
    assert found == ["one", "two", "", "four"]
    assert len(told) == 1


def test_attempts_are_one_job_with_one_log() -> None:
    cluster = Cluster(logs={"m-v1": "first\n", "m-v1.2": "second\n"})
    there = sent(cluster, status="FAILED", driver_exit_code=5)
    package = dict(cluster.packages)
    cluster.packages.clear()  # the cluster forgets what nobody uses
    assert there.resume(NAME).attempt == 2
    assert cluster.packages == package
    assert there.resume(NAME).attempt == 2  # it is not over
    cluster.known["m-v1.2"]["status"] = "SUCCEEDED"
    assert list(there.logs(NAME, follow=True)) == ["first", "second"]
    (listed,) = there.list()
    assert (listed.handle, listed.attempt, listed.phase) == (NAME, 2, Phase.SUCCEEDED)


def test_jobs_of_others_are_neither_listed_nor_touched() -> None:
    cluster = Cluster(known={"m-v1": {"submission_id": "m-v1", "status": "RUNNING", "metadata": None}})
    there = place(cluster)
    assert there.list() == []
    with pytest.raises(SpecError, match="not a job of graceful"):
        there.stop(NAME)
    with pytest.raises(SpecError, match="is there already which graceful did not make"):
        there.submit(there.plan(job()))
    with pytest.raises(SpecError, match="choose its profile with --on"):
        there.status(Handle.parse("rayjobs://other:1/m-v1"))


# Following a place that has nothing to watch.


@dataclass
class Asked:
    """Answers to `status`, in turn."""

    answers: list[Status | ApiError]

    def status(self, handle: Handle) -> Status:
        answer = self.answers.pop(0)
        if isinstance(answer, ApiError):
            raise answer
        return answer


def told(phase: Phase) -> Status:
    return Status(handle=NAME, run_id="m-v1", phase=phase)


def quick() -> Patience:
    clock = iter(range(10_000))
    return Patience(sleep=lambda seconds: None, now=lambda: float(next(clock)), random=lambda: 0.0)


def test_a_follower_is_told_changes_only_and_outlasts_failures_that_pass() -> None:
    running, passed = told(Phase.RUNNING), told(Phase.SUCCEEDED)
    asked = Asked([running, running, UnreachableError("x"), running, ApiError("y", {"code": 503}), passed])
    troubles: list[GracefulError] = []
    found = follow.statuses(asked, NAME, warn=troubles.append, patience=quick())  # type: ignore[arg-type]
    assert list(found) == [running, passed]
    assert len(troubles) == 2


def test_a_follower_ends_at_its_deadline_and_at_what_does_not_pass() -> None:
    endless = Asked([told(Phase.RUNNING)] * 99)
    with pytest.raises(InfrastructureError, match="not over after 5 s; the run continues"):
        list(follow.statuses(endless, NAME, seconds=5, patience=quick()))  # type: ignore[arg-type]
    refused = Asked([ForbiddenError("no", {"code": 403})])
    with pytest.raises(ForbiddenError):
        list(follow.statuses(refused, NAME, patience=quick()))  # type: ignore[arg-type]


def test_a_job_that_ray_does_not_end_is_told() -> None:
    class Deaf(Cluster):
        def stop(self, name: str) -> None:
            pass

    with pytest.raises(InfrastructureError, match=f"still RUNNING {rayjobs.STOP_SECONDS:g} s after it was stopped"):
        sent(Deaf(), status="RUNNING").stop(NAME)
