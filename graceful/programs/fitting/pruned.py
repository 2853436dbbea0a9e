"""Make a version of the weights that pruning left for a capacity: nothing is trained. Runs in the driver."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from graceful.chain.ancestor import Ancestor
from graceful.errors import IntegrityError, SpecError
from graceful.programs.fitting.finishing import Trained, finish
from graceful.programs.outputs.galleries import require_gallery
from graceful.programs.preparation.data_checks import require_sound
from graceful.programs.runs.run import Run
from graceful.spec.methods import Pruned
from graceful.storage import write_bytes
from graceful.tasks.base import Task, notes_of
from graceful.training.job import WEIGHTS, TrainingJob, claim, finished, record


def pruned(run: Run, task: Task, ancestors: Sequence[Ancestor]) -> Trained:
    """Write the version that a spec with `train.method: pruned` describes.

    Args:
        run: Whose spec and folder.
        task: Built.
        ancestors: The chain, and the gallery model if there is one.

    Raises:
        SpecError: The file cannot be read, or its weights are those of another network.
        IntegrityError: The file is not the one that the spec names.
        DataError: The data are unsound.
    """
    spec, method, samples = run.spec, run.spec.train.method, task.samples("train")
    assert isinstance(method, Pruned)
    require_sound(task, samples, retrieval=spec.evaluate.retrieval)
    require_gallery(spec, ancestors, task=task)
    job = TrainingJob(spec=spec, run_dir=run.folder, data=samples.digest, mirror=run.mirror)
    result = finished(job)
    if result is None:
        begun, content = time.monotonic(), _read(method)
        claim(job)
        write_bytes(run.folder / WEIGHTS, content)
        outcome = {"steps": 0, "validation_error": None, "weights_sha256": method.sha256, "resumed_from": None}
        result = record(job, {**outcome, "silent": []}, seconds=time.monotonic() - begun)
    digest, notes = finish(spec, task, weights=result.weights, folder=run.model)
    told = f"weights of {Path(method.file).name}, which pruning left: nothing was trained"
    return Trained(
        folder=run.model,
        digest=digest,
        result=result,
        data=samples.digest,
        notes=(*notes_of(task), told, *result.notes, *notes),
    )


def _read(method: Pruned) -> bytes:
    try:
        content = Path(method.file).expanduser().read_bytes()
    except OSError as e:
        raise SpecError(
            f"train.method.file: {method.file} cannot be read ({e.strerror}); run `graceful search-architecture`"
            " with the spec that was pruned again, or leave train.method out to train this network from scratch"
        ) from e
    found = hashlib.sha256(content).hexdigest()
    if found != method.sha256:
        raise IntegrityError(
            f"train.method.file: {method.file} has SHA-256 {found[:12]}..., the spec says"
            f" {method.sha256[:12]}...; take the spec that lies beside the file"
        )
    return content
