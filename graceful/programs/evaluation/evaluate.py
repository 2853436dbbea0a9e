"""Measure a version alone and against every ancestor: bundles and data in, a Report out. Runs in the driver."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graceful import catalogue, tasks
from graceful.catalogue import About
from graceful.chain import Predecessor
from graceful.errors import GracefulError
from graceful.metrics import added, flips, retrieval
from graceful.metrics.chain_flips import chain_flips
from graceful.metrics.compatibility import Searches, compare_retrieval
from graceful.metrics.inputs import MetricInputs, VersionOutputs
from graceful.metrics.predictions import Predictions
from graceful.programs.evaluation.background import background
from graceful.programs.evaluation.reference_runs import ReferenceRuns
from graceful.programs.outputs.flipped import Flip, negative_flips
from graceful.programs.outputs.galleries import FleetVersions, compare_pairs, unjudged
from graceful.programs.outputs.kept_outputs import KeptOutputs
from graceful.programs.outputs.model_outputs import Evaluated, run_versions
from graceful.report import Comparison, Measurement, Report
from graceful.spec import RefreshSpec
from graceful.tasks.base import Samples, Task
from graceful.tasks.names import shared as shared_names


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation yields.

    Attributes:
        report: The evidence, for the gate.
        flips: Negative flips against every ancestor, for people.
        test: The samples that flipped, to look at.
        predictions: The new version's predictions for each of them.
        background: What else people want to know, see `background.background`.
    """

    report: Report
    flips: tuple[Flip, ...]
    test: Samples
    predictions: Predictions
    background: dict[str, Any]


def evaluate(
    spec: RefreshSpec,
    new: Predecessor,
    ancestors: Sequence[Predecessor],
    *,
    task: Task | None = None,
    notes: Sequence[str] = (),
    references: Mapping[str, ReferenceRuns] | None = None,
    kept: KeptOutputs | None = None,
    fleet: FleetVersions | None = None,
) -> Evaluation:
    """Compare a version with all of its ancestors on the test split, and on query and gallery where the task has them.

    Args:
        spec: Names the task whose data is used; every version sees it through its own transform.
        new: The version to measure.
        ancestors: Latest first; empty for the first link. Those that cannot be run are not measured: what would be
            measured against them, and over the whole chain, is undefined, so that no constraint on it is met.
        task: Already built task, else built from the spec.
        notes: Further caveats for the report.
        references: Version name -> its unconstrained runs; the gate sees nothing of them.
        kept: Where answers of earlier evaluations are; None: every version is run.
        fleet: The galleries that the new version searches, or the query models that search its own.

    Raises:
        DataError: The test split is empty or ids do not join.
    """
    samples = Evaluated.of(task or tasks.build(spec.task), with_retrieval=spec.evaluate.retrieval, kept=kept)
    unrunnable = [ancestor for ancestor in ancestors if ancestor.unrunnable_reason]
    versions = [new, *(ancestor for ancestor in ancestors if not ancestor.unrunnable_reason)]
    new_outputs, *old_outputs = outputs = run_versions(versions, samples, batch_size=spec.evaluate.batch_size)
    draws, seed = spec.evaluate.bootstrap, spec.train.seed
    searches = Searches()
    alone = _alone(new_outputs, old_outputs, unrunnable, searches, draws=draws, seed=seed)
    comparisons = _comparisons(new_outputs, old_outputs, ancestors, searches, draws=draws, seed=seed)
    paired = () if fleet is None else compare_pairs(spec, new_outputs, new, fleet, samples, first=len(ancestors) + 1)
    report = Report(
        model=spec.model,
        version=spec.name,
        data=samples.digests,
        measurements=alone,
        comparisons=(*comparisons, *paired),
        notes=(
            *notes,
            *_caveats(versions, unrunnable),
            *_overlaps(versions, samples.test),
            *(unjudged(spec, paired) if paired else ()),
        ),
        metrics=catalogue.others(),
    )
    flipped = [negative_flips(new_outputs.predictions, old.predictions, against=old.name) for old in old_outputs]
    return Evaluation(
        report=report,
        flips=tuple(itertools.chain.from_iterable(flipped)),
        test=samples.test,
        predictions=new_outputs.predictions,
        background=background(
            spec, outputs, samples, references=references or {}, chain=[new, *ancestors], searches=searches
        ),
    )


def _comparisons(
    new: VersionOutputs,
    others: Sequence[VersionOutputs],
    ancestors: Sequence[Predecessor],
    searches: Searches,
    *,
    draws: int,
    seed: int,
) -> tuple[Comparison, ...]:
    """Return the new version against each ancestor, latest first; nothing is measured against those without outputs."""
    measured = {old.name: _against(new, old, searches, draws=draws, seed=seed) for old in others}
    return tuple(
        Comparison(
            against=old.name,
            model_id=old.model_id,
            distance=distance,
            measurements=measured.get(old.name) or dict.fromkeys(_all(About.ANCESTOR), _unmeasured(old)),
        )
        for distance, old in enumerate(ancestors, start=1)
    )


def _alone(
    new: VersionOutputs,
    others: Sequence[VersionOutputs],
    unrunnable: Sequence[Predecessor],
    searches: Searches,
    *,
    draws: int,
    seed: int,
) -> dict[str, Measurement]:
    """Return everything that is measured about the new version itself, and against its whole chain at once."""
    measurements = dict(flips.measure_alone(new.predictions, draws=draws, seed=seed))
    if new.queries is not None and new.gallery is not None:
        ranking = searches(new.queries, new.gallery, older="gallery")
        measurements |= retrieval.self_tested(ranking, draws=draws, seed=seed)
    measurements |= added.measure(About.VERSION, MetricInputs(new, draws=draws, seed=seed))
    if others:
        measurements |= chain_flips(new.predictions, [old.predictions for old in others], draws=draws, seed=seed)
        measurements |= added.measure(About.CHAIN, MetricInputs(new, tuple(others), draws=draws, seed=seed))
    for old in unrunnable:
        measurements |= dict.fromkeys(_all(About.CHAIN), _unmeasured(old))
    return measurements


def _all(about: About) -> tuple[str, ...]:
    """Return the names of graceful's metrics and of other packages'."""
    return *catalogue.named(about), *added.chosen(about)


def _caveats(versions: Sequence[Predecessor], unrunnable: Sequence[Predecessor]) -> list[str]:
    missed = [
        f"{old.name}: {old.unrunnable_reason}, so nothing was measured against it{_advice(old)}" for old in unrunnable
    ]
    return missed + [note for version in versions for note in version.notes]


def _unmeasured(version: Predecessor) -> Measurement:
    return Measurement(
        value=None, reason=f"{version.name} cannot be run, {version.unrunnable_reason}{_advice(version)}"
    )


def _advice(version: Predecessor) -> str:
    """Return what a person can do about code that is not run; nothing where weights were deleted to save storage."""
    return "" if version.unrunnable is None else f"; {version.remedy}"


def _against(
    new: VersionOutputs, old: VersionOutputs, searches: Searches, *, draws: int, seed: int
) -> dict[str, Measurement]:
    """Return everything that is measured against one ancestor."""
    measurements = dict(flips.compare(new.predictions, old.predictions, draws=draws, seed=seed))
    if new.queries is not None and old.queries is not None and old.gallery is not None:
        sides = (new.queries, new.gallery, old.queries, old.gallery)
        measurements |= compare_retrieval(*sides, draws=draws, seed=seed, searches=searches)
    return measurements | added.measure(About.ANCESTOR, MetricInputs(new, (old,), draws=draws, seed=seed))


def _overlaps(versions: Sequence[Predecessor], test: Samples) -> list[str]:
    """Return one sentence for each version that was trained on test ids, where it is too good to be compared with."""
    notes = []
    for version in versions:
        if version.training_ids is None:
            continue
        try:
            shared = len(shared_names(test.ids, version.training_ids()))
        except GracefulError as e:
            notes.append(f"{version.name}: whether test ids are in its training data is unknown ({e.message})")
            continue
        if shared:
            notes.append(
                f"{version.name}: {shared} of {len(test)} test ids are in its training data; its errors are"
                " underestimated, and negative flips against it overestimated"
            )
    return notes
