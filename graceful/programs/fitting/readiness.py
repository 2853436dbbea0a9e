"""Checks before a run claims its folder, of all that could only fail later. Runs in the driver."""

from __future__ import annotations

from pathlib import Path

from graceful.programs.fitting.rehearsal import rehearse
from graceful.programs.preparation.data_checks import require_sound
from graceful.programs.preparation.inspection import require_readable
from graceful.spec import RefreshSpec
from graceful.tasks.base import Task
from graceful.training.driver import require_device
from graceful.training.job import begun


def require_ready(spec: RefreshSpec, task: Task, *, run_dir: Path) -> None:
    """Check data, batch size, device and network; of a run that was begun the data alone.

    Args:
        spec: What is to be trained.
        task: Its task, built.
        run_dir: Folder of the run; may be missing.

    Raises:
        SpecError: The network cannot be trained, saved and loaded again, or the spec does not fit the data or machine.
        DataError: The data are unsound or cannot be read.
    """
    train = task.samples("train")
    splits = require_sound(task, train, retrieval=spec.evaluate.retrieval)
    if begun(run_dir):
        return
    if spec.train.num_workers == 0:
        require_device(spec.train)
    require_readable(task, splits, rehearse(spec, task, train))
