"""What each Ray worker does: bring its inputs here, run the loop, hand checkpoints to Ray and errors to the driver.

Ray restarts a worker group that lost a process; an error that would only come again is handed over as a file instead.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from graceful import redact, startup
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
    """What each Ray worker runs."""
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
        publish=partial(_publish, job),
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


def _publish(job: TrainingJob, part: Path, step: int, metrics: Mapping[str, float]) -> None:
    import ray.train

    if ray.train.get_context().get_world_rank() == 0:
        job.mirror.save(job.run_dir, only=(trace.FILE,))
    ray.train.report(
        dict(metrics),
        checkpoint=ray.train.Checkpoint.from_directory(part),
        checkpoint_dir_name=checkpoint.name_of(step),
    )
    shutil.rmtree(part, ignore_errors=True)


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
