"""Programs that the client starts for a bucket, on a real S3 server: sweeping checkpoints, shipping code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from graceful import cli, packing, tasks
from graceful.cli import bucket, locations
from graceful.errors import InfrastructureError, IntegrityError, SpecError
from graceful.launch.kuberay import gc
from graceful.programs.housekeeping import sweep
from graceful.spec import PythonTask
from graceful.storage import objects
from graceful.storage.server import client
from graceful.tasks import code
from tests.support.launch import CLUSTER, Server
from tests.support.s3_server import environment, serving

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_modules")]
LATER = timedelta(hours=2)
"""From now, the objects that a test wrote are so old."""
TASK = """
from shapes import CLASSES


class Own:
    classes = CLASSES
    augments = False

    def network(self, classes):
        return None

    def samples(self, split):
        raise KeyError(split)

    def transform(self, items, views):
        return items


def task():
    return Own()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as endpoint:
        client().create_bucket(Bucket="programs")
        yield endpoint


@pytest.fixture
def uri(server: str, request: pytest.FixtureRequest) -> str:
    return f"s3://programs/{request.node.name}"


def put(uri: str, *keys: str, text: str = "x") -> None:
    for key in keys:
        objects.write_object(f"{uri}/{key}", text.encode())


def keys(uri: str) -> set[str]:
    return {stored.uri.removeprefix(f"{uri}/") for stored in objects.list_objects(uri)}


def snapshot(*steps: int) -> str:
    rows = [{"version": 0, "checkpoint_dir_name": f"step-{step:09d}", "metrics": {}} for step in steps]
    return json.dumps(
        {"checkpoint_results": rows, "latest_checkpoint_result": rows[-1], "pending_training_results": []}
    )


STEP = "runs/{run}/ray/{run}/step-{step:09d}/{file}"


def runs(uri: str) -> None:
    """A finished run whose cleaning broke off, one that could resume, and neighbours that are none of our business."""
    put(uri, "runs/done/result.json", "runs/done/report.json", STEP.format(run="done", step=10, file="w.pt"))
    put(uri, "runs/done/checkpoints/step-000000010/w.pt", "versions/done/w.bin", "code/x.zip", "runsold/ray/x/y")
    put(uri, *(STEP.format(run="open", step=step, file=file) for step in (10, 20) for file in ("w.pt", "state.json")))
    put(uri, "runs/open/ray/open/checkpoint_manager_snapshot.json", text=snapshot(20))


def swept(uri: str, *, dry_run: bool = False) -> list[str]:
    rows: list[dict[str, str]] = []
    sweep.sweep(uri, older=timedelta(0), now=datetime.now(UTC) + LATER, dry_run=dry_run, removed_rows=rows)
    return [row["uri"].removeprefix(f"{uri}/runs/") for row in rows]


def test_a_sweep_takes_what_nobody_needs_and_nothing_else(uri: str) -> None:
    runs(uri)
    before = keys(uri)
    wanted = ["done/checkpoints", "done/ray", "open/ray/open/step-000000010"]
    assert swept(uri, dry_run=True) == wanted
    assert keys(uri) == before
    assert swept(uri) == wanted
    gone = before - keys(uri)
    assert len(gone) == 4
    assert all("done/ray/" in key or "done/checkpoints/" in key or "open/step-000000010/" in key for key in gone)
    assert swept(uri) == []


def test_an_upload_in_progress_is_not_touched_whatever_age_is_asked(uri: str) -> None:
    runs(uri)
    found = bucket.sweep(uri, older=timedelta(0), dry_run=False)
    assert found.problem == ""
    assert [removal.name.removeprefix(f"{uri}/runs/") for removal in found.removals] == ["done/checkpoints", "done/ray"]
    assert {removal.why for removal in found.removals} == {"its run has a result, 1 object, 0.0 MiB"}
    assert STEP.format(run="open", step=10, file="w.pt") in keys(uri)


def test_what_is_written_again_between_look_and_deletion_stays(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(uri)
    find = sweep.find

    def meanwhile(root: str, *, before: datetime, run: str = "") -> tuple[sweep.Orphan, ...]:
        if run == "open":
            put(uri, STEP.format(run="open", step=10, file="x.pt"))
        return find(root, before=before, run=run)

    monkeypatch.setattr(sweep, "find", meanwhile)
    assert swept(uri) == ["done/checkpoints", "done/ray"]


def test_trouble_with_the_bucket_is_one_line_with_a_remedy(uri: str, tmp_path: Path) -> None:
    found = bucket.sweep("s3://no-such-bucket/x", older=LATER, dry_run=False)
    assert found.removals == ()
    assert found.problem.startswith("s3://no-such-bucket/x/runs/: no such bucket; check the name")
    with environment({"AWS_SECRET_ACCESS_KEY": "wrong"}):
        assert "check" in bucket.sweep(uri, older=LATER, dry_run=True).problem
    with pytest.raises(InfrastructureError, match="no such bucket; check the name"):
        bucket.ship(task_folder(tmp_path), "s3://no-such-bucket/x")


def task_folder(root: Path) -> Path:
    folder = root / "my_task"
    folder.mkdir(exist_ok=True)
    (folder / "task.py").write_text(TASK)
    (folder / "shapes.py").write_text("CLASSES = ('a', 'b')\n")
    return folder


def test_a_folder_is_uploaded_once_and_built_from_the_bucket_elsewhere(uri: str, tmp_path: Path) -> None:
    folder = task_folder(tmp_path)
    sent = bucket.ship(folder, uri)
    assert sent.uploaded
    assert sent.uri == f"{uri}/code/{code.digest(str(folder))}.zip"
    assert not bucket.ship(folder, uri).uploaded
    assert keys(uri) == {f"code/{code.digest(str(folder))}.zip"}
    section = PythonTask(file=sent.uri)
    assert tasks.transform_digest(section) == tasks.transform_digest(PythonTask(file=str(folder)))
    program = (
        "import sys; from graceful import tasks; from graceful.spec import PythonTask;"
        " print(*tasks.build(PythonTask(file=sys.argv[1])).classes)"
    )
    home = tmp_path / "elsewhere"
    env = {**os.environ, "GRACEFUL_HOME": str(home)}
    command = [sys.executable, "-c", program, sent.uri]
    together = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=600)[0].strip() for process in together] == ["a b", "a b"]
    assert [path.name for path in (home / "code").iterdir()] == [code.digest(str(folder))]


def test_a_bundle_cut_short_is_uploaded_again(uri: str, tmp_path: Path) -> None:
    folder = task_folder(tmp_path)
    sent = bucket.ship(folder, uri)
    objects.write_object(sent.uri, b"cut")
    assert bucket.ship(folder, uri).uploaded
    assert objects.read_object(sent.uri) == packing.pack(folder)


def test_a_bundle_that_is_not_its_name_is_refused_before_it_is_unpacked(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    address = packing.address(uri, "0" * 64)
    with pytest.raises(SpecError, match="is not there; submit the folder again"):
        tasks.build(PythonTask(file=address))
    objects.write_object(address, packing.pack(task_folder(tmp_path)))
    with pytest.raises(IntegrityError, match=r"has SHA-256 .*, not the one in its name"):
        tasks.build(PythonTask(file=address))
    assert list((tmp_path / "home" / "code").iterdir()) == []


# The command line.


def place(root: Path, uri: str) -> str:
    path = root / "place.yaml"
    path.write_text(yaml.safe_dump({**CLUSTER, "storage": {"uri": uri}, "mlflow": {"uri": "http://mlflow:5000"}}))
    return str(path)


def test_a_folder_that_is_submitted_twice_is_uploaded_once_and_planning_uploads_nothing(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    monkeypatch.setattr("graceful.launch.kuberay.backend.connector", lambda profile: lambda: server)
    task_folder(tmp_path)
    spec, on = tmp_path / "v1.yaml", place(tmp_path, uri)
    spec.write_text("{model: mine, name: v1, task: {kind: python, file: my_task}}")
    assert cli.main(["plan", str(spec), "--on", on]) == 0
    assert keys(uri) == set()
    assert cli.main(["submit", str(spec), "--on", on, "--yes"]) == 0
    (sent,) = keys(uri)
    assert f"code: {uri}/{sent}, " in (said := capsys.readouterr().err)
    assert "bytes uploaded" in said
    written = objects.list_objects(uri)
    assert cli.main(["submit", str(spec), "--on", on, "--yes"]) == 0
    assert "bytes were there already" in capsys.readouterr().err
    assert objects.list_objects(uri) == written
    config = next(document for (kind, _), document in server.objects.items() if kind == "ConfigMap")
    travelled = json.loads(config["data"]["spec.json"])["task"]["file"]
    assert travelled == f"{uri}/{sent}"
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "pod"))
    assert tasks.build(PythonTask(file=travelled)).classes == ("a", "b")


def test_gc_shows_checkpoints_beside_what_goes_on_the_cluster(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(uri)
    before = keys(uri)
    job = gc.Removal(kind="RayJob", name="done", uid="u", why="SUCCEEDED")
    monkeypatch.setattr(gc, "find", lambda kube, *, now, min_age, stopped_age: (job,))
    monkeypatch.setattr(gc, "remove", lambda kube, found: found)
    monkeypatch.setattr(locations.RunLocation, "kube", Namespace())
    arguments = ["gc", "--on", place(tmp_path, uri)]
    assert cli.main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "RayJob done: SUCCEEDED",
        f"Checkpoints {uri}/runs/done/checkpoints: its run has a result, 1 object, 0.0 MiB",
        f"Checkpoints {uri}/runs/done/ray: its run has a result, 1 object, 0.0 MiB",
    ]
    assert said.err.splitlines()[-1] == f"2 folders of checkpoints would be removed in {uri}"
    assert keys(uri) == before
    assert cli.main([*arguments, "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["uid"]) for row in rows] == [("RayJob", "u"), ("Checkpoints", ""), ("Checkpoints", "")]
    assert len(before - keys(uri)) == 2


class Namespace:
    namespace = "rec"
