"""Train a job: find out what is done, start what is not, follow it, record how it ended. Runs in the driver."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from graceful.errors import SpecError
from graceful.spec import Train
from graceful.storage import guarded
from graceful.training import checkpoint, trace
from graceful.training.beside import Beside
from graceful.training.engine import require_precision
from graceful.training.job import NOT_MIRRORED, TrainingJob, TrainingResult, claim, finished, record, require_own
from graceful.training.methods import run
from graceful.training.rank_context import RankContext

__all__ = ["TrainingJob", "TrainingResult", "train"]

Progress = Callable[[Mapping[str, object]], None]
Run = Callable[[str, Progress | None], dict[str, Any]]
"""Digest of the job and whom to tell -> what rank 0's loop returned."""


def train(job: TrainingJob, *, progress: Progress | None = None) -> TrainingResult:
    """Train a job to its end. An interrupted one resumes, a finished one returns what was recorded.

    Without workers (`train.num_workers: 0`) everything happens in this process and Ray is not imported.

    Args:
        job: What to train.
        progress: Called with each row of the trace, in this thread.

    Raises:
        SpecError: The folder belongs to another job, or the spec does not fit the data or the machine.
        DataError, IntegrityError: Data, predecessors, caches or a checkpoint are missing or damaged.
        TrainingError: Training failed, collapsed or ran out of time; checkpoints stay.
        KeyboardInterrupt: Passed on after the workers are gone; checkpoints stay.
    """
    job.mirror.restore(job.run_dir, exclude=NOT_MIRRORED)
    require_own(job)
    finished_result = finished(job)
    if finished_result is not None:
        return finished_result
    started = time.monotonic()
    run_it = _inline(job) if job.spec.train.num_workers == 0 else _on_ray(job)
    digest = claim(job)
    if job.spec.train.num_workers:  # the copy is rank 0's, which may be elsewhere and further
        job.mirror.restore_file(job.run_dir / trace.FILE)
    job.mirror.save(job.run_dir, exclude=NOT_MIRRORED)
    outcome = run_it(digest, progress)
    result = record(job, outcome, seconds=time.monotonic() - started)
    job.mirror.save(job.run_dir, exclude=NOT_MIRRORED)
    return result


def require_device(train: Train) -> bool:
    """Return whether training in this process computes on a GPU.

    Raises:
        SpecError: The spec wants a GPU and there is none.
    """
    available = torch.cuda.is_available()
    if train.use_gpu and not available:
        raise SpecError("train.use_gpu: true needs a GPU, and torch sees none here; leave it out, or write false")
    gpu = available if train.use_gpu is None else train.use_gpu
    require_precision(train, gpu=gpu)
    return gpu


def _inline(job: TrainingJob) -> Run:
    """Return the run in this process, once it is known that this process can."""
    gpu = require_device(job.spec.train)
    return lambda digest, progress: _run_inline(job, digest=digest, gpu=gpu, progress=progress)


def _on_ray(job: TrainingJob) -> Run:
    """Return the run on Ray, once Ray is there and has room."""
    from graceful.training import ray_fit

    ready = ray_fit.ready(job)
    return lambda digest, progress: ray_fit.fit(job, ready, digest=digest, progress=progress)


def _run_inline(job: TrainingJob, *, digest: str, gpu: bool, progress: Progress | None) -> dict[str, Any]:
    root = job.run_dir / "checkpoints"
    if not root.exists():
        job.mirror.restore(root)
    with guarded(root, "write"):
        root.mkdir(parents=True, exist_ok=True)
        for broken_part in root.glob(".part-*"):
            shutil.rmtree(broken_part)
    if job.spec.train.engine.kind in ("deepspeed", "fsdp2"):
        _group_of_one()

    @contextmanager
    def restore() -> Iterator[Path | None]:
        yield checkpoint.latest(root)

    def publish(part: checkpoint.Part) -> None:
        part.seal()
        folders_before = set(root.glob("step-*"))
        checkpoint.publish(part.folder, root=root, step=part.step)
        folders = set(root.glob("step-*"))
        for removed in folders_before - folders:
            job.mirror.delete_folder(removed)
        job.mirror.save(job.run_dir, only=(trace.FILE,))
        for folder in sorted(folders):
            job.mirror.save(folder)

    uploads = Beside()
    context = RankContext(
        device=torch.device("cuda", 0) if gpu else torch.device("cpu"),
        scratch=root,
        restore=restore,
        publish=lambda part: uploads.begin(partial(publish, part)),
        report=progress,
        deadline=time.monotonic() + job.spec.train.timeout,
    )
    with uploads:
        return run(job, context, digest=digest)


def _group_of_one() -> None:
    """Open the process group that DeepSpeed needs even alone; it lives as long as this process."""
    if not distributed.is_initialized():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
