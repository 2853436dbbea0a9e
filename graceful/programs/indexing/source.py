"""Where vectors come from: a registered version run over a split of a task, or a file of vectors. Driver."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, SpecError
from graceful.index import Space, Vectors, files

if TYPE_CHECKING:
    from graceful.chain import Predecessor
    from graceful.learners.base import Role
    from graceful.tasks.base import Samples

BATCH = 256
PAUSE = 5.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Vectors as the command line names them.

    Attributes:
        version: MODEL, MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS; None: the vectors are in a file.
        spec: Whose task has the items; None: the recorded one of the version.
        split: Of that task.
        vectors: A file of vectors.
        space: What the space of the file is called.
        metric: How its vectors are compared.
    """

    version: str | None = None
    spec: Mapping[str, Any] | None = None
    split: str = "gallery"
    vectors: str | None = None
    space: str | None = None
    metric: str = "cosine"


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A version and the samples that it embeds.

    Attributes:
        version: Opened.
        samples: The samples of the split.
        space: The space of its vectors.
    """

    version: Predecessor
    samples: Samples
    space: Space

    def embed(self, rows: NDArray[np.int64] | None = None, *, role: Role = "gallery", quiet: bool = True) -> Vectors:
        """Return the vectors of some samples, with label and group as payload.

        Args:
            rows: Positions of the samples; None: all.
            role: Its encoder for that role is used.
            quiet: Print no progress on stderr.
        """
        from graceful.tasks.portions import portion

        rows = np.arange(len(self.samples), dtype=np.int64) if rows is None else rows
        at_once = portion(self.samples, self.version.learner.collate, most=BATCH)
        parts, spoken = [], time.monotonic()
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            parts.append(self.version(self.samples.read(part), role=role).embedding.cpu().numpy())
            if not quiet and time.monotonic() - spoken > PAUSE:
                spoken = time.monotonic()
                sys.stderr.write(f"embed={self.space.name} step={start + len(part)} steps={len(rows)}\n")
        vectors = np.concatenate(parts) if parts else np.zeros((0, self.space.dimension), dtype=np.float32)
        classes = np.asarray(self.samples.classes)
        ids, groups = np.asarray(self.samples.ids[rows]), np.asarray(self.samples.groups[rows])
        payload = {"label": classes[self.samples.labels[rows]]}
        return Vectors(
            ids=ids, vectors=vectors, payload=payload if (ids == groups).all() else {**payload, "group": groups}
        )


def embedder(source: Source, home: Path) -> Embedder:
    """Open a version and the split that it embeds.

    Raises:
        SpecError: No such version or split, or the version cannot be run.
        IntegrityError, RegistryError: As `Store.fetch`.
    """
    from graceful import tasks  # with the registry, seconds that files of vectors need not wait
    from graceful.lineage import Store
    from graceful.programs.runs import ancestry, version_spec
    from graceful.programs.runs.run import Run

    assert source.version is not None
    store = Store(None, home)
    record = store.record(ancestry.find(store, source.version).model_id)
    section = version_spec.of(store, record, source.spec, what=f"embed with {source.version}")
    run = Run.of(section, home=home)
    task = tasks.build(section.task)
    version = run.version(store.fetch(record)).whole()
    try:
        samples = task.samples(source.split)  # type: ignore[arg-type]
    except KeyError:
        samples = task.samples("test")  # as everywhere: a task without query and gallery searches test in test
    space = Space(
        name=record.refresh_id,
        dimension=version.embedding_size,
        model=version.digest,
        contract="" if version.contract is None else version.contract.digest,
        model_id=record.model_id,
    )
    return Embedder(version=version, samples=samples, space=space)


def read(source: Source, home: Path, *, role: Role = "gallery") -> tuple[Vectors, Space]:
    """Return vectors and their space.

    Raises:
        SpecError: Neither a version nor a file, both, or a file that does not name its space.
        DataError: The file is none of vectors.
    """
    if (source.version is None) == (source.vectors is None):
        raise SpecError("give either --version (with --spec) or --vectors FILE (with --space)")
    if source.vectors is None:
        made = embedder(source, home)
        return made.embed(role=role, quiet=False), made.space
    path = source.vectors
    vectors, written = files.read(path)
    if vectors.vectors.ndim != 2:
        raise DataError(f"{path}: vectors must be [N, d], got shape {list(vectors.vectors.shape)}")
    if written is not None:
        if source.space not in (None, written.name):
            raise SpecError(
                f"{path}: says that its vectors are of {written.name}, not of {source.space}; leave --space out"
            )
        return vectors, written
    if source.space is None:
        raise SpecError(
            f"{path}: does not say which model made its vectors; write --space NAME, e.g. the model and its revision"
        )
    return vectors, Space.declared(source.space, vectors.dimension, metric=source.metric)
