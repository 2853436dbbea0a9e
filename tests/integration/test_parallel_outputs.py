"""Caches of predecessors' outputs built by Ray workers: the same bytes, whichever worker is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from graceful import spec, targets, tasks
from graceful.models import bundle
from tests.support import training_task
from tests.support.outputs_main import GAVE_UP

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def document(name: str, **options: Any) -> dict[str, Any]:
    return {
        "model": "blobs",
        "name": name,
        "task": {"kind": "python", "file": training_task.__file__, "options": options},
        "train": {"num_workers": 2, "batch_size": 24},
        "compatibility": {"targets": {"views": 2}, "losses": [{"kind": "focal_distillation"}]},
        "evaluate": {"batch_size": 8},
    }


def build(folder: Path, home: Path, *, die_at: int | None = None) -> tuple[int, list[dict[str, Any]], str]:
    wanted = {"spec": document("v2"), "folder": str(folder), "home": str(home), "die_at": die_at}
    command = [sys.executable, "-m", "tests.support.outputs_main", json.dumps(wanted)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_workers_build_the_same_cache_though_one_is_lost_and_the_driver_gives_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lossy = document("v1", die_at=3, marker=str(tmp_path / "died"))
    folder, home = tmp_path / "v1", tmp_path / "home"
    classes = ("blob-0", "blob-1", "blob-2")
    bundle.save(folder, network=training_task.BlobNet(3), spec=spec.parse(lossy), classes=classes)

    status, told, _ = build(folder, home, die_at=300)
    assert status == GAVE_UP
    assert (tmp_path / "died").exists(), "a worker was lost and its blocks were run again"
    assert [row["step"] for row in told] == list(range(8, 305, 8))
    assert {row["steps"] for row in told} == {480}
    assert all(row["samples_per_second"] > 0 and row["eta"] >= 0 for row in told[1:])

    status, told, stderr = build(folder, home)
    assert status == 0, stderr
    assert [row["step"] for row in told] == list(range(264, 481, 8)), "32 blocks were counted when the driver gave up"
    (found,) = (path.parent for path in home.glob("targets/*/meta.json"))

    resolved = spec.parse(document("v2"))
    samples = tasks.build(resolved.task).samples("train")
    views = targets.key_views(samples.ids, seed=resolved.train.seed, count=2)
    version = bundle.load(folder, augment_like=resolved.task)
    alone = targets.build(version, samples, views=views, root=tmp_path / "alone", batch_size=8)
    assert alone.key == found.name
    assert content(alone.folder) == content(found)
