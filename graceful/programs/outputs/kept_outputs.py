"""Outputs of versions for the samples of reports, kept in the home; unchanged versions are not run again. Driver.

One file for a version, a split and an encoder. Its name is the SHA-256 of everything that its content depends on, so a
file is never out of date: another version, other samples or labels, or another transform have another name. Gigabytes
for 10^6 samples are embeddings; answers take 20 bytes a sample whatever the number of classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from graceful.chain import Predecessor
from graceful.storage import Mirror, sha256_json, write_bytes
from graceful.tasks.base import Samples

FOLDER = "evaluations"
"""Name of the folder, below the home."""
FORMAT = 1
ANSWERS = ("codes", "confidence", "label_confidence")
EMBEDDINGS = "embeddings"
_KINDS = {"codes": np.int32, "confidence": np.float64, "label_confidence": np.float64, EMBEDDINGS: np.float32}
_DIGEST = "sha256"
TOLERANCE = 1e-3
"""Largest difference between two kinds of processors, absolute and as a share."""


@dataclass(frozen=True, kw_only=True)
class SplitAnswers:
    """Outputs of one version on one split, in sample order.

    Attributes:
        codes: [N] int32, the class it predicts, by its own numbers; -1: no answer.
        confidence: [N] float64, probability of that class.
        label_confidence: [N] float64, probability of the true class; 0 where it does not know the class.
        embeddings: [N, d] float32; None: they were not asked for.
    """

    codes: NDArray[np.int32]
    confidence: NDArray[np.float64]
    label_confidence: NDArray[np.float64]
    embeddings: NDArray[np.float32] | None

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> SplitAnswers:
        """Return what `arrays` returned as answers again."""
        return cls(**{EMBEDDINGS: None, **arrays})

    def take(self, rows: NDArray[np.int64]) -> SplitAnswers:
        """Return those of some samples."""
        return SplitAnswers.of({name: column[rows] for name, column in self.arrays().items()})

    def agrees_with(self, other: SplitAnswers) -> bool:
        """Return whether two answers are the same but for the rounding of another machine."""
        mine, others = self.arrays(), other.arrays()
        return mine.keys() == others.keys() and all(
            mine[name].shape == others[name].shape
            and np.allclose(mine[name], others[name], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
            for name in mine
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return them by name."""
        vectors = {} if self.embeddings is None else {EMBEDDINGS: self.embeddings}
        return {name: getattr(self, name) for name in ANSWERS} | vectors


@dataclass(frozen=True, kw_only=True)
class KeptOutputs:
    """A folder of answers.

    Attributes:
        folder: Made when something is kept.
        mirror: Where the folder has a copy, for machines that share nothing but a bucket.
    """

    folder: Path
    mirror: Mirror

    @classmethod
    def of(cls, home: Path, mirror: Mirror) -> KeptOutputs:
        """Return those of a home."""
        return cls(folder=home / FOLDER, mirror=mirror)

    def path(self, version: Predecessor, samples: Samples, *, encoder: str, embeddings: bool) -> Path:
        """Return where a version's answers are, or would be."""
        content = {
            "format": FORMAT,
            "version": version.digest,
            "transform": version.transform_digest,
            "classes": list(version.classes),
            "samples": samples.digest,
            "encoder": encoder,
            "embeddings": embeddings,
        }
        return self.folder / f"{sha256_json(content)}.safetensors"

    def read(self, path: Path, *, rows: int) -> SplitAnswers | None:
        """Return what a file holds; None: there is none, or it is damaged, and is written again.

        Raises:
            StorageError: The bucket is unreachable.
        """
        if not path.exists() and not self.mirror.restore_file(path):
            return None
        arrays = _read(path)
        if arrays is None or any(len(column) != rows for column in arrays.values()):
            return None
        os.utime(path)  # those that were not used for longest are deleted first
        return SplitAnswers.of(arrays)

    def keep(self, path: Path, answers: SplitAnswers) -> None:
        """Write answers to a file.

        Raises:
            StorageError: The disk is full, or the bucket is unreachable.
        """
        arrays = {name: np.ascontiguousarray(column) for name, column in answers.arrays().items()}
        write_bytes(path, save(arrays, metadata={_DIGEST: _digest(arrays)}))
        self.mirror.save(path.parent, only=[path.name])


def _read(path: Path) -> dict[str, Any] | None:
    """Return the arrays of a file whose content has the digest that stands in it; None: it has not."""
    try:
        with safe_open(path, framework="numpy") as file:
            names, written = set(file.keys()), (file.metadata() or {}).get(_DIGEST)
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return None
    expected = {*ANSWERS, EMBEDDINGS} if EMBEDDINGS in names else set(ANSWERS)
    kinds = names == expected and all(column.dtype == _KINDS[name] for name, column in arrays.items())
    return arrays if kinds and _digest(arrays) == written else None


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    content = hashlib.sha256()
    for name in sorted(arrays):
        content.update(f"{name}{arrays[name].shape}".encode())
        content.update(np.ascontiguousarray(arrays[name]).data.cast("B"))
    return content.hexdigest()
