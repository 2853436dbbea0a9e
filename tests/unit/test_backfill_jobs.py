"""The job of a backfill: its name, the spec and the code that travel with it, and where each backend finds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graceful.cli import backfill_jobs
from graceful.errors import SpecError
from graceful.launch import profile
from graceful.spec import load
from tests.support import launch

ROOT = Path(__file__).parents[2]
RAY = {"kind": "rayjobs", "address": "http://127.0.0.1:8265", "home": "/runs"}


def document(folder: Path, **changes: Any) -> dict[str, Any]:
    """What the command line says of a backfill by a version whose task is a file of the user."""
    task = folder / "task.py"
    if not task.exists():
        task.write_text((ROOT / "jobs/wine/task.py").read_text(encoding="utf-8"), encoding="utf-8")
    spec = load(ROOT / "jobs/wine/v1.yaml", [f"task.file={json.dumps(str(task))}"]).dump()
    source = {"version": "wine:v2", "spec": spec, "split": "gallery"}
    settings = {"order": "random", "seed": 0, "rate": None, "batch": 1024, "stop_at": 1.0, "shard": (0, 1)}
    made = {"action": "run", "index": "s3://b/i", **settings, "traffic": None, "source": source, "reason": "better"}
    return {**made, **changes}


@pytest.mark.parametrize("kind", ["kuberay", "rayjobs"])
def test_the_spec_of_a_version_and_its_code_travel(kind: str, tmp_path: Path) -> None:
    target = launch.cluster() if kind == "kuberay" else profile.parse(RAY)
    job = backfill_jobs.job_of(document(tmp_path), target)
    sent = json.loads(job.document or "")
    assert job.command == ("python", "-m", "graceful.programs", "backfill")
    assert (job.workers, sent["run_id"], job.run_id[:9]) == (0, job.run_id, "backfill-")
    assert sent["source"]["spec"]["task"]["file"] == f"{target.files_folder}/task.py"
    assert sent["source"]["spec"]["home"] is None
    assert job.files == {"task.py": (tmp_path / "task.py").read_text(encoding="utf-8")}


def test_a_job_is_another_one_where_something_else_is_asked(tmp_path: Path) -> None:
    def run_id(**changes: Any) -> str:
        return backfill_jobs.job_of(document(tmp_path, **changes), launch.cluster()).run_id

    first = run_id()
    assert run_id(reason="said again", author="another") == first
    others = {run_id(index="s3://b/j"), run_id(stop_at=0.5), run_id(shard=(1, 2)), run_id(rate=10.0)}
    (tmp_path / "task.py").write_text("# changed\n", encoding="utf-8")
    others.add(run_id())
    assert len(others - {first}) == 5
    named = backfill_jobs.job_of(document(tmp_path), launch.cluster(), name="again")
    assert named.run_id == "backfill-again"


def test_paths_of_this_machine_are_absolute_for_jobs_here_and_refused_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = document(tmp_path, index="gallery", source={"vectors": "v.npz", "space": "e5", "metric": "cosine"})
    job = backfill_jobs.job_of(asked, profile.parse({"kind": "local"}))
    sent = json.loads(job.document or "")
    assert (sent["index"], sent["source"]["vectors"]) == (str(tmp_path / "gallery"), str(tmp_path / "v.npz"))
    assert job.command[-1] == "backfill"
    with pytest.raises(SpecError, match="INDEX gallery: is on this machine, and jobs of kind kuberay see an index in"):
        backfill_jobs.job_of(document(tmp_path, index="gallery"), launch.cluster())


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"source": {}}, None, "give the new model: either --version"),
        ({"order": "traffic"}, None, "--order traffic: needs how often each id was found"),
        ({}, "Not/a name", "--name 'Not/a name': must be lower case letters"),
    ],
)
def test_what_would_be_refused_at_the_start_is_not_sent(
    changes: dict[str, Any], name: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        backfill_jobs.job_of(document(tmp_path, **changes), launch.cluster(), name=name)
    assert message in caught.value.message
