"""Train the supernet of a search against the frozen gallery model, with the losses of the spec. Runs in the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from safetensors.torch import load_file

from graceful.architectures.held_out import SupernetTask
from graceful.chain.ancestor import Ancestor
from graceful.programs.fitting.train import prepared
from graceful.programs.runs.run import Progress, Run
from graceful.spec import Equal, RefreshSpec, TorchEngine
from graceful.spec.architectures import require_searchable
from graceful.spec.training import LIMITS
from graceful.storage import sha256_json
from graceful.training.driver import train as run_training

FOLDER = "supernet"
PRUNED_BY = {"pruning", "epochs", "images", "recalibration"}
"""Keys of the section that pruning reads."""


def spec_of(spec: RefreshSpec) -> RefreshSpec:
    """Return the spec by which the supernet is trained: in this process, from random weights, by the same losses."""
    section = require_searchable(spec)
    return alone(spec, start="random", epochs=section.epochs or 2 * spec.train.epochs)


def alone(spec: RefreshSpec, **changes: Any) -> RefreshSpec:
    """Return a spec for training in this process, by the same losses and nothing beside them; `changes` of `train`."""
    train = spec.train.model_copy(update={"num_workers": 0, "engine": TorchEngine(), **changes})
    plain = {"interpolation": 0.0, "reference": None, "weighting": Equal()}
    return spec.model_copy(update={"train": train, "compatibility": spec.compatibility.model_copy(update=plain)})


def digest(spec: RefreshSpec) -> str:
    """Return the SHA-256 of what determines the supernet and how its paths are measured."""
    section = require_searchable(spec)
    document = spec_of(spec).model_dump(
        mode="json", include={"task": True, "train": True, "compatibility": True, "gallery": True}
    )
    document["train"] = {key: value for key, value in document["train"].items() if key not in LIMITS}
    if section.pruning is not None:
        return sha256_json({**document, "architectures": section.model_dump(mode="json", include=PRUNED_BY)})
    parts = {"space", "held_out", "images", "recalibration"}
    return sha256_json({**document, "architectures": section.model_dump(mode="json", include=parts)})


def train_supernet(
    run: Run, task: SupernetTask, *, ancestors: Sequence[Ancestor], progress: Progress
) -> dict[str, NDArray[Any]]:
    """Return the weights of the trained supernet; an interrupted training resumes, a finished one is read.

    Raises:
        SpecError, DataError: The spec does not fit the data or the gallery model.
        TrainingError: It failed.
    """
    own = replace(run, spec=spec_of(run.spec), folder=run.folder / FOLDER)
    job, _, _ = prepared(own, task, task.samples("train"), ancestors=ancestors, progress=progress)
    result = run_training(replace(job, task=task), progress=progress)
    return {name: tensor.numpy() for name, tensor in load_file(result.weights).items()}
