"""What a version says about a split, and how metrics read it. Runs in the driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from graceful.chain import Predecessor
from graceful.errors import DataError
from graceful.learners.base import Role, encoder_for
from graceful.metrics import retrieval
from graceful.metrics.inputs import VersionOutputs
from graceful.metrics.predictions import Predictions
from graceful.tasks.base import Samples, Split, Task
from graceful.tasks.portions import portion


@dataclass(frozen=True, kw_only=True)
class SplitOutputs:
    """One version's outputs on one split, in sample order.

    Attributes:
        logits: [N, C] float32, in its own label space.
        embeddings: [N, d] float32.
    """

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The samples that versions are measured on.

    Attributes:
        test: For flips.
        query: For retrieval; None: it is not measured.
        gallery: Likewise. Both are the test split itself where the task has no such splits.
    """

    test: Samples
    query: Samples | None
    gallery: Samples | None

    @classmethod
    def of(cls, task: Task, *, with_retrieval: bool) -> Self:
        """Open a task's splits.

        Raises:
            DataError: The test split is empty.
        """
        test = task.samples("test")
        if not len(test):
            raise DataError("task: the test split is empty; the gate needs at least one sample in it")
        if not with_retrieval:
            return cls(test=test, query=None, gallery=None)
        return cls(test=test, query=split_or(task, "query", test), gallery=split_or(task, "gallery", test))

    @property
    def digests(self) -> dict[str, str]:
        """Split name -> SHA-256 of its samples."""
        named = {"test": self.test, "query": self.query, "gallery": self.gallery}
        return {name: samples.digest for name, samples in named.items() if samples is not None}


def run_versions(versions: Sequence[Predecessor], samples: Evaluated, *, batch_size: int) -> list[VersionOutputs]:
    """Ask versions about every split, about each once."""
    return [_outputs_of(version, samples, batch_size) for version in versions]


def _outputs_of(version: Predecessor, samples: Evaluated, batch_size: int) -> VersionOutputs:
    outputs: dict[tuple[int, str], SplitOutputs] = {}

    def of(split: Samples, role: Role = "query") -> SplitOutputs:
        key = id(split), encoder_for(version.learner, role)
        if key not in outputs:
            outputs[key] = run_on_split(version, split, batch_size, role=role)
        return outputs[key]

    predictions = predictions_of(version, samples.test, of(samples.test))
    if samples.query is None or samples.gallery is None:
        return VersionOutputs(name=version.name, predictions=predictions)
    return VersionOutputs(
        name=version.name,
        predictions=predictions,
        queries=embeddings_of(samples.query, of(samples.query)),
        gallery=embeddings_of(samples.gallery, of(samples.gallery, "gallery")),
    )


def run_on_split(version: Predecessor, samples: Samples, batch_size: int, *, role: Role = "query") -> SplitOutputs:
    """Run one version over a split with its encoder for a role, at most `batch_size` samples at a time."""
    rows = portion(samples, version.learner.collate, most=batch_size)
    outputs = [version(items, role=role) for items in _batches(samples, rows)]
    return SplitOutputs(
        logits=torch.cat([output.logits for output in outputs]).cpu().numpy(),
        embeddings=torch.cat([output.embedding for output in outputs]).cpu().numpy(),
    )


def _batches(samples: Samples, batch_size: int) -> Iterator[Any]:
    for start in range(0, len(samples), batch_size):
        yield samples.read(np.arange(start, min(start + batch_size, len(samples)), dtype=np.int64))


def predictions_of(version: Predecessor, samples: Samples, outputs: SplitOutputs) -> Predictions:
    """A version's predictions on a split."""
    return Predictions.from_logits(
        outputs.logits,
        ids=np.asarray(samples.ids),
        labels=np.asarray(samples.classes)[samples.labels],
        classes=version.classes,
        groups=np.asarray(samples.groups),
    )


def split_or(task: Task, name: Split, otherwise: Samples) -> Samples:
    """A split, or another one where the task has none of that name."""
    try:
        return task.samples(name)
    except KeyError:
        return otherwise


def embeddings_of(samples: Samples, outputs: SplitOutputs) -> retrieval.Embeddings:
    """A version's embeddings of a split."""
    return retrieval.Embeddings(
        ids=np.asarray(samples.ids),
        labels=np.asarray(samples.classes)[samples.labels],
        vectors=outputs.embeddings,
        groups=np.asarray(samples.groups),
        judgments=samples.judgments,
    )
