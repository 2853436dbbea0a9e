"""Training that loses a process: the rest of the run must be that of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from graceful.training import trace

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
TASK = ROOT / "tests" / "support" / "training_task.py"


def spec(*, options: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    recipe = {"epochs": 4, "batch_size": 24, "checkpoint_every": 7, "optimizer": {"kind": "adamw", "lr": 0.01}}
    return {
        "model": "blobs",
        "name": "v1",
        "task": {"kind": "python", "file": str(TASK), "options": options or {}},
        "train": {**recipe, **train},
    }


def run(*jobs: dict[str, Any]) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "tests.support.training_main", json.dumps(jobs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    rows = [row for row in trace.read(run_dir / trace.FILE) if row["event"] == "step"]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def weights(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "engine", [{"kind": "torch"}, {"kind": "deepspeed", "zero_stage": 2}], ids=["torch", "deepspeed"]
)
def test_a_killed_process_resumes_as_if_nothing_had_happened(tmp_path: Path, engine: dict[str, Any]) -> None:
    document = spec(num_workers=0, engine=engine)
    killed, undisturbed = (
        {"spec": document, "run_dir": str(tmp_path / "a")},
        {"spec": document, "run_dir": str(tmp_path / "b")},
    )

    status, answers, _ = run({**killed, "die_at_step": 18})
    assert (status, answers) == (-signal.SIGKILL, [])
    assert 14 <= len(losses(tmp_path / "a")) <= 18  # rows since the checkpoint are written ten times a second

    status, answers, stderr = run(killed, undisturbed)
    assert status == 0, stderr
    assert [answer["resumed_from"] for answer in answers] == [14, None]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_what_a_worker_raises_on_purpose_reaches_the_driver_without_another_try(tmp_path: Path) -> None:
    """First more workers than there is room for, which claims no folder, so that the corrected spec may have it."""
    corrected = {"spec": spec(options={"poison": 3}), "run_dir": str(tmp_path)}
    status, [refused, *answers], stderr = run({**corrected, "spec": spec(num_workers=480, batch_size=480)}, corrected)
    assert status == 0, stderr
    assert refused["error"] == "SpecError"
    assert refused["message"].startswith("train.num_workers: 480 workers need 480 CPUs, this machine has ")
    assert answers[0]["error"] == "NonFiniteError"
    assert re.match(r"step 3, epoch 1: loss task is nan: sample 'train/\d+' of train holds NaN", answers[0]["message"])
    assert len([row for row in trace.read(tmp_path / trace.FILE) if row["event"] == "start"]) == 1


def test_an_interrupt_while_ray_starts_is_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    from graceful.spec import parse

    document = parse({**spec(epochs=200, engine={"kind": "torch"}), "home": str(tmp_path)}).dump()
    mark = f"GRACEFUL_TEST_MARK={tmp_path}"
    command = [sys.executable, "-m", "graceful.programs", "train"]
    with (tmp_path / "stderr").open("w") as stderr:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr, text=True, process_group=0,
            env={**os.environ, "GRACEFUL_TEST_MARK": str(tmp_path)},
        )  # fmt: skip
    assert child.stdin is not None
    with child.stdin as stream:
        stream.write(json.dumps(document))
    while child.poll() is None and not any("raylet" in line for line in marked(mark)):
        time.sleep(0.02)  # polling for a process that another one starts
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=600) == 130
    deadline = time.monotonic() + 30.0
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(mark) == []
    assert (tmp_path / "stderr").read_text().splitlines()[-1:] == [
        "graceful: interrupted; run the same command again to resume"
    ]


def marked(mark: str) -> list[str]:
    """Command lines of the processes that have a variable in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def random_ancestors(folder: Path) -> list[str]:
    """v1 and v0, untrained: bundles with different weights."""
    import torch

    from graceful.models import bundle
    from graceful.spec import parse
    from tests.support.training_task import BlobNet

    classes = ("blob-0", "blob-1", "blob-2")
    for seed in (0, 1):
        torch.manual_seed(seed)
        version = parse({**spec(), "name": f"v{seed}"})
        bundle.save(folder / f"v{seed}", network=BlobNet(3), spec=version, classes=classes)
    return [str(folder / "v1"), str(folder / "v0")]


def test_a_lost_worker_is_replaced_and_all_ranks_go_on_with_the_same_multipliers(tmp_path: Path) -> None:
    ancestors = random_ancestors(tmp_path)
    compatibility = {
        "against": "all",
        "losses": [{"kind": "focal_distillation", "weight": 3.0}],
        "targets": {"views": 2},
        "weighting": {
            "kind": "adaptive",
            "reference_error": 0.2,
            "bounds": {"v1": 0.18, "v0": 0.15},
            "start": 1.0,
            "step": 0.3,
            "error_margin": 0.03,
        },
    }
    faults = {"die_in_rank": 1, "die_at": 27, "marker": str(tmp_path / "died"), "die_after": str(tmp_path / "a")}
    disturbed, undisturbed = (
        {
            "spec": {
                **spec(options=options, checkpoint_every=None, engine={"kind": "deepspeed", "zero_stage": 2}),
                "name": "v2",
                "compatibility": compatibility,
            },
            "run_dir": str(tmp_path / name),
            "ancestors": ancestors,
        }
        for name, options in (("a", faults), ("b", None))
    )

    status, answers, stderr = run(disturbed, undisturbed)
    assert status == 0, stderr
    assert (tmp_path / "died").exists()
    assert answers[0]["resumed_from"] in (10, 20), "one checkpoint at least was known when the rank died"
    assert answers[1]["resumed_from"] is None
    starts = [row for row in trace.read(tmp_path / "a" / trace.FILE) if row["event"] == "start"]
    assert [row["step"] for row in starts] == [0, answers[0]["resumed_from"]]
    assert len({pid for row in starts for pid in row["pids"]}) == 4
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    moved, quiet = (
        [row for row in trace.read(tmp_path / name / trace.FILE) if row["event"] == "epoch"] for name in ("a", "b")
    )
    keys = ("multipliers", "next_multipliers", "nfr", "constraint_error")
    assert [[row[key] for key in keys] for row in moved] == [[row[key] for key in keys] for row in quiet]
    pulls = [tuple(row["multipliers"].values()) for row in quiet]
    assert pulls[0] == (1.0, 0.0)
    assert len(set(pulls)) == len(pulls) == 4, "an active budget moves its multiplier in every epoch"
    assert weights(tmp_path / "a") == weights(tmp_path / "b")

    for name in ("a", "b"):
        folders = sorted((tmp_path / name / "ray").rglob("step-*"))
        assert len(folders) == 4
        for folder in folders:
            manifests = [json.loads((folder / f"manifest-0000{rank}.json").read_text()) for rank in (0, 1)]
            assert [one["world_size"] for one in manifests] == [2, 2]
            assert manifests[0]["state"] == manifests[1]["state"]
            state = json.loads((folder / "state.json").read_text())
            assert list(state["duals"]["multipliers"].values()) in [
                [*row["next_multipliers"].values()] for row in quiet
            ]


def test_a_blend_trains_on_two_workers(tmp_path: Path) -> None:
    """DeepSpeed trains the reference run and the version that learns from it; each rank has a teacher of its own."""
    recipe = spec(checkpoint_every=None, engine={"kind": "deepspeed", "zero_stage": 2}, epochs=2)
    section = {"blend": {"runs": 1, "share": {"v1": 0.2, "v0": 0.1}}, "against": "all", "targets": {"views": 1}}
    job = {
        "spec": {**recipe, "name": "v2", "compatibility": section},
        "run_dir": str(tmp_path / "run"),
        "ancestors": random_ancestors(tmp_path),
    }
    status, (answer,), stderr = run(job)
    assert status == 0, stderr
    rows = trace.read(tmp_path / "run" / trace.FILE)
    assert {row["world_size"] for row in rows if row["event"] == "start"} == {2}
    assert {tuple(row["parts"]) for row in rows if row["event"] == "step"} == {("task", "blend")}
    (reference,) = (tmp_path / "run/home/references").glob("reference-*")
    assert 2 * json.loads((reference / "training.json").read_text())["steps"] == answer["steps"]
    assert json.loads((tmp_path / "run" / "blend.json").read_text())["shares"] == {"v1": 0.2, "v0": 0.1}
