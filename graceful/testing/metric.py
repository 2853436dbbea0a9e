"""A check of one metric: that its row is fit, and what its function returns on inputs of every shape. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from graceful import catalogue
from graceful.metric import About, Metric, fault
from graceful.metrics import added
from graceful.metrics.inputs import MetricInputs, VersionOutputs
from graceful.metrics.predictions import Predictions
from graceful.metrics.retrieval import Embeddings
from graceful.report import Measurement

CLASSES = ("cat", "dog", "owl")
DRAWS = 100


def check(metric: Metric) -> Measurement:
    """Measure a metric on random versions and on degenerate ones.

    Args:
        metric: As its entry point names it.

    Returns:
        What it measures on the random versions.

    Raises:
        AssertionError: Its row is unfit; its function raises, or returns a value that is not finite, outside its range
            or interval, without a reason where it is undefined; or the order of the samples changes the value.
    """
    reason = fault(metric, metric.name)
    assert reason is None, f"{metric.name}, {reason}"
    assert metric.name not in catalogue.METRICS, f"graceful has a metric {metric.name}; give yours another name"
    assert callable(metric.measure), f"{metric.name} has no function that measures it; give it measure"
    measurement = _measured(metric, inputs(metric.about), "random versions")
    again = _measured(metric, inputs(metric.about), "random versions")
    assert measurement == again, f"{metric.name}: equal inputs have different values"
    shuffled = _measured(metric, _reordered(inputs(metric.about)), "shuffled samples")
    assert _close(measurement.value, shuffled.value), f"{metric.name}: the order of the samples changes the value"
    for what, case in _degenerate(metric.about):
        _measured(metric, case, what)
    return measurement


def inputs(about: About, *, count: int = 60, seed: int = 0, grouped: bool = False) -> MetricInputs:
    """Return the inputs of a metric: random versions whose predictions and embeddings get better.

    Args:
        about: What the metric is about: none, one or two ancestors.
        count: Samples.
        seed: The seed of the random numbers.
        grouped: Whether five samples each belong together.
    """
    ancestors = {About.VERSION: 0, About.ANCESTOR: 1, About.CHAIN: 2}[about]
    new, *old = (
        _version(f"v{ancestors + 1 - age}", skill=2.0 - 0.5 * age, count=count, seed=seed + age, grouped=grouped)
        for age in range(ancestors + 1)
    )
    return MetricInputs(new, tuple(old), draws=DRAWS, seed=seed)


def _version(name: str, *, skill: float, count: int, seed: int, grouped: bool) -> VersionOutputs:
    random = np.random.default_rng(seed)
    ids = np.array([f"sample-{number:04d}" for number in range(count)], dtype=np.str_)
    codes = np.arange(count) % len(CLASSES)
    labels = np.asarray(CLASSES)[codes]
    groups = np.arange(count) // 5 if grouped else None
    logits = random.normal(size=(count, len(CLASSES))) + skill * np.eye(len(CLASSES))[codes]
    vectors = random.normal(size=(count, 8)) + skill * np.eye(8)[codes]
    embeddings = Embeddings(ids=ids, labels=labels, vectors=vectors, groups=groups)
    predictions = Predictions.from_logits(logits, ids=ids, labels=labels, classes=CLASSES, groups=groups)
    return VersionOutputs(name=name, predictions=predictions, queries=embeddings, gallery=embeddings)


def _degenerate(about: About) -> Iterator[tuple[str, MetricInputs]]:
    yield "grouped samples", inputs(about, grouped=True)
    yield "one sample", inputs(about, count=1)
    whole = inputs(about)
    new = whole.new.predictions
    right = replace(new, predicted=new.labels)
    yield "a version that is always right", replace(whole, new=replace(whole.new, predictions=right))
    silent = replace(new, predicted=np.full(len(new), "", dtype=np.str_))
    yield "a version whose outputs are NaN", replace(whole, new=replace(whole.new, predictions=silent))
    yield (
        "an evaluation without confidences",
        replace(whole, new=replace(whole.new, predictions=replace(new, confidence=None, label_confidence=None))),
    )


def _reordered(case: MetricInputs) -> MetricInputs:
    order = np.random.default_rng(1).permutation(len(case.new.predictions))
    versions = (case.new, *case.ancestors)
    taken = [replace(version, predictions=version.predictions.take(order)) for version in versions]
    return replace(case, new=taken[0], ancestors=tuple(taken[1:]))


def _close(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)


def _measured(metric: Metric, case: MetricInputs, what: str) -> Measurement:
    assert metric.measure is not None
    measurement = metric.measure(case)
    reason = added.fault(metric, measurement)
    assert reason is None, f"{metric.name} of {what}: {reason}"
    return added.plain(measurement)
