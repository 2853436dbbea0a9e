"""Outputs of a version on a data split, and their conversion to inputs of metrics. Runs in the driver."""

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
from graceful.metrics.predictions import Predictions, answers
from graceful.programs.outputs.kept_outputs import KeptOutputs, SplitAnswers
from graceful.tasks.base import Samples, Split, Task
from graceful.tasks.portions import portion

COMPARED = 16
"""Samples on which kept answers are compared with the version: a damaged or forged file is not evidence."""


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
        kept: Where answers of earlier evaluations are; None: every version is run.
    """

    test: Samples
    query: Samples | None
    gallery: Samples | None
    kept: KeptOutputs | None = None

    @classmethod
    def of(cls, task: Task, *, with_retrieval: bool, kept: KeptOutputs | None = None) -> Self:
        """Open a task's splits.

        Raises:
            DataError: The test split is empty.
        """
        test = task.samples("test")
        if not len(test):
            raise DataError("task: the test split is empty; the gate needs at least one sample in it")
        if not with_retrieval:
            return cls(test=test, query=None, gallery=None, kept=kept)
        return cls(test=test, query=split_or(task, "query", test), gallery=split_or(task, "gallery", test), kept=kept)

    @property
    def digests(self) -> dict[str, str]:
        """Split name -> SHA-256 of its samples."""
        named = {"test": self.test, "query": self.query, "gallery": self.gallery}
        return {name: samples.digest for name, samples in named.items() if samples is not None}


def run_versions(versions: Sequence[Predecessor], samples: Evaluated, *, batch_size: int) -> list[VersionOutputs]:
    """Return the outputs of versions on every split. Each is run once on a split, unless its outputs are kept."""
    return [_outputs_of(version, samples, batch_size) for version in versions]


def _outputs_of(version: Predecessor, samples: Evaluated, batch_size: int) -> VersionOutputs:
    known: dict[tuple[int, str], SplitAnswers] = {}

    def of(split: Samples, role: Role = "query", *, embeddings: bool) -> SplitAnswers:
        key = id(split), encoder_for(version.learner, role)
        if key not in known:
            known[key] = split_answers(version, split, samples.kept, batch_size, role=role, embeddings=embeddings)
        return known[key]

    if samples.query is None or samples.gallery is None:
        return VersionOutputs(
            name=version.name, predictions=_predictions(version, samples.test, of(samples.test, embeddings=False))
        )
    queries = of(samples.query, embeddings=True)  # before the test split, which may be the same samples
    gallery = of(samples.gallery, "gallery", embeddings=True)
    return VersionOutputs(
        name=version.name,
        predictions=_predictions(version, samples.test, of(samples.test, embeddings=False)),
        queries=_embeddings(samples.query, queries.embeddings),
        gallery=_embeddings(samples.gallery, gallery.embeddings),
    )


def split_answers(
    version: Predecessor, samples: Samples, kept: KeptOutputs | None, batch_size: int, *, role: Role, embeddings: bool
) -> SplitAnswers:
    """Read a version's answers and compare a few of them with the version, or run it on all samples and keep them."""
    if kept is None:
        return answers_on_split(version, samples, batch_size, role=role, embeddings=embeddings)
    path = kept.path(version, samples, encoder=encoder_for(version.learner, role), embeddings=embeddings)
    said = kept.read(path, rows=len(samples))
    if said is not None:
        few = np.unique(np.linspace(0, len(samples) - 1, COMPARED).astype(np.int64))
        now = answers_on_split(version, samples, COMPARED, role=role, embeddings=embeddings, positions=few)
        if said.take(few).agrees_with(now):
            return said
    said = answers_on_split(version, samples, batch_size, role=role, embeddings=embeddings)
    kept.keep(path, said)
    return said


def answers_on_split(
    version: Predecessor,
    samples: Samples,
    batch_size: int,
    *,
    role: Role = "query",
    embeddings: bool,
    positions: NDArray[np.int64] | None = None,
) -> SplitAnswers:
    """Run one version over a split and keep what reports read: memory does not grow with samples x classes.

    Args:
        version: What is run.
        samples: The split.
        batch_size: Most samples at a time.
        role: Its encoder for that role is used.
        embeddings: Whether these are kept, too.
        positions: The positions of the samples; None: all.
    """
    if positions is None:
        positions = np.arange(len(samples), dtype=np.int64)
    names = np.asarray(samples.classes)
    columns, vectors, rows = [], [], portion(samples, version.learner.collate, most=batch_size)
    for start in range(0, len(positions), rows):
        part = positions[start : start + rows]
        outputs = version(samples.read(part), role=role)
        columns.append(answers(outputs.logits.cpu().numpy(), names[samples.labels[part]], version.classes))
        if embeddings:
            vectors.append(outputs.embedding.cpu().numpy())
    codes, confidence, label_confidence = (np.concatenate(column) for column in zip(*columns, strict=True))
    return SplitAnswers(
        codes=codes,
        confidence=confidence,
        label_confidence=label_confidence,
        embeddings=np.concatenate(vectors) if embeddings else None,
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


def _predictions(version: Predecessor, samples: Samples, said: SplitAnswers) -> Predictions:
    return Predictions.from_codes(
        said.codes,
        said.confidence,
        said.label_confidence,
        ids=np.asarray(samples.ids),
        labels=np.asarray(samples.classes)[samples.labels],
        classes=version.classes,
        groups=np.asarray(samples.groups),
    )


def split_or(task: Task, name: Split, otherwise: Samples) -> Samples:
    """Return a split, or another one where the task has none of that name."""
    try:
        return task.samples(name)
    except KeyError:
        return otherwise


def embeddings_of(samples: Samples, outputs: SplitOutputs) -> retrieval.Embeddings:
    """Return a version's embeddings of a split."""
    return _embeddings(samples, outputs.embeddings)


def _embeddings(samples: Samples, vectors: NDArray[np.float32] | None) -> retrieval.Embeddings:
    assert vectors is not None, "asked for with embeddings"
    return retrieval.Embeddings(
        ids=np.asarray(samples.ids),
        labels=np.asarray(samples.classes)[samples.labels],
        vectors=vectors,
        groups=np.asarray(samples.groups),
        judgments=samples.judgments,
    )
