"""What gives a backfill the vectors of the new model: a version that embeds items, or a file of vectors. Driver."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graceful.errors import SpecError
from graceful.index import Space, Vectors
from graceful.index.backfill_work import Reembed
from graceful.programs.indexing import source as sources
from graceful.programs.indexing.source import Embedder, Source


@dataclass(frozen=True, kw_only=True)
class FileVectors:
    """Vectors that exist already.

    Attributes:
        space: Theirs.
        vectors: All of them.
        rows: Id -> row.
    """

    space: Space
    vectors: Vectors
    rows: dict[str, int]

    def __call__(self, ids: NDArray[np.str_]) -> Vectors:
        """Return those of some ids."""
        found = [self.rows[name] for name in ids.tolist() if name in self.rows]
        return self.vectors.take(np.asarray(found, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class SplitVectors:
    """A version that embeds the samples of a split.

    Attributes:
        embedder: The version and the samples.
        rows: Id -> position of the sample.
    """

    embedder: Embedder
    rows: dict[str, int]

    @property
    def space(self) -> Space:
        """Of the version."""
        return self.embedder.space

    def __call__(self, ids: NDArray[np.str_]) -> Vectors:
        """Return those of some ids."""
        found = [self.rows[name] for name in ids.tolist() if name in self.rows]
        return self.embedder.embed(np.asarray(found, dtype=np.int64))


def of(source: Source, home: Path) -> Reembed:
    """Return what the command line names.

    Raises:
        SpecError: Neither a version nor a file, or both.
        DataError: The file is none of vectors.
    """
    if (source.version is None) == (source.vectors is None):
        raise SpecError("give the new model: either --version (with --spec) or --vectors FILE (with --space)")
    if source.version is None:
        vectors, space = sources.read(source, home)
        checked = vectors.checked(dimension=space.dimension, where=str(source.vectors))
        return FileVectors(space=space, vectors=checked, rows=_rows(checked.ids))
    made = sources.embedder(source, home)
    return SplitVectors(embedder=made, rows=_rows(np.asarray(made.samples.ids[np.arange(len(made.samples))])))


def _rows(ids: NDArray[np.str_]) -> dict[str, int]:
    return {name: row for row, name in enumerate(ids.tolist())}
