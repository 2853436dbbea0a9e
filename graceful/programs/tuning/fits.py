"""One fit: a point trained with one seed, measured on one part, noted in a file, never done twice. Runs in trials.

A fit is known by what determines it, so a search that was killed finds it again, finished or half trained. Of a
finished fit the answers stay (who is right, one bit per id), not the weights. Fits that differ only in the share of the
predecessor's weights are one training with several answers.
"""

from __future__ import annotations

import functools
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from graceful import spec as specs
from graceful import tasks
from graceful.chain import Predecessor
from graceful.errors import IntegrityError, StorageError, TrainingError, one_line
from graceful.metrics.retrieval import rank, recall_at_k
from graceful.models import bundle
from graceful.models.stored import StoredVersion
from graceful.programs import exclusive
from graceful.programs.fitting.reference_training import reference_run
from graceful.programs.fitting.train import train
from graceful.programs.fitting.weight_mixing import mix
from graceful.programs.outputs.model_outputs import embeddings_of, run_on_split
from graceful.programs.runs.run import Run
from graceful.programs.tuning.space import INTERPOLATION
from graceful.programs.tuning.splits import Part, part
from graceful.programs.tuning.verify import accepted
from graceful.spec import RefreshSpec
from graceful.storage import Mirror, arrays, sha256_json, write_bytes, write_json
from graceful.tasks.base import Samples, Task
from graceful.training.job import WEIGHTS

NOTE, RIGHT = "fit.json", "right.npy"
_SECTION: TypeAdapter[specs.Task] = TypeAdapter(specs.Task)


@dataclass(frozen=True, kw_only=True)
class Work:
    """The input of a trial as JSON values, because it may run in another process.

    Attributes:
        folder: The folder of all fits of the search.
        home: Folder of the caches that runs share.
        spec: The resolved spec of this fit, seed and weights included; untreated: without losses.
        ancestors: Bundles of the chain, latest first.
        part: On what it is measured.
        keep: Keep the weights, for a later measurement on another part.
        reference: Not the spec's own version but its unconstrained run of that number, which all runs share.
        shares: The shares of the predecessor's weights: the same training is measured with each of them too.
    """

    folder: str
    home: str
    spec: dict[str, Any]
    ancestors: tuple[str, ...]
    part: Part
    keep: bool = False
    reference: int | None = None
    shares: tuple[float, ...] = ()

    @property
    def digest(self) -> str:
        """Return the name of the training: a digest of all that its weights depend on before they are mixed."""
        parts = ("task", "train") if self.reference is not None else ("task", "train", "compatibility")
        content = {**{key: self.spec[key] for key in parts}, "reference": self.reference}
        if self.reference is None:
            section = self.spec["compatibility"]
            content["compatibility"] = {key: section[key] for key in section if key != INTERPOLATION}
        return sha256_json(content)[:20]

    @property
    def share(self) -> float:
        """Return the share of the predecessor's weights in what is measured."""
        return 0.0 if self.reference is not None else float(self.spec["compatibility"].get(INTERPOLATION, 0.0))

    @property
    def measured(self) -> str:
        """Return the name of the measured answers within the fit's folder."""
        return f"{self.part}-{self.share:g}" if self.share else self.part

    def at(self, share: float) -> Work:
        """Return the same training, measured with another share."""
        section = {**self.spec["compatibility"], INTERPOLATION: share}
        return replace(self, spec={**self.spec, "compatibility": section}, shares=())

    @property
    def folder_path(self) -> Path:
        """Return its own folder."""
        return Path(self.folder) / self.digest

    def document(self) -> dict[str, Any]:
        """Return the work as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a fit ended.

    Attributes:
        digest: Names it.
        seconds: Of training and measuring.
        failed: Why it has no answers; None: it has.
        retrieval: R@1 of new queries on the latest predecessor's gallery; None: not measured.
    """

    digest: str
    seconds: float
    failed: str | None = None
    retrieval: float | None = None


def fit(document: Mapping[str, Any]) -> dict[str, Any]:
    """Train and measure, unless that is done; a training that fails or collapses is an answer, not an error.

    What would befall every other fit too (data, disk) is raised, and nothing is noted.

    Args:
        document: A `Work` as JSON values.

    Returns:
        A `Fit` as JSON values.
    """
    work = Work(**{**document, "ancestors": tuple(document["ancestors"]), "shares": tuple(document["shares"])})
    with exclusive(work.folder_path, wait=True):
        finished_fit = finished(work)
        result = _train_and_record(work) if finished_fit is None else finished_fit
        _settle(work)
        return asdict(result)


def _train_and_record(work: Work) -> Fit:
    started = time.monotonic()
    spec = specs.parse(work.spec, where="a trial")
    task = _task(spec.task.model_dump_json())
    failed, retrieval = None, None
    try:
        retrieval = _trained_and_measured(work, _run_of(work, spec), task)
    except TrainingError as e:
        failed = f"{type(e).__name__}: {e.message}"
    except (MemoryError, torch.OutOfMemoryError) as e:
        failed = f"out of memory: {str(e).partition('. ')[0]}"
    result = Fit(digest=work.digest, seconds=time.monotonic() - started, failed=failed, retrieval=retrieval)
    _note(work, result)
    return result


def _settle(work: Work) -> None:
    """Copy the answers and delete what is no longer needed; also after a kill between the note and this."""
    mirror, measured = Mirror.of(Path(work.home)), [work, *map(work.at, work.shares)]
    for kind in (RIGHT, NOTE):  # a note says that the answers are there
        mirror.save(work.folder_path, only=[f"{measured_work.measured}-{kind}" for measured_work in measured])
    unneeded = ("checkpoints", "ray", *(() if work.keep else ("model",)))
    for name in unneeded:
        if mirror.uri is not None or (work.folder_path / name).exists():
            mirror.delete_folder(work.folder_path / name)
    if not work.keep:
        mirror.delete(work.folder_path / WEIGHTS)


def _note(work: Work, result: Fit) -> None:
    write_json(work.folder_path / f"{work.measured}-{NOTE}", asdict(result))


def finished(work: Work) -> Fit | None:
    """Return how the fit ended, if it has, here or on a machine that was lost."""
    note, mirror = work.folder_path / f"{work.measured}-{NOTE}", Mirror.of(Path(work.home))
    if mirror.uri is not None and not note.exists():
        mirror.restore_file(work.folder_path / f"{work.measured}-{RIGHT}")
        mirror.restore_file(note)
    try:
        return Fit(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def right(work: Work) -> NDArray[np.bool_]:
    """Return [N], which ids a finished fit that did not fail answered right.

    Raises:
        IntegrityError: Its file is gone or damaged.
    """
    path = work.folder_path / f"{work.measured}-{RIGHT}"
    try:
        packed = arrays.read_npy(path, kind="u1")
        count = int(packed[:8].view(np.int64)[0])
        if not 0 <= count <= 8 * (len(packed) - 8):
            raise ValueError(f"announces {count} answers and holds fewer")
        return np.unpackbits(packed[8:], count=count).astype(np.bool_)
    except (StorageError, ValueError, LookupError) as e:
        raise IntegrityError(
            f"{path}: damaged ({one_line(e)}); delete {work.folder_path} to make that fit again"
        ) from e


def _run_of(work: Work, spec: RefreshSpec) -> Run:
    """Return the run that trains a fit; ancestors that an earlier fit of this process has opened stay open."""
    run = Run.of(spec, home=Path(work.home), folder=work.folder_path)
    return replace(run, versions=dict(_ancestors(work.ancestors, spec.task.model_dump_json(), spec.trust.code_digests)))


@functools.lru_cache(maxsize=1)
def _ancestors(folders: tuple[str, ...], section: str, trusted: tuple[str, ...]) -> Mapping[str, StoredVersion]:
    like = _SECTION.validate_json(section)
    return {folder: StoredVersion(folder=Path(folder), augment_like=like, trusted=trusted) for folder in folders}


def _trained_and_measured(work: Work, run: Run, task: Task) -> float | None:
    spec, ancestors, folder = run.spec, run.chain(map(Path, work.ancestors)), run.model
    latest = ancestors[0].stored if ancestors else None
    if work.reference is not None:
        folder = reference_run(run, work.reference, task=task, latest=latest).folder
    elif not (folder / "arch.json").exists():
        section = spec.compatibility.model_copy(update={INTERPOLATION: 0.0})
        unmixed = replace(run, spec=spec.model_copy(update={"compatibility": section}))
        train(unmixed, ancestors=ancestors, task=task, checked=True)
    for share in work.shares:
        share_work, started = work.at(share), time.monotonic()
        retrieval = _measured(share_work, folder, latest, spec, task)
        _note(share_work, Fit(digest=work.digest, seconds=time.monotonic() - started, retrieval=retrieval))
    return _measured(work, folder, latest, spec, task)


def _measured(work: Work, folder: Path, latest: StoredVersion | None, spec: RefreshSpec, task: Task) -> float | None:
    """Ask a trained bundle, with the work's share of the predecessor's weights; returns its retrieval."""
    new = bundle.load(folder, augment_like=spec.task, trusted=spec.trust.code_digests)
    if work.share and latest is not None:
        mix(new.network, latest, work.share, spec=spec, task=task)
    samples = part(task, spec, work.part)
    _write_correct(work, correct_answers(new, samples, spec, task))
    if spec.tune is None or spec.tune.objectives != "front" or latest is None:
        return None
    return _cross_test(new, latest.whole(), samples, spec, task)


def _write_correct(work: Work, correct: NDArray[np.bool_]) -> None:
    file = io.BytesIO()
    count = np.array([len(correct)], dtype=np.int64).view(np.uint8)
    np.save(file, np.concatenate([count, np.packbits(correct)]), allow_pickle=False)
    write_bytes(work.folder_path / f"{work.measured}-{RIGHT}", file.getvalue())


def correct_answers(version: Predecessor, samples: Samples, spec: RefreshSpec, task: Task) -> NDArray[np.bool_]:
    """Return [N], which ids are answered right; for verification [P], which genuine pairs are accepted."""
    outputs = run_on_split(version, samples, spec.evaluate.batch_size)
    if spec.tune is not None and spec.tune.far is not None:
        calibration = task.samples("constraint")
        return accepted(
            embeddings_of(samples, outputs),
            calibrated_on=embeddings_of(calibration, run_on_split(version, calibration, spec.evaluate.batch_size)),
            far=spec.tune.far,
        )
    finite = np.isfinite(outputs.logits).all(axis=1)
    predicted = np.asarray(version.classes)[outputs.logits.argmax(axis=1)]
    return np.asarray(finite & (predicted == np.asarray(samples.classes)[samples.labels]))


def _cross_test(new: Predecessor, old: Predecessor, samples: Samples, spec: RefreshSpec, task: Task) -> float | None:
    """Return R@1 of new queries on the old gallery within the part: the test galleries stay untouched."""
    size = spec.evaluate.batch_size
    queries = embeddings_of(samples, run_on_split(new, samples, size))
    gallery = embeddings_of(samples, run_on_split(old, samples, size, role="gallery"))
    return recall_at_k(rank(queries.aligned(gallery.size), gallery), draws=100).value


@functools.lru_cache(maxsize=2)
def _task(section: str) -> Task:
    """Return the data is opened once for all trials of a process."""
    return tasks.build(_SECTION.validate_json(section))


def stacked(works: Sequence[Work]) -> NDArray[np.bool_]:
    """Return [S, N] answers of finished fits."""
    return np.stack([right(work) for work in works])
