"""Every version against every version, as a program: bundles and data in, matrices out. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graceful.chain import Predecessor
from graceful.errors import SpecError
from graceful.programs.evaluation.background import reasons
from graceful.programs.evaluation.reference_runs import ReferenceRuns
from graceful.programs.outputs.kept_outputs import KeptOutputs
from graceful.programs.outputs.model_outputs import Evaluated, run_versions
from graceful.programs.outputs.pairs import pairs
from graceful.spec import RefreshSpec
from graceful.tasks.base import Task


def matrix(
    spec: RefreshSpec,
    task: Task,
    versions: Sequence[Predecessor],
    *,
    references: Mapping[str, ReferenceRuns] | None = None,
    kept: KeptOutputs | None = None,
) -> dict[str, Any]:
    """Measure all pairs.

    Args:
        spec: For batch size and whether retrieval is measured.
        task: Whose test, query and gallery splits are used.
        versions: Oldest first; the cells of those that cannot be run are None.
        references: Version name -> its unconstrained runs, for the independent diagonal.
        kept: Where answers of earlier evaluations are; None: every version is run.

    Returns:
        What `pairs.pairs` says, with `data`, the digests of the splits, `unconstrained`, by version where its
        independent cell comes from, or why it has none, and `unrunnable`, by version why it cannot be run.
    """
    samples = Evaluated.of(task, with_retrieval=spec.evaluate.retrieval, kept=kept)
    size = spec.evaluate.batch_size
    outputs, runs = (
        run_versions(
            [version_runs for version_runs in versions if not version_runs.unrunnable_reason], samples, batch_size=size
        ),
        references or {},
    )
    by_name = {version.name: version for version in outputs}
    reference_outputs = {
        name: [
            by_name[run.name] if run.name in by_name else run_versions([run], samples, batch_size=size)[0]
            for run in version_runs.runs
        ]
        for name, version_runs in runs.items()
    }
    names = [version.name for version in versions]
    unrunnable = {version.name: version.unrunnable_reason for version in versions if version.unrunnable_reason}
    return pairs(outputs, names=names, references=reference_outputs) | {
        "data": samples.digests,
        "unconstrained": reasons(names, runs),
        "lost": unrunnable,
    }


def chosen(versions: Sequence[Predecessor], names: Sequence[str]) -> list[Predecessor]:
    """Return the versions of these names, in the chain's order; no names: all.

    Raises:
        SpecError: A name that the chain has not, or fewer than two versions.
    """
    if not names:
        return list(versions)
    known_names = [version.name for version in versions]
    for name in names:
        if name not in known_names:
            raise SpecError(f"--versions: {name!r} is not a version of this chain, which has {', '.join(known_names)}")
    selected = [version for version in versions if version.name in names]
    if len(selected) < 2:
        raise SpecError(f"--versions: a matrix needs at least two of {', '.join(known_names)}, got {', '.join(names)}")
    return selected
