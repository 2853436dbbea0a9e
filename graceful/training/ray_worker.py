"""What each Ray worker does: bring its inputs here, run the loop, hand checkpoints to Ray and errors to the driver.

Ray restarts a worker group that lost a process; an error that would only come again is handed over as a file instead.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from graceful import redact, startup
from graceful.environment import RAY_WATCHER_VARIABLE
from graceful.errors import GracefulError, StorageError
from graceful.storage import write_json, write_text
from graceful.training import checkpoint, trace
from graceful.training.job import FAILURE, LOG, PROFILE, WEIGHTS, TrainingJob, first_line
from graceful.training.rank_context import RankContext

_DETERMINISTIC = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NameError,
    ImportError,
    AssertionError,
    ArithmeticError,
)
"""Errors of a program, which the next attempt would make again; a lost peer, device or disk shows as something else."""


def worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train as one Ray worker."""
    startup.return_to_working_directory()
    import ray.train.torch

    from graceful.training.methods import run

    job: TrainingJob = config["job"]
    failure = job.run_dir / FAILURE
    if job.mirror.restore_file(failure) or failure.exists():
        return {}
    ray_context = ray.train.get_context()
    context = RankContext(
        rank=ray_context.get_world_rank(),
        world_size=ray_context.get_world_size(),
        device=ray.train.torch.get_device(),
        restore=_restore,
        publish=Uploads(job).publish,
        preempted=_preempted if _announces() else None,
    )
    try:
        with _mirrored(job, rank=context.rank):
            return run(job, context, digest=config["digest"])
    except Exception as e:
        facts = e.facts if isinstance(e, GracefulError) else {}
        again = _would_come_again(e)
        if again and not facts.get("bystander"):
            _write_down(e, failure)
            job.mirror.save(job.run_dir, only=(LOG, FAILURE))
        if facts.get("unanimous") and (again or facts.get("bystander")):
            return {}
        raise


@contextmanager
def _restore() -> Iterator[Path | None]:
    import ray.train

    newest = ray.train.get_checkpoint()
    if newest is None:
        yield None
        return
    with newest.as_directory() as folder:
        yield Path(folder)


@contextmanager
def _mirrored(job: TrainingJob, *, rank: int) -> Iterator[None]:
    """Bring here what another machine has made; on rank 0, carry the trace and at the end the weights back."""
    for folder in job.inputs:
        job.mirror.unseal(folder)
    if rank != 0 or job.mirror.uri is None:
        yield
        return
    job.mirror.restore_file(job.run_dir / trace.FILE)
    courier = trace.Courier(job.run_dir / trace.FILE, mirror=job.mirror)
    courier.start()
    try:
        yield
    finally:
        courier.stop()
    job.mirror.save(job.run_dir, only=(trace.FILE, WEIGHTS, *([PROFILE] if (job.run_dir / PROFILE).exists() else [])))


def _announces() -> bool:
    """Return whether Ray looks for machines that are about to be taken away; one that ends with this run does not."""
    return os.environ.get(RAY_WATCHER_VARIABLE, "1") == "1"


def _preempted() -> bool:
    """Return what this worker has heard. `ray.train.get_preemption_info` would ask all workers through an actor, which
    takes longer than many a step; the loop has its own way to agree."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


class Uploads:
    """Brings parts of checkpoints to where Ray keeps them, one at a time, while training goes on.

    What goes wrong there Ray raises in the worker's place, as if training had raised it. At the end of training it
    waits for the last one.

    Args:
        job: What is trained.
    """

    def __init__(self, job: TrainingJob) -> None:
        self._job = job
        self._idle = threading.Event()
        self._idle.set()

    def publish(self, part: checkpoint.Part) -> None:
        """Take a part over; waits for the one before, so that a slow store is not given more than it can take."""
        import ray.train

        self._idle.wait()
        self._idle.clear()
        ray.train.report(
            dict(part.metrics),
            checkpoint=ray.train.Checkpoint.from_directory(part.folder),
            checkpoint_dir_name=checkpoint.name_of(part.step),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=partial(self._upload, part),
        )

    def _upload(self, part: checkpoint.Part, local: Any, name: str) -> Any:
        """Return where a part lies now; called by Ray in a thread of its own, and again where it tries again."""
        import ray.train

        try:
            part.seal()
            if part.rank == 0:
                self._job.mirror.save(self._job.run_dir, only=(trace.FILE,))
            return ray.train.get_context().get_storage().persist_current_checkpoint(local, name)
        finally:
            self._idle.set()


def _would_come_again(error: Exception) -> bool:
    if isinstance(error, GracefulError):
        return not isinstance(error, StorageError)
    return isinstance(error, _DETERMINISTIC)


def _write_down(error: Exception, path: Path) -> None:
    if isinstance(error, GracefulError):
        facts = {name: value for name, value in error.facts.items() if name != "unanimous"}
        write_json(path, {"class": type(error).__name__, "message": error.message, "facts": facts})
        return
    log = write_text(path.parent / LOG, redact.record("".join(traceback.format_exception(error))))
    message = redact.message(f"training failed, {first_line(error)}; see {log}, correct it and run it again")
    write_json(path, {"class": "TrainingError", "message": message, "facts": {}})
