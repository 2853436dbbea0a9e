"""Backfills as jobs: in the background of this machine and on a Ray cluster, killed in the middle, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from graceful.index import Index, files
from graceful.index.places import Folder, at
from tests.contract.test_backfill import COUNT, NEW, OLD, mapped, once, vectors
from tests.support.ray_cluster import RayCluster, ray_cluster

SECONDS = 600.0
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Commands:
    """Commands against one profile."""

    command_line: Command
    on: Path

    def run(self, *arguments: str) -> Any:
        """Return what a command prints as JSON."""
        done = self.command_line(*arguments, "--on", self.on, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def until(self, name: str, reached: Callable[[], bool]) -> None:
        """Wait for something that a job does."""
        end = time.monotonic() + SECONDS
        while not reached():
            assert time.monotonic() < end, self.command_line("logs", name, "--on", self.on).stdout
            time.sleep(0.1)


@pytest.fixture(scope="module")
def ray(new_place: Callable[[], str]) -> Iterator[RayCluster]:
    """A Ray cluster whose nodes have the variables of the bucket, which `new_place` sets."""
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture(params=["local", pytest.param("rayjobs", marks=pytest.mark.integration)])
def commands(
    request: pytest.FixtureRequest, tmp_path: Path, command_line: Command, monkeypatch: pytest.MonkeyPatch
) -> Commands:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    document: dict[str, Any] = {"kind": request.param}
    if request.param == "rayjobs":
        cluster: RayCluster = request.getfixturevalue("ray")
        monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
        document |= {"address": cluster.address, "home": str(tmp_path / "home")}
    path = tmp_path / f"{request.param}.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return Commands(command_line, path)


def driver(home: Path) -> int:
    """The process that backfills with a home of its own."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            ours = f"GRACEFUL_HOME={home}".encode() in (path / "environ").read_bytes().split(b"\0")
            if ours and b"backfill" in words and any(b"graceful.programs" in word for word in words):
                return int(path.name)
    raise AssertionError("no process backfills")


def test_a_job_that_is_killed_goes_on_and_the_same_command_finds_it(
    commands: Commands, new_place: Callable[[], str], tmp_path: Path, command_line: Command
) -> None:
    address, run, until = new_place(), commands.run, commands.until
    index = Index.create(address, vectors(), OLD)
    beside, expected = address.rpartition("/")[0], set(vectors().ids.tolist())
    files.write(tmp_path / "new.npz", mapped(vectors()), NEW)
    at(beside).write("new.npz", (tmp_path / "new.npz").read_bytes())
    command = ("backfill", "run", address, "--vectors", f"{beside}/new.npz", "--batch", "10", "--rate", "50", "--yes")
    if commands.on.stem == "rayjobs" and isinstance(index.place, Folder):
        refused = command_line(*command, "--on", commands.on)
        assert (refused.returncode, "is on this machine" in refused.stderr) == (2, True)
        return
    sent = run(*command)
    name = sent["run_id"]
    assert (name[:9], len(name), sent["handle"].partition("://")[0]) == ("backfill-", 21, commands.on.stem)
    assert run(*command, "--reason", "said twice") == sent, "the same job, whatever the reason"
    until(name, lambda: index.head().counts.get("new", 0) >= 20)
    os.kill(driver(tmp_path / "home"), signal.SIGKILL)
    until(name, lambda: run("status", name)["phase"] in ("FAILED", "STOPPED"))
    part = once(index, expected)
    assert 0 < part["new"] < COUNT
    hits = index.search({"old": vectors().vectors[:9], "new": mapped(vectors()).vectors[:9]}, k=1)
    assert hits.ids[:, 0].tolist() == vectors().ids[:9].tolist(), "searches are answered meanwhile"
    run("resume", name)
    until(name, lambda: run("status", name)["phase"] == "SUCCEEDED")
    assert once(index, expected) == {"old": 0, "new": COUNT}
    assert (index.head().action, index.head().serving) == ("move", "new")
    again = command_line(*command, "--on", commands.on)
    assert (again.returncode, "it was there already" in again.stderr) == (0, True)
    assert "--name NAME sends it as another job" in again.stderr
    assert f"{COUNT} of {COUNT} vectors are of new" in command_line("logs", name, "--on", commands.on).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gallery", "--vectors", "s3://b/v.npz"), "INDEX gallery: is on this machine, and jobs of kind rayjobs see"),
        (("s3://b/i", "--vectors", "v.npz"), "--vectors v.npz: is on this machine"),
        (("s3://b/i", "--vectors", "s3://b/v.npz", "--traffic", "t.json"), "--traffic t.json: is on this machine"),
    ],
)
def test_files_of_this_machine_are_refused_where_jobs_run_elsewhere(
    arguments: tuple[str, ...], message: str, tmp_path: Path, command_line: Command
) -> None:
    (tmp_path / "ray.yaml").write_text("{kind: rayjobs, address: 'http://127.0.0.1:1', home: /runs}", encoding="utf-8")
    done = command_line("backfill", "run", *arguments, "--on", "ray.yaml", "--yes")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


def test_options_of_a_job_need_a_profile(command_line: Command) -> None:
    done = command_line("backfill", "run", "gallery", "--vectors", "v.npz", "--name", "again")
    assert (done.returncode, "--name and --yes belong to --on" in done.stderr) == (2, True)
