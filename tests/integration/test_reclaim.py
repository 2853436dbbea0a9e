"""`graceful gc` of a home: what can be had again goes, the oldest first; what is in use or the only copy stays."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful import cli, packing
from graceful.files import mark_used
from graceful.lineage import LineageRecord, Store
from graceful.programs.housekeeping import reclaim
from graceful.storage import Mirror, objects, server
from graceful.targets.files import META
from graceful.tasks import code
from tests.support import mlflow_versions as versions
from tests.support.s3_server import serving

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]
OLD = time.time() - 30 * 86400
KEY = "ab" * 32
"""Of a cache of outputs."""


def written(path: Path, size: int, *, used: float = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(size).bytes(size))
    os.utime(path, (used, used))
    return path


def aged(path: Path, *, days: float = 30) -> Path:
    moment = time.time() - days * 86400
    for one in [path, *path.rglob("*")]:
        os.utime(one, (moment, moment))
    return path


def gc(home: Path, *arguments: str, limit: int = 0) -> dict[str, Any]:
    """What the program that `graceful gc` starts says, run in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert reclaim.main([str(home), "--limit", str(limit), *arguments]) == 0
    found: dict[str, Any] = json.loads(said.getvalue())
    return found


def names(found: dict[str, Any]) -> list[str]:
    return [f"{row['kind']} {row['name']}" for row in found["removed"]]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A home with a finished run, one that could resume, and what broke off."""
    home = tmp_path / "home"
    for run in ("done", "open"):
        for name in ("ray/done/step-1/w.pt", "checkpoints/step-1/w.pt", "model/model.safetensors", "report.json"):
            written(home / "runs" / run / name, 1000)
        written(home / "runs" / run / "lock", 0)
    written(home / "runs" / "done" / "result.json", 10)
    written(home / "runs" / "open" / ".report.json.k3x_9zq1.tmp", 100)
    written(home / "versions" / ".fetch-abcd0123" / "files" / "w", 100)
    aged(home / "versions" / ".fetch-abcd0123")
    written(home / "targets" / f"{KEY}.fetching" / "w", 0)
    aged(home / "targets" / f"{KEY}.fetching")
    written(home / "cache" / "objects" / "ab" / ".abcd.123.part", 100, used=time.time())
    return home


def tree(home: Path) -> set[str]:
    return {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}


GONE = [
    "checkpoints runs/done/ray",
    "checkpoints runs/done/checkpoints",
    "leftover runs/open/.report.json.k3x_9zq1.tmp",
    "leftover versions/.fetch-abcd0123",
    f"leftover targets/{KEY}.fetching",
]


def test_checkpoints_of_finished_runs_and_broken_writes_go_and_nothing_else(runs: Path) -> None:
    before = tree(runs)
    planned = gc(runs, "--dry-run")
    assert (sorted(names(planned)), tree(runs)) == (sorted(GONE), before)
    done = gc(runs)
    assert done["removed"] == planned["removed"]
    assert sum(row["bytes"] for row in done["removed"]) == 2200
    assert before - tree(runs) == {
        "runs/done/ray/done/step-1/w.pt",
        "runs/done/checkpoints/step-1/w.pt",
        "runs/open/.report.json.k3x_9zq1.tmp",
        "versions/.fetch-abcd0123/files/w",
        f"targets/{KEY}.fetching/w",
    }
    assert gc(runs)["removed"] == []
    assert not (runs / "mlflow.db").exists(), "asking makes no registry"


USERS = [
    "datasets/.new-labels/a.json",
    "datasets/.fetch-abcd0123/a.json",
    "datasets/web.fetching/img.jpg",
    "datasets/photos/.crop.tmp",
    "datasets/photos/.crop.abcd0123.tmp",
    "datasets/photos.deleted-12/img.jpg",
    ".notes.txt.tmp",
    "runs/mine/.notes.tmp",
    "runs/mine/result.json",
    "runs/mine/checkpoints/best.pt",
    "targets/web.fetching/img.jpg",
    "code/.new-labels/a.json",
    f"code/{KEY}/.new-abcd0123/a.json",
    f"code/{KEY}/.a.abcd0123.tmp",
    "jobs/j/input/.a.abcd0123.tmp",
    "cache/objects/mine/labels",
    "cache/objects/mine/labels.sha256",
]


def test_files_of_the_user_below_the_home_stay(runs: Path, tmp_path: Path) -> None:
    for name in USERS:
        written(runs / name, 10)
    for folder in ("datasets", "runs/mine", "targets", "code", "jobs"):
        aged(runs / folder)
    (runs / "outbox").symlink_to(aged(written(tmp_path / "mail" / ".a.abcd0123.tmp", 10).parent))
    found = gc(runs)
    assert sorted(names(found)) == sorted(GONE)
    assert set(USERS) <= tree(runs)
    assert (tmp_path / "mail" / ".a.abcd0123.tmp").exists()


@pytest.mark.parametrize(
    "name",
    [
        "code/.new-abcd0123",
        "jobs/.new-abcd0123",
        "cache/checkpoints/.new-abcd0123",
        f"references/reference-{'0' * 16}.fetching",
        f"references/reference-{'0' * 16}/model.fetching",
        f"versions/m-{'0' * 32}.fetching",
        "runs/v1/model.fetching",
        f"targets/{KEY}.deleted-12",
        f"versions/.m-{'0' * 32}.deleted-12",
        "runs/v1/.ray.deleted-12",
        "cache/shards/parts/ab/.new-abcd0123",
    ],
)
def test_each_folder_that_graceful_leaves_behind_goes(name: str, tmp_path: Path) -> None:
    written(tmp_path / name / "deep" / "file", 10)
    aged(tmp_path / name)
    assert names(gc(tmp_path)) == [f"leftover {name}"]
    assert not (tmp_path / name).exists()


def test_a_run_that_is_worked_on_keeps_its_checkpoints_and_all_copies(runs: Path) -> None:
    cached(runs, "k", b"x" * 500, used=OLD)
    with (runs / "runs" / "done" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = gc(runs)
    assert sorted(names(found)) == sorted(GONE[2:])
    assert (found["busy"], found["kept_bytes"]) == ("done", 564)
    assert names(gc(runs)) == [*GONE[:2], "objects cache/objects"]


def cached(home: Path, key: str, data: bytes, *, used: float) -> Path:
    """A copy of an object, as `read_cached` leaves it."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    path = home / "cache" / "objects" / digest[:2] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.with_name(f"{digest}.sha256").write_text(hashlib.sha256(data).hexdigest())
    for one in (path, path.with_name(f"{digest}.sha256")):
        os.utime(one, (used, used))
    return path


def test_the_command_shows_rows_and_what_stays(runs: Path) -> None:
    cached(runs, "k", b"x" * 500_000, used=OLD)
    command = [sys.executable, "-m", "graceful.cli", "gc", "--home", str(runs), "--dry-run"]
    env = {**os.environ, "GRACEFUL_CACHE_GB": "0.0001"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    assert "checkpoints runs/done/ray: its run has a result, 0.0 MB" in done.stdout.splitlines()
    assert "objects cache/objects: least recently used, 1 objects, 0.5 MB" in done.stdout.splitlines()
    last = done.stderr.splitlines()[-1]
    assert last == f"0.5 MB would be removed in {runs}; copies of 0.0 MB stay (limit 0.0001 GB)"


def test_the_newest_objects_stay_and_one_that_is_used_counts_as_new(tmp_path: Path) -> None:
    copies = [cached(tmp_path, str(number), b"x" * 1_000_000, used=OLD + number) for number in range(5)]
    done = reclaim.Reclaimed(items=[])
    reclaim.reclaim(tmp_path, done, older=0, limit=3_100_000, dry_run=False, now=time.time())
    assert [path.exists() for path in copies] == [False, False, True, True, True]
    assert done.document(tmp_path)["removed"] == [
        {"kind": "objects", "name": "cache/objects", "why": "least recently used", "count": 2, "bytes": 2_000_128}
    ]
    block = tmp_path / "cache" / "shards" / "blocks" / "ab" / f"ab{'0' * 62}" / "00000001"
    index = tmp_path / "cache" / "shards" / "sets" / KEY / "index.json"
    derived = tmp_path / "cache" / "indices" / KEY / "derived" / "structure.faiss"
    for path in (block, index, derived):
        written(path, 10, used=OLD)
    os.utime(derived.parent, (OLD, OLD))
    mark_used(copies[2].with_name(f"{copies[2].name}.sha256"))
    reclaim.reclaim(tmp_path, reclaim.Reclaimed(items=[]), older=0, limit=0, dry_run=False, now=time.time())
    assert [path for path in (*copies, block, index, derived) if path.exists()] == [copies[2]]


@pytest.fixture
def registered(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A home with copies of two versions of its registry, of which one has lost its weights there."""
    home = tmp_path / "home"
    store = versions.local_store(home)
    folders, chain = [], []
    for name in ("v1", "v2"):
        chain = [with_task(store, tmp_path / "bundles", name, chain), *chain]
        folders.append(aged(store.fetch(store.record(chain[0].model_id))))
    store.trace("glyphs", chain[0].model_id)
    lost = next((home / "artifacts").rglob(f"{folders[0].name}/**/model.safetensors"))
    lost.unlink()
    aged(home / "records")
    return home, folders


def test_a_version_goes_only_while_the_registry_has_all_of_it(registered: tuple[Path, list[Path]]) -> None:
    home, (lost, whole) = registered
    for folder in (lost, whole):
        outputs(home, folder)
    found = gc(home)
    assert (lost.exists(), whole.exists()) == (True, False)
    kinds = [row["kind"] for row in found["removed"]]
    assert kinds.count("version") == 1
    assert sorted(path.name for path in (home / "targets").glob("[!.]*") if path.is_dir()) == [f"of-{lost.name}"]
    assert kinds.count("record") == 2, "lineage.json is in the registry"
    store = versions.local_store(home)
    record = store.record(whole.name)
    assert store.fetch(record) == whole
    aged(whole)
    store.fetch(record)
    assert names(gc(home)) == [], "it was used just now"


def with_task(
    store: Store, bundles: Path, name: str, chain: list[LineageRecord], *, kind: str = "digits"
) -> LineageRecord:
    """Register a version whose description names the kind of its task."""
    item = versions.registration(store, bundles, name, chain)
    (item.bundle / "arch.json").write_text(json.dumps({"schema": 1, "task": {"kind": kind}}))
    return store.register(item)


def test_outputs_of_a_version_with_code_of_its_own_go_only_while_the_bucket_has_them(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code may not be trusted any more, and then the cache is all by which it can be measured."""
    home = tmp_path / "home"
    store = versions.local_store(home)
    record = with_task(store, tmp_path / "bundles", "v1", [], kind="python")
    store.trace("glyphs", record.model_id)
    cache = outputs(home, store.fetch(record))
    assert "outputs" not in {row["kind"] for row in gc(home, "--dry-run")["removed"]}
    monkeypatch.setenv("GRACEFUL_STORAGE", f"{bucket}/own-code")
    assert "outputs" not in {row["kind"] for row in gc(home)["removed"]}
    Mirror.of(home).seal(cache)
    aged(cache)
    assert "outputs" in {row["kind"] for row in gc(home)["removed"]}
    assert not cache.exists()


def outputs(home: Path, version: Path) -> Path:
    """A finished cache of what a version says."""
    record = next(home.glob(f"records/{version.name}-*.json"))
    digest = json.loads(record.read_text())["digest"]
    folder = home / "targets" / f"of-{version.name}"
    written(folder / META, 1).write_text(json.dumps({"identity": {"predecessor": digest}}))
    return aged(folder)


def test_a_registry_that_cannot_be_asked_costs_no_copy_and_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    for name in ("m-1", "m-2"):
        written(home / "versions" / name / "model.safetensors", 1000)
    folders = [aged(folder) for folder in (home / "versions").iterdir()]
    cached(home, "k", b"x" * 500, used=OLD)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert cli.main(["gc", "--home", str(home), "--cache-gb", "0"]) == 4
    said = capsys.readouterr()
    assert all(folder.exists() for folder in folders)
    assert said.out.startswith("objects cache/objects: least recently used, 1 objects, 0.0 MB\n")
    assert said.err.splitlines()[-1].startswith("warning: not cleaned to the end: registry http://127.0.0.1:1: ")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serving():
        server.client().create_bucket(Bucket="reclaimed")
        yield "s3://reclaimed/home"


def test_code_goes_only_while_a_bucket_has_its_bundle(bucket: str, tmp_path: Path) -> None:
    home, task = tmp_path / "home", tmp_path / "task"
    written(task / "task.py", 0).write_text("def task():\n    return None\n")
    digest = code.digest(str(task))
    for name in (digest, "0" * 64):
        shutil.copytree(task, home / "code" / name)
    aged(home / "code")
    address = packing.address(bucket, digest)
    written(home / "runs" / "a-v1" / "spec.json", 1).write_text(json.dumps({"task": {"file": address}}))
    assert names(gc(home)) == []
    objects.write_object(address, packing.pack(task))
    assert names(gc(home)) == [f"code code/{digest}"]
    assert (home / "code" / ("0" * 64)).is_dir()


def test_checkpoints_go_and_bases_of_adapters_only_while_the_bucket_has_them(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("GRACEFUL_STORAGE", bucket)
    model = written(home / "cache" / "checkpoints" / ("0" * 32) / "model.safetensors", 10).parent
    only, twin = (written(home / "cache" / "bases" / (digit * 64) / "model.safetensors", 10).parent for digit in "12")
    Mirror.of(home).seal(twin)
    aged(home / "cache")
    assert names(gc(home)) == [f"model cache/checkpoints/{model.name}", f"base cache/bases/{twin.name}"]
    assert only.is_dir()
