"""How a user's code travels: which way is planned, what is refused, and that planning asks no bucket."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful import cli, spec
from graceful.cli import bucket, code_upload, locations, planning, programs, reclaiming
from graceful.errors import SpecError
from graceful.launch.kuberay import gc, manifests
from graceful.launch.local.profile import Local
from graceful.launch.ray_jobs.profile import RayJobs
from tests.support.launch import CLUSTER, Server, cluster

STORAGE = {"uri": "s3://team/graceful/"}
RAYJOBS = RayJobs(kind="rayjobs", address="http://127.0.0.1:8265", home="/runs")


@pytest.fixture(autouse=True)
def _no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks one fails at once."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_task").mkdir()
    (tmp_path / "my_task" / "task.py").write_text("import shapes\n")
    (tmp_path / "my_task" / "shapes.py").write_text("one = 1\n")
    return tmp_path / "my_task"


def resolved(file: Path | str) -> spec.RefreshSpec:
    return spec.parse({"model": "mine", "name": "v1", "task": {"kind": "python", "file": str(file)}})


def digest_of(**files: str) -> str:
    """Packed by hand: sorted names, the oldest date that a zip can hold, plain files, nothing compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{name}.py", (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def test_a_folder_travels_by_the_digest_of_its_content(folder: Path) -> None:
    job = planning.job_of(resolved(folder), cluster(storage=STORAGE))
    digest = digest_of(task="import shapes\n", shapes="one = 1\n")
    address = f"s3://team/graceful/code/{digest}.zip"
    assert json.loads(job.document or "")["task"]["file"] == address == job.labels[code_upload.FACT]
    assert job.files == {}
    (folder / "shapes.py").write_text("one = 2\n")
    later = planning.job_of(resolved(folder), cluster(storage=STORAGE))
    assert later.labels["config-hash"] != job.labels["config-hash"]


def test_one_file_travels_with_the_job_unless_it_is_too_large(folder: Path) -> None:
    small, large = folder / "shapes.py", folder / "large.py"
    large.write_text("#" * manifests.LARGEST)
    job = planning.job_of(resolved(small), cluster(storage=STORAGE))
    assert (job.files, code_upload.FACT in job.labels) == ({"task.py": "one = 1\n"}, False)
    with pytest.raises(
        SpecError, match=r"large\.py: and spec hold \d+ bytes, a ConfigMap at most 1000000; set storage"
    ):
        planning.job_of(resolved(large), cluster())
    carried = planning.job_of(resolved(large), cluster(storage=STORAGE))
    assert carried.labels[code_upload.FACT].endswith(f"/code/{digest_of(task=large.read_text())}.zip")
    largest = "#" * (manifests.LARGEST - code_upload.MARGIN - len(json.dumps(resolved(large).dump(), indent=1)))
    large.write_text(largest)
    manifests.render(planning.job_of(resolved(large), cluster()), cluster())


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (cluster(), r"my_task: is a folder; set storage\.uri: s3://bucket/prefix in the profile"),
        (RAYJOBS, r"my_task: is a folder, kind rayjobs carries one file; use a profile of kind kuberay"),
    ],
)
def test_a_folder_that_cannot_travel_is_refused_with_the_remedy(folder: Path, place: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        planning.job_of(resolved(folder), place)


def test_a_folder_without_a_task_is_refused_while_it_is_planned(folder: Path) -> None:
    (folder / "task.py").unlink()
    with pytest.raises(SpecError, match=r"is a folder without task\.py"):
        planning.job_of(resolved(folder), cluster(storage=STORAGE))


def test_on_this_machine_a_folder_stays_where_it_is_and_an_edit_is_another_job(folder: Path) -> None:
    here = Local(kind="local")
    job = planning.job_of(resolved(folder), here)
    assert json.loads(job.document or "")["task"]["file"] == str(folder)
    (folder / "shapes.py").write_text("one = 2\n")
    assert planning.job_of(resolved(folder), here).labels["config-hash"] != job.labels["config-hash"]


def test_what_lies_in_a_bucket_already_travels_by_its_address() -> None:
    address = f"s3://team/code/{'0' * 64}.zip"
    for place in (cluster(), RAYJOBS, Local(kind="local")):
        job = planning.job_of(resolved(address), place)
        assert json.loads(job.document or "")["task"]["file"] == address
        assert code_upload.FACT not in job.labels


def test_a_plan_says_where_the_code_would_go(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("v1.yaml").write_text("{model: mine, name: v1, task: {kind: python, file: my_task}}")
    Path("place.yaml").write_text(yaml.safe_dump({**CLUSTER, "storage": STORAGE, "mlflow": {"uri": "http://m:5000"}}))
    monkeypatch.setattr(bucket, "_run", None)  # no process is started to learn the digest
    assert cli.main(["plan", "v1.yaml", "--on", "place.yaml", "--offline"]) == 0
    assert "code: a submission uploads it to s3://team/graceful/code/" in capsys.readouterr().out


def test_nothing_is_submitted_whose_code_cannot_be_sent(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    monkeypatch.setattr("graceful.launch.kuberay.backend.connector", lambda profile: lambda: server)
    monkeypatch.chdir(folder.parent)
    Path("v1.yaml").write_text("{model: mine, name: v1, task: {kind: python, file: my_task}}")
    Path("place.yaml").write_text(yaml.safe_dump({**CLUSTER, "storage": STORAGE, "mlflow": {"uri": "http://m:5000"}}))
    loaded: list[Any] = []
    load = programs.load
    monkeypatch.setattr(programs, "load", lambda *given: loaded.append(given) or load(*given))
    assert cli.main(["submit", "v1.yaml", "--on", "place.yaml", "--yes"]) == 4
    assert len(loaded) == 1, "what was planned is what is sent"
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("graceful: s3://team/graceful/code/: no credentials; set")
    )
    assert server.objects == {}


def test_code_that_changes_after_the_plan_is_not_submitted(folder: Path) -> None:
    job = planning.job_of(resolved(folder), cluster(storage=STORAGE))
    (folder / "shapes.py").write_text("one = 2\n")
    with pytest.raises(SpecError, match="its code changed while it was planned"):
        code_upload.send(resolved(folder), job)


# gc.


def test_gc_ends_with_4_and_one_warning_when_the_bucket_cannot_be_swept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = gc.Removal(kind="RayJob", name="a", uid="u", why="SUCCEEDED")
    monkeypatch.setattr(gc, "find", lambda kube, *, now, min_age, stopped_age: (gone,))
    monkeypatch.setattr(gc, "remove", lambda kube, found: found)
    monkeypatch.setattr(locations.RunLocation, "kube", Server())
    path = tmp_path / "place.yaml"
    path.write_text(yaml.safe_dump({**CLUSTER, "storage": STORAGE}))
    place = locations.RunLocation(on=str(path))
    assert reclaiming.gc_on_cluster(place, older="1d", dry_run=False, output="json") == 4
    said = capsys.readouterr()
    assert [row["name"] for row in json.loads(said.out)] == ["a"]
    assert said.err.startswith(
        "warning: checkpoints not swept to the end: s3://team/graceful/runs/: no credentials; set"
    )
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("storage", [{}, {"claim": "runs"}])
def test_gc_leaves_buckets_alone_that_the_profile_does_not_name(
    storage: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gc, "find", lambda kube, *, now, min_age, stopped_age: ())
    monkeypatch.setattr(locations.RunLocation, "kube", Server())
    monkeypatch.setattr(bucket, "sweep", None)
    path = tmp_path / "place.yaml"
    path.write_text(yaml.safe_dump({**CLUSTER, "storage": storage}))
    assert reclaiming.gc_on_cluster(locations.RunLocation(on=str(path)), older="1d", dry_run=False, output="json") == 0
    assert capsys.readouterr() == ("[]\n", "")


def test_a_sweep_that_breaks_off_still_says_what_went(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"uri": "s3://b/runs/a/ray", "why": "its run has a result", "objects": 2, "bytes": 3 * 2**20}]

    class Done:
        returncode, stdout, stderr = 4, json.dumps(rows) + "\n", "talk\ns3://b/runs/: not reachable; check\n"

    monkeypatch.setattr(bucket, "_run", lambda *arguments: Done())
    swept = bucket.sweep("s3://b", older=timedelta(days=1), dry_run=False)
    assert swept.problem == "s3://b/runs/: not reachable; check"
    assert swept.removals[0].why == "its run has a result, 2 objects, 3.0 MiB"
