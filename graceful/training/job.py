"""One training run as values and files: what is to be trained, whose folder it is, how it ended. Driver and workers.

spec.json         what the folder's run is: spec, seed, data, predecessors, references; written first, never changed
metrics.jsonl     the trace; see trace.py
model.safetensors weights of the finished run
training.json     the result, written last
profile.json.gz   where the time of a few steps went, if asked for
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save as serialise
from torch import Tensor

from graceful.chain.ancestor import Ancestor
from graceful.chain.contract import Contract
from graceful.errors import DataError, IntegrityError, SpecError
from graceful.models.stored import StoredVersion
from graceful.spec import Compatibility, RefreshSpec
from graceful.spec.compatibility import ROOM
from graceful.spec.training import LIMITS
from graceful.storage import Mirror, read_bytes, sha256_file, sha256_json, write_bytes, write_json
from graceful.tasks.base import Task
from graceful.training import trace

SPEC, RESULT, WEIGHTS, PROFILE = "spec.json", "training.json", "model.safetensors", "profile.json.gz"
FAILURE, LOG = "error.json", "error.log"
"""Why a worker gave up, for the driver and for people."""
NOT_MIRRORED = ("lock", "ray", "checkpoints")
"""Parts of a run's folder that are copied by others or not at all: Ray writes its checkpoints to the mirror itself."""
Together = Literal["projected", "added"]
"""How gradients of several capacities are added: with conflicts projected out, or as they are."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to train, and where.

    Attributes:
        spec: The refresh; its task, train and compatibility sections are read.
        run_dir: Folder of the run; the same folder resumes. With workers on other machines: shared with them.
        predecessors: The ancestors that the losses see, in order.
        references: Folders of the reference runs' outputs.
        start: The version at whose weights training starts; None: at random.
        seed: Of initial weights, order, augmentation; None: `spec.train.seed`.
        constrained: False trains freely, whatever the spec's compatibility section says.
        contract: Budgets, where the spec's weighting is adaptive.
        shares: The shares of the predecessors in the blend's teacher, by name, where the spec has a blend.
        task: The spec's task, if it is built already; used only without Ray.
        data: Digest of the training samples as the driver saw them; workers must see the same. None: not compared.
        base: Digest of the checkpoint's weights that adapters are trained beside, as the driver saw them; workers must
            find the same. None: there are no adapters.
        profile: Write a trace of torch's profiler into the run's folder.
        mirror: Where the folders have copies that outlive this machine, and from which workers on others take them.
        home: Folder of what many runs share, for what may be computed once; None: it is computed each time.
        together: The network is a `NestedNet`, all capacities of which are trained in each step; how the gradients of
            capacities are added. None: it is one network.
    """

    spec: RefreshSpec
    run_dir: Path
    predecessors: tuple[Ancestor, ...] = ()
    references: tuple[Path, ...] = ()
    start: StoredVersion | None = None
    seed: int | None = None
    constrained: bool = True
    contract: Contract | None = None
    shares: Mapping[str, float] | None = None
    task: Task | None = None
    data: str | None = None
    base: str | None = None
    profile: bool = False
    mirror: Mirror = Mirror.NONE
    home: Path | None = None
    together: Together | None = None

    @property
    def effective_seed(self) -> int:
        """Return the seed that applies."""
        return self.spec.train.seed if self.seed is None else self.seed

    @property
    def compatibility(self) -> Compatibility:
        """Return the section that applies; without predecessors there is nothing to blend with."""
        if not self.constrained:
            return Compatibility()
        section = self.spec.compatibility
        return section if self.predecessors else section.model_copy(update={"blend": None})

    @property
    def epochs(self) -> int:
        """Return the number of passes over the training data; a version that learns from a blend has more."""
        blend = self.compatibility.blend
        return self.spec.train.epochs if blend is None else round(self.spec.train.epochs * blend.length)

    @property
    def task_weight(self) -> float:
        """Return the factor of the task's own loss: 0 for a query model that learns from its gallery model alone."""
        gallery = self.spec.gallery if self.constrained else None
        return 1.0 if gallery is None or gallery.labels else 0.0

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Return the folders that workers read; all of them are sealed."""
        chain = self.predecessors
        bundles, caches = [ancestor.stored.folder for ancestor in chain], [ancestor.cache for ancestor in chain]
        galleries = [ancestor.gallery_cache for ancestor in chain]
        folders = (*bundles, *caches, *galleries, *self.references, self.start.folder if self.start else None)
        return tuple(dict.fromkeys(path for path in folders if path is not None))

    def portable(self) -> TrainingJob:
        """Return what is sent to another process: absolute paths and no built task, because it opens versions
        itself."""
        return replace(
            self,
            task=None,
            run_dir=self.run_dir.resolve(),
            predecessors=tuple(ancestor.portable() for ancestor in self.predecessors),
            references=tuple(path.resolve() for path in self.references),
            home=None if self.home is None else self.home.resolve(),
        )

    def identity(self) -> dict[str, Any]:
        """Return what determines the result, as JSON; equal identities may share a folder."""
        from graceful.models import bundle
        from graceful.tasks import transform_digest

        document = self.spec.model_dump(
            mode="json",
            include={"model": True, "name": True, "task": True, "train": True, "compatibility": True},
            exclude={"train": LIMITS},
        )
        document["data"] = self.data
        document["transform"] = transform_digest(self.spec.task)
        document["train"]["seed"] = self.effective_seed
        document["compatibility"] = self.compatibility.model_dump(mode="json", exclude=ROOM)
        document["predecessors"] = [bundle.recorded_digest(ancestor.stored.folder) for ancestor in self.predecessors]
        document["references"] = [folder.name for folder in self.references]
        if self.task_weight != 1.0:
            document["task_weight"] = self.task_weight
        if self.start is not None:
            document["start"] = bundle.recorded_digest(self.start.folder)
        if self.base is not None:
            document["base"] = self.base
        if self.contract is not None:
            document["contract"] = self.contract.identity()
        if self.together is not None:
            document["together"] = self.together
        if self.shares is not None:
            document["shares"] = dict(self.shares)
        document["near_chance"] = sorted(ancestor.name for ancestor in self.predecessors if ancestor.near_chance)
        return document


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How training ended.

    Attributes:
        weights: safetensors file with the network's state, fp32.
        history: The trace's row of every epoch.
        steps: Optimiser steps of the whole run.
        seconds: Wall clock of the call that finished it.
        validation_error: Error on the validation split of these weights.
        resumed_from: Step at which that call took the run up; None: it began it.
        chosen_epoch: The epoch whose weights these are, counted from 1; None: the last one.
        silent: `<loss>/<version>` of the constraints that never weighed a sample.
        linearised: How a linearised version answers, as `bundle_files.LinearisedDescription`; None: it is not one.
        notes: What a reader of the report must know of the training.
    """

    weights: Path
    history: tuple[dict[str, Any], ...]
    steps: int
    seconds: float
    validation_error: float
    resumed_from: int | None = None
    chosen_epoch: int | None = None
    silent: tuple[str, ...] = ()
    linearised: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def claim(job: TrainingJob) -> str:
    """Make the folder this job's, or find that it is. Call it when nothing is left that could be refused.

    Returns:
        Digest of the job's identity; checkpoints carry it.

    Raises:
        SpecError: The folder belongs to another job; the first difference is named.
    """
    require_own(job)
    identity, path = job.identity(), job.run_dir / SPEC
    if not path.exists():
        write_json(path, {"schema": 1, "digest": sha256_json(identity), "job": identity})
    return sha256_json(identity)


def require_own(job: TrainingJob) -> None:
    """Refuse a folder that another job has claimed; an unclaimed one is left as it is.

    Raises:
        SpecError: The first difference is named.
    """
    if not (job.run_dir / SPEC).exists():
        return
    difference = _difference(begun(job.run_dir), job.identity())
    if difference is not None:
        key, old, new = difference
        raise SpecError(
            f"{key}: run {job.run_dir.name} was started with {_short(old)}, now it is {_short(new)};"
            f" choose another name, or delete {job.run_dir}",
            {"key": key},
        )


def begun(run_dir: Path) -> dict[str, Any]:
    """Return the identity of the job that a folder belongs to; empty: it belongs to none yet.

    Raises:
        DataError: Its record is damaged.
    """
    path = run_dir / SPEC
    identity: dict[str, Any] = _read(path)["job"] if path.exists() else {}
    return identity


def finished(job: TrainingJob) -> TrainingResult | None:
    """Return the recorded result of a run that is done; None if it is not.

    Raises:
        IntegrityError: The weights are not those that were recorded.
    """
    path = job.run_dir / RESULT
    if not path.exists():
        return None
    document, weights = _read(path), job.run_dir / WEIGHTS
    if not weights.exists() or sha256_file(weights) != document["weights_sha256"]:
        raise IntegrityError(f"{weights}: missing or changed since training ended; delete {path} to train again")
    return TrainingResult(
        weights=weights,
        history=tuple(document["history"]),
        steps=document["steps"],
        seconds=document["seconds"],
        validation_error=document["validation_error"],
        resumed_from=document["resumed_from"],
        chosen_epoch=document.get("chosen_epoch"),
        silent=tuple(document.get("silent", ())),
        linearised=document.get("linearised"),
        notes=tuple(document.get("notes", ())),
    )


def record(job: TrainingJob, outcome: Mapping[str, Any], *, seconds: float) -> TrainingResult:
    """Write how a run ended; from now on it is finished.

    Args:
        job: The job.
        outcome: What rank 0's loop returned.
        seconds: Wall clock of this call.
    """
    history = [row for row in trace.read(job.run_dir / trace.FILE) if row["event"] == "epoch"]
    document = {"schema": 1, **outcome, "seconds": round(seconds, 3), "history": history}
    write_json(job.run_dir / RESULT, document)
    result = finished(job)
    assert result is not None
    return result


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write what `Engine.export` returned.

    Raises:
        StorageError: The disk is full or refuses.
    """
    write_bytes(path, serialise({name: tensor.contiguous() for name, tensor in state.items()}))


def first_line(error: BaseException) -> str:
    """Return the class and first line of an error, for messages of one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: not JSON; delete the run's folder") from e
    assert isinstance(document, dict)
    return document


_ABSENT = object()


def _difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Return the first leaf that differs: dotted key and both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(name for name in old if name not in new)]:
            difference = _difference(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{key}.{name}" if key else name)
            if difference is not None:
                return difference
        return None
    return None if old == new else (key, old, new)


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
