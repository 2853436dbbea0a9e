"""Measure a version alone and against every ancestor: bundles and data in, a Report out. Runs in the driver."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graceful import tasks
from graceful.chain import Predecessor
from graceful.errors import DataError, GracefulError
from graceful.metrics import flips, retrieval
from graceful.metrics.chain_flips import chain_flips
from graceful.metrics.compatibility import compare_retrieval
from graceful.metrics.predictions import Predictions
from graceful.programs.flipped import Flip, negative_flips
from graceful.report import Comparison, Measurement, Report
from graceful.spec import RefreshSpec
from graceful.tasks.base import Samples, Split, Task


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One version's outputs on one split, in sample order.

    Attributes:
        logits: [N, C] float32, in its own label space.
        embeddings: [N, d] float32.
    """

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation yields.

    Attributes:
        report: The evidence, for the gate.
        flips: Negative flips against every ancestor, for people.
        test: The samples that flipped, to look at.
        predictions: What the new version says of each of them.
    """

    report: Report
    flips: tuple[Flip, ...]
    test: Samples
    predictions: Predictions


def evaluate(
    spec: RefreshSpec,
    new: Predecessor,
    ancestors: Sequence[Predecessor],
    *,
    task: Task | None = None,
    notes: Sequence[str] = (),
) -> Evaluation:
    """Compare a version with all of its ancestors on the test split, and on query and gallery where the task has them.

    Args:
        spec: Names the task whose data is used; every version sees it through its own transform.
        new: The version to measure.
        ancestors: Latest first; empty for the first link.
        task: Already built task, else built from the spec.
        notes: Further caveats for the report.

    Raises:
        DataError: The test split is empty or ids do not join.
    """
    task = task or tasks.build(spec.task)
    test = task.samples("test")
    if not len(test):
        raise DataError(f"task {spec.task.kind}: the test split is empty; the gate needs at least one sample in it")
    versions = [new, *ancestors]
    said = [answers(version, test, spec.evaluate.batch_size) for version in versions]
    predictions = [predictions_of(version, test, one) for version, one in zip(versions, said, strict=True)]
    draws, seed = spec.evaluate.bootstrap, spec.train.seed
    alone = dict(flips.alone(predictions[0], draws=draws, seed=seed))
    against = [dict(flips.compare(predictions[0], old, draws=draws, seed=seed)) for old in predictions[1:]]
    data = {"test": test.digest}
    if spec.evaluate.retrieval:
        found = _retrieval(spec, task, versions, test, said)
        alone |= found.alone
        data |= found.data
        against = [{**flip, **cross} for flip, cross in zip(against, found.against, strict=True)]
    if against:
        alone |= chain_flips(predictions[0], predictions[1:], draws=draws, seed=seed)
    comparisons = tuple(
        Comparison(against=old.name, model_id=old.model_id, distance=distance, measurements=measured)
        for distance, (old, measured) in enumerate(zip(ancestors, against, strict=True), start=1)
    )
    report = Report(
        model=spec.model,
        version=spec.name,
        data=data,
        measurements=alone,
        comparisons=comparisons,
        notes=(*notes, *(note for version in versions for note in version.notes), *_overlaps(versions, test)),
    )
    flipped = [
        negative_flips(predictions[0], old, against=version.name)
        for version, old in zip(ancestors, predictions[1:], strict=True)
    ]
    return Evaluation(
        report=report, flips=tuple(itertools.chain.from_iterable(flipped)), test=test, predictions=predictions[0]
    )


def answers(version: Predecessor, samples: Samples, batch_size: int) -> Answers:
    """Run one version over a split."""
    outputs = [version(items) for items in _batches(samples, batch_size)]
    return Answers(
        logits=torch.cat([output.logits for output in outputs]).cpu().numpy(),
        embeddings=torch.cat([output.embedding for output in outputs]).cpu().numpy(),
    )


def _batches(samples: Samples, batch_size: int) -> Iterator[Any]:
    for start in range(0, len(samples), batch_size):
        yield samples.read(np.arange(start, min(start + batch_size, len(samples)), dtype=np.int64))


def predictions_of(version: Predecessor, samples: Samples, said: Answers) -> Predictions:
    """A version's predictions on a split."""
    return Predictions.from_logits(
        said.logits,
        ids=samples.ids,
        labels=np.asarray(samples.classes)[samples.labels],
        classes=version.classes,
        groups=samples.groups,
    )


def _overlaps(versions: Sequence[Predecessor], test: Samples) -> list[str]:
    """One sentence for each version that was trained on test ids, where it is too good to be compared with."""
    notes = []
    for version in versions:
        if version.training_ids is None:
            continue
        try:
            shared = int(np.isin(test.ids, version.training_ids()).sum())
        except GracefulError as e:
            notes.append(f"{version.name}: whether test ids are in its training data is unknown ({e.message})")
            continue
        if shared:
            notes.append(
                f"{version.name}: {shared} of {len(test)} test ids are in its training data; its errors are"
                " underestimated, and negative flips against it overestimated"
            )
    return notes


@dataclass(frozen=True, kw_only=True)
class _Retrieval:
    alone: dict[str, Measurement]
    against: list[dict[str, Measurement]]
    data: dict[str, str]


def _retrieval(
    spec: RefreshSpec, task: Task, versions: Sequence[Predecessor], test: Samples, said: Sequence[Answers]
) -> _Retrieval:
    """Retrieval by every version; `said` is what they said of the test split, which stands in for absent splits."""
    query, gallery = split_or(task, "query", test), split_or(task, "gallery", test)
    size = spec.evaluate.batch_size

    def embedded(samples: Samples) -> list[retrieval.Embeddings]:
        known = said if samples is test else [answers(version, samples, size) for version in versions]
        return [embeddings_of(samples, one) for one in known]

    queries = embedded(query)
    galleries = queries if gallery is query else embedded(gallery)
    draws, seed = spec.evaluate.bootstrap, spec.train.seed
    return _Retrieval(
        alone=dict(retrieval.self_test(queries[0], galleries[0], draws=draws, seed=seed)),
        against=[
            dict(compare_retrieval(queries[0], galleries[0], *old, draws=draws, seed=seed))
            for old in zip(queries[1:], galleries[1:], strict=True)
        ],
        data={"query": query.digest, "gallery": gallery.digest},
    )


def split_or(task: Task, name: Split, otherwise: Samples) -> Samples:
    """A split, or another one where the task has none of that name."""
    try:
        return task.samples(name)
    except KeyError:
        return otherwise


def embeddings_of(samples: Samples, said: Answers) -> retrieval.Embeddings:
    """A version's embeddings of a split."""
    return retrieval.Embeddings(
        ids=samples.ids,
        labels=np.asarray(samples.classes)[samples.labels],
        vectors=said.embeddings,
        groups=samples.groups,
    )
